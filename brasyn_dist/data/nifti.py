"""NIfTI volumes in one canonical form: integers, axes (x, y, z) in LPS order.

    *.nii, *.nii.gz --> Volume (LPS integers, header) --> write_like --> *.nii.gz in the form of the file

BraTS stores nearly all volumes in LPS order; some cases are in RAS order. The array of a brain does not
depend on storage order, header type or scaling. Negative values are kept: normalisation clamps them
(docs/explanation/method.md, section 2).

The orientation is that of the sform, otherwise of the qform. A header that states none, or two that
contradict each other, is read as LAS (NIfTI's convention without forms) or by its sform, or in the order that
the user states. What was assumed is a note of the volume.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    aff2axcodes,
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
_FORMS_MM = 0.05
"""Largest difference between qform and sform that is not noted; quaternions store float32."""
_ZEROS_BYTES = 2**20
"""Compressed zeros are smaller."""
_LEAST_LEVELS = 50
"""Fewest different values above 0 that rounding may leave."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and the header of its file."""

    array: np.ndarray
    """(x, y, z) in LPS order, integer type, Fortran memory order."""
    image: nibabel.Nifti1Image
    """Header and affine of the file, without data, for `write_like`."""
    path: Path
    notes: tuple[str, ...] = ()
    """What was assumed about the header."""
    oriented: bool = True
    """False: the header states no orientation, or contradicting ones."""

    @property
    def affine(self) -> np.ndarray:
        """Affine of `array`; it does not depend on the storage order."""
        return self.image.affine @ inv_ornt_aff(_to_lps(self.image), self.image.shape[:3])


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
    notes: tuple[str, ...] = ()
    """What was assumed about the headers."""
    unoriented: tuple[Path, ...] = ()
    """Files that state no orientation, or contradicting ones."""

    @cached_property
    def foreground(self) -> np.ndarray:
        """(M, x, y, z) bool: voxels above 0, in the memory order of `images`."""
        return self.images > 0


def read_volume(path: Path | str, round_values: bool = False, assume: str | None = None) -> Volume:
    """Read one volume.

    Args:
        path: A .nii or .nii.gz file.
        round_values: Round values that are not whole numbers instead of refusing them.
        assume: Order of the axes, such as `LPS`, if the header states none or contradicting ones.

    Raises:
        DataError: The file cannot be read, or has NaN, infinity or fractions. The message names it.
    """
    path = Path(path)
    image, values = _load(path)
    return _canonical(_integers(values, path, round_values), image, path, assume)


def read_labels(
    path: Path | str,
    order: LabelOrder = "brats",
    modality_set: ModalitySet = BRATS,
    assume: str | None = None,
) -> Volume:
    """Read a segmentation; `array` is uint8 with the labels of `modality_set`.

    Args:
        path: A .nii or .nii.gz file.
        order: Order of the labels in the file, see `brats.canonical_labels`.
        modality_set: Defines the labels.
        assume: As for `read_volume`.

    Raises:
        DataError: The file cannot be read or has unknown labels. The message starts with the path.
    """
    path = Path(path)
    image, values = _load(path)
    return _canonical(canonical_labels(values, path, order, modality_set), image, path, assume)


def label_values(path: Path) -> frozenset[int]:
    """Whole values of a segmentation as stored. Raises DataError if the file cannot be read."""
    values = _load(path)[1]
    return frozenset(np.unique(np.rint(values[values != 0])).astype(int).tolist())


def _load(path: Path) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """Image without data, and its scaled values in storage order. A folder stands for the one file in it."""
    if path.is_dir():
        inside = [p for p in sorted(path.iterdir()) if p.name.lower().endswith((".nii", ".nii.gz"))]
        if len(inside) != 1:
            raise DataError(f"{path}: a folder with {len(inside)} volumes; replace it by the volume itself")
        path = inside[0]
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
    if values.ndim > 3 and set(values.shape[3:]) == {1}:
        values = values.reshape(values.shape[:3])
    if values.ndim != 3:
        raise DataError(
            f"{path}: has shape {values.shape}; expected a 3-D volume, one file for each modality"
        )
    if values.dtype.kind not in "iubf":
        raise DataError(f"{path}: values of type {values.dtype} are no intensities; convert them to integers")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        bad = int(np.count_nonzero(~finite))
        raise DataError(
            f"{path}: NaN or infinity in {bad} of {values.size} voxels; repair or leave out the case"
        )
    return image, values


def is_background(path: Path) -> bool:
    """Whether a volume has no voxel above 0. False for a file that cannot be read: reading it reports why."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        if packed and path.stat().st_size > _ZEROS_BYTES:
            return False
        if not packed and path.name.lower().endswith(".nii"):  # only one plane is read of nearly all volumes
            values = nibabel.load(path).dataobj  # type: ignore[attr-defined]
            if (np.asarray(values[..., values.shape[-1] // 2]) > 0).any():
                return False
        return not (_load(path)[1] > 0).any()
    except Exception:
        return False


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


def _canonical(array: np.ndarray, image: nibabel.Nifti1Image, path: Path, assume: str | None) -> Volume:
    oriented, notes = _judge_header(image)
    if not oriented and assume is not None:
        image.affine[...] = _affine_of(assume, image.header.get_zooms()[:3])
        notes = [f"{notes[0].partition(':')[0]}: {assume} assumed as stated"]
    turned = np.asfortranarray(apply_orientation(array, _to_lps(image)))
    return Volume(turned, image, path, tuple(notes), oriented)


def _judge_header(image: nibabel.Nifti1Image) -> tuple[bool, list[str]]:
    """Whether the header states one orientation, and what is assumed about it."""
    header = image.header
    qform, sform = (getattr(header, f"get_{name}")(coded=True)[0] for name in ("qform", "sform"))
    if qform is None and sform is None:
        return False, [f"no orientation in the header: {_axes(image.affine)} assumed"]
    notes = []
    if qform is not None and sform is not None:
        if _axes(qform) != _axes(sform):
            return False, [
                f"qform ({_axes(qform)}) and sform ({_axes(sform)}) contradict each other: sform assumed"
            ]
        difference = float(np.abs(qform - sform).max())
        if difference > _FORMS_MM:
            notes.append(f"qform and sform differ by up to {difference:.3g}: sform used")
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.allclose(sizes, header.get_zooms()[:3], rtol=0.01):
        stated = describe_spacing(header.get_zooms()[:3])
        notes.append(f"pixdim ({stated}) and sform ({describe_spacing(sizes)}) contradict: sform used")
    return True, notes


def describe_spacing(sizes: Sequence[float]) -> str:
    """Voxel sizes for messages: `1 mm`, or `1 x 1 x 3 mm`."""
    texts = [f"{float(s):.3g}" for s in sizes]
    return f"{texts[0] if len(set(texts)) == 1 else ' x '.join(texts)} mm"


def _axes(affine: np.ndarray) -> str:
    return "".join(str(code) for code in aff2axcodes(affine))


def _affine_of(axes: str, sizes: Sequence[float]) -> np.ndarray:
    """Affine of voxels of these sizes whose axes are stored in the order of `axes`, without an offset."""
    affine = np.diag([0.0, 0, 0, 1])
    for column, ((row, sign), size) in enumerate(zip(axcodes2ornt(tuple(axes)), sizes)):
        affine[int(row), column] = sign * size
    return affine


def check_axes(axes: str | None) -> str | None:
    """Upper-case `axes` of an option. Raises DataError unless they are three of L/R, P/A and S/I."""
    if axes is None:
        return None
    if sorted("LRPASI".find(letter) // 2 for letter in axes.upper()) != [0, 1, 2]:
        raise DataError(
            f"--assume {axes}: give three letters such as LPS or RAS, one each of L/R, P/A and S/I"
        )
    return axes.upper()


def _integers(values: np.ndarray, path: Path, round_values: bool) -> np.ndarray:
    """`values` as int16 if they fit, otherwise as int32."""
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        worst = float(np.abs(values - rounded).max(initial=0))
        if worst > _WHOLE:
            _check_levels(values, rounded, path)
            if not round_values:
                raise DataError(
                    f"{path}: intensities are not whole numbers as BraTS stores them (off by up to "
                    f"{worst:.2g}); to have them rounded, give --round"
                )
        values = rounded
    if np.can_cast(values.dtype, np.int16):
        return values.astype(np.int16, copy=False)
    low, high = values.min(initial=0), values.max(initial=0)
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind, copy=False)
    raise DataError(f"{path}: values from {low} to {high} do not fit 32-bit integers; rescale the volume")


def _check_levels(values: np.ndarray, rounded: np.ndarray, path: Path) -> None:
    """Raise DataError if rounding leaves only a few values: the volume was rescaled, such as to 0..1."""
    levels = len(np.unique(rounded[rounded > 0]))
    if levels < _LEAST_LEVELS and levels < len(np.unique(values[values > 0])):
        raise DataError(
            f"{path}: values from {values.min():.4g} to {values.max():.4g} are rescaled, and rounding would "
            f"leave {levels} above 0; give the original volume, or multiply it by 1000"
        )


def read_case(
    case: Case,
    modalities: Sequence[str] | None = None,
    segmentation: bool = True,
    round_values: bool = False,
    assume: str | None = None,
) -> CaseVolumes:
    """Read volumes of a case.

    Args:
        case: Case with the paths.
        modalities: Modalities to read; None: all of the modality set.
        segmentation: Read the labels too, if the case has a segmentation.
        round_values: Round values that are not whole numbers instead of refusing them.
        assume: As for `read_volume`.

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
                    read_labels(path, case.label_order, case.modality_set, assume)
                    if name == SEGMENTATION
                    else read_volume(path, round_values, assume)
                )
                check_geometry(next(iter(volumes.values())), volumes[name])
    if problems:
        raise DataError("\n".join(problems))
    # Stacked with x as the fastest axis, as it is in each volume.
    images = np.stack([volumes[m].array.T for m in wanted]).transpose(0, 3, 2, 1)
    labels = volumes[SEGMENTATION].array if SEGMENTATION in volumes else None
    stored_types = tuple(volumes[m].image.get_data_dtype() for m in wanted)
    return CaseVolumes(
        case,
        wanted,
        images,
        labels,
        volumes[wanted[0]],
        stored_types,
        merge_notes({name: volume.notes for name, volume in volumes.items()}),
        tuple(volume.path for volume in volumes.values() if not volume.oriented),
    )


def merge_notes(notes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Notes of the volumes of a case, each once, with the names of the volumes that it is about."""
    volumes: dict[str, list[str]] = {}
    for name, of_volume in notes.items():
        for note in of_volume:
            volumes.setdefault(note, []).append(name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in volumes.items())


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
    stored = apply_orientation(array_xyz.astype(kind), back).reshape(source.shape)
    image = type(source)(stored, None, header)  # without an affine both forms stay as they are in the header
    with atomic_path(path) as temporary:
        data = image.to_bytes()
        temporary.write_bytes(compress(data) if path.name.lower().endswith(".gz") else data)


def compress(data: bytes) -> bytes:
    """Compressed data without a time stamp: equal volumes give equal bytes."""
    return igzip.compress(data, mtime=0)


def compressed_file(path: Path) -> bytes:
    """Content of a volume as .nii.gz, whatever its name says."""
    data = path.read_bytes()
    return data if data.startswith(_GZIP_MAGIC) else compress(data)
