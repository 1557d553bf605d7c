"""NIfTI volumes in one canonical form: integers, axes (x, y, z) in LPS order.

    *.nii, *.nii.gz --> Volume (LPS integers, header) --> write_like --> *.nii.gz in the form of the file

BraTS stores nearly all volumes in LPS order; some cases are in RAS order. The array of a brain does not
depend on storage order, header type or scaling. Negative values are kept: normalisation clamps them
(docs/explanation/method.md, section 2).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from gzip import BadGzipFile
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from brasyn_dist.brats import BRATS, Case, LabelOrder, canonical_labels
from brasyn_dist.common.files import atomic_path
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import SEGMENTATION, ModalitySet

_LPS = axcodes2ornt(("L", "P", "S"))
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI_MAGIC = {b"n+1\0": nibabel.Nifti1Image, b"n+2\0": nibabel.Nifti2Image}
_WHOLE = 1e-3
"""Floating-point values that differ less from whole numbers are integers; headers with a scale factor produce
them."""
_AFFINE_MM = 1e-3
"""Largest difference between the affines of the volumes of a case; headers store float32."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and the header of its file."""

    array: np.ndarray
    """(x, y, z) in LPS order, integer type, Fortran memory order."""
    image: nibabel.Nifti1Image
    """Header and affine of the file, without data, for `write_like`."""
    path: Path

    @property
    def affine(self) -> np.ndarray:
        """Affine of `array`; it does not depend on the storage order."""
        return self.image.affine @ inv_ornt_aff(_to_lps(self.image), self.image.shape)


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """Volumes of one case. x is the fastest axis in memory."""

    case: Case
    modalities: tuple[str, ...]
    images: np.ndarray
    """(M, x, y, z) integers in the order of `modalities`."""
    labels: np.ndarray | None
    """(x, y, z) uint8, canonical labels; None without a segmentation."""
    reference: Volume
    """The first modality, for its geometry."""
    stored_types: tuple[np.dtype, ...]
    """Types of the files, in the order of `modalities`."""

    @cached_property
    def foreground(self) -> np.ndarray:
        """(M, x, y, z) bool: voxels above 0, in the memory order of `images`."""
        return self.images > 0


def read_volume(path: Path | str, round_values: bool = False) -> Volume:
    """Read one volume.

    Args:
        path: A .nii or .nii.gz file.
        round_values: Round values that are not whole numbers instead of refusing them.

    Raises:
        DataError: The file cannot be read, or has NaN, infinity or fractions. The message names it.
    """
    path = Path(path)
    image, values = _load(path)
    return _canonical(_integers(values, path, round_values), image, path)


def read_labels(path: Path | str, order: LabelOrder = "brats", modality_set: ModalitySet = BRATS) -> Volume:
    """Read a segmentation; `array` is uint8 with the labels of `modality_set`.

    Args:
        path: A .nii or .nii.gz file.
        order: Order of the labels in the file, see `brats.canonical_labels`.
        modality_set: Defines the labels.

    Raises:
        DataError: The file cannot be read or has unknown labels. The message starts with the path.
    """
    path = Path(path)
    image, values = _load(path)
    return _canonical(canonical_labels(values, path, order, modality_set), image, path)


def _load(path: Path) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """Image without data, and its scaled values in storage order."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if data.startswith(_GZIP_MAGIC):
            data = igzip.decompress(data)
        # nibabel "repairs" data that is not a NIfTI header, so the magic number is checked first.
        kind = _NIFTI_MAGIC.get(data[344:348]) or _NIFTI_MAGIC.get(data[4:8])
        if kind is None:
            raise DataError(f"{path}: not a NIfTI file; fetch or convert it again")
        image = kind.from_bytes(data)
        values = np.asanyarray(image.dataobj)
        image = kind.from_bytes(data[: max(kind.header_class.sizeof_hdr, image.header.get_data_offset())])
        _to_lps(image)
    except DataError:
        raise
    except (EOFError, BadGzipFile, IsalError) as error:  # type: ignore[misc]  # wrong declaration in isal
        raise DataError(f"{path}: truncated or damaged gzip ({_one_line(error)}); fetch it again") from None
    except Exception as error:  # nibabel and numpy raise various exceptions for damaged headers
        raise DataError(f"{path}: truncated or damaged ({_one_line(error)}); fetch it again") from None
    if values.ndim != 3:
        raise DataError(f"{path}: has shape {values.shape}; expected a 3-D volume")
    if values.dtype.kind not in "iubf":
        raise DataError(f"{path}: values of type {values.dtype} are no intensities; convert them to integers")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        bad = int(np.count_nonzero(~finite))
        raise DataError(
            f"{path}: NaN or infinity in {bad} of {values.size} voxels; repair or leave out the case"
        )
    return image, values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_lps(image: nibabel.Nifti1Image) -> np.ndarray:
    """Orientation (of nibabel) from storage order to LPS. Oblique axes count as the nearest straight ones."""
    return _affine_to_lps(image.affine.astype(np.float64).tobytes())


@lru_cache(maxsize=64)
def _affine_to_lps(affine: bytes) -> np.ndarray:
    """Cached, because nibabel needs milliseconds, and a cohort has few affines."""
    orientation = ornt_transform(io_orientation(np.frombuffer(affine).reshape(4, 4)), _LPS)
    orientation.flags.writeable = False
    return orientation


def _canonical(array: np.ndarray, image: nibabel.Nifti1Image, path: Path) -> Volume:
    return Volume(np.asfortranarray(apply_orientation(array, _to_lps(image))), image, path)


def _integers(values: np.ndarray, path: Path, round_values: bool) -> np.ndarray:
    """`values` as int16 if they fit, otherwise as int32."""
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        worst = float(np.abs(values - rounded).max(initial=0))
        if worst > _WHOLE and not round_values:
            raise DataError(
                f"{path}: intensities are not whole numbers as BraTS stores them (off by up to {worst:.2g}); "
                "to have them rounded, give --round"
            )
        values = rounded
    if np.can_cast(values.dtype, np.int16):
        return values.astype(np.int16, copy=False)
    low, high = values.min(initial=0), values.max(initial=0)
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind, copy=False)
    raise DataError(f"{path}: values from {low} to {high} do not fit 32-bit integers; rescale the volume")


def read_case(
    case: Case,
    modalities: Sequence[str] | None = None,
    segmentation: bool = True,
    round_values: bool = False,
) -> CaseVolumes:
    """Read volumes of a case.

    Args:
        case: Case with the paths.
        modalities: Modalities to read; None: all of the modality set.
        segmentation: Read the labels too, if the case has a segmentation.
        round_values: Round values that are not whole numbers instead of refusing them.

    Raises:
        DataError: All problems, one on each line: a modality is missing, a file is unusable, or its shape or
            affine differs from the others.
    """
    wanted = case.modality_set.modalities if modalities is None else tuple(modalities)
    problems = [f"{case.folder}: no volume for {m}" for m in wanted if m not in case.files]
    volumes: dict[str, Volume] = {}
    for name in [*wanted, *([SEGMENTATION] if segmentation else [])]:
        if name in case.files:
            with _collect(problems):
                path = case.files[name]
                volumes[name] = (
                    read_labels(path, modality_set=case.modality_set)
                    if name == SEGMENTATION
                    else read_volume(path, round_values)
                )
                check_geometry(next(iter(volumes.values())), volumes[name])
    if problems:
        raise DataError("\n".join(problems))
    # Stacked with x as the fastest axis, as it is in each volume.
    images = np.stack([volumes[m].array.T for m in wanted]).transpose(0, 3, 2, 1)
    labels = volumes[SEGMENTATION].array if SEGMENTATION in volumes else None
    stored_types = tuple(volumes[m].image.get_data_dtype() for m in wanted)
    return CaseVolumes(case, wanted, images, labels, volumes[wanted[0]], stored_types)


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        problems.append(str(error))


def check_geometry(reference: Volume, other: Volume) -> None:
    """Raise DataError unless both volumes have one shape and, within 0.001 mm, one affine."""
    if reference.array.shape != other.array.shape:
        raise DataError(
            f"{other.path}: shape {other.array.shape} differs from {reference.array.shape} of "
            f"{reference.path.name}; "
            "resample it to the same grid"
        )
    difference = float(np.abs(reference.affine - other.affine).max())
    if not difference <= _AFFINE_MM:
        raise DataError(
            f"{other.path}: affine differs by up to {difference:.4g} from that of {reference.path.name}; "
            "co-register the volumes, or correct the header"
        )


def write_like(
    path: Path | str, array_xyz: np.ndarray, reference: Volume, dtype: np.dtype | type | None = None
) -> None:
    """Write an array in the storage order, affine and header of `reference`, atomically.

    Args:
        path: A .nii or .nii.gz file.
        array_xyz: Volume in LPS order. Values are rounded and clipped to the range of an integer type.
        reference: Volume whose form is used.
        dtype: Type in the file; None: that of `reference`.

    Raises:
        DataError: The shapes differ.
    """
    path, source = Path(path), reference.image
    if array_xyz.shape != reference.array.shape:
        raise DataError(
            f"{path}: shape {array_xyz.shape} differs from {reference.array.shape} of {reference.path}"
        )
    kind = np.dtype(dtype or source.get_data_dtype())
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        array_xyz = np.clip(np.rint(array_xyz), limits.min, limits.max)
    header = source.header.copy()
    header.set_data_dtype(kind)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0  # display window of the reference
    back = ornt_transform(_LPS, io_orientation(source.affine))
    image = type(source)(apply_orientation(array_xyz.astype(kind), back), source.affine, header)
    for name in ("qform", "sform"):
        code = int(source.header[f"{name}_code"])
        getattr(image, f"set_{name}")(source.affine if code else None, code)
    with atomic_path(path) as temporary:
        data = image.to_bytes()
        temporary.write_bytes(compress(data) if path.name.lower().endswith(".gz") else data)


def compress(data: bytes) -> bytes:
    """Compressed data without a time stamp: equal volumes give equal bytes."""
    return igzip.compress(data, mtime=0)
