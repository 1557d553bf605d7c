"""NIfTI volumes of BraTS in one canonical form: integers, axes (x, y, z) in LPS order.

    *.nii, *.nii.gz --> Volume (LPS integers + how the file had them) --> write_like --> *.nii.gz in the file's own form

BraTS stores nearly all volumes in LPS order; some cases come in RAS. Whatever the order, header type or scaling, the same
brain gives the same array. Negative values are kept: clamping them is part of normalisation (method, section 2).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

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
from nibabel.volumeutils import apply_read_scaling

from brasyn_dist.brats import BRATS, Case, LabelOrder, canonical_labels
from brasyn_dist.common.files import atomic_path
from brasyn_dist.data.gunzip import Stream, open_stream
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet

_LPS = axcodes2ornt(("L", "P", "S"))
_AS_STORED = [[0, 1], [1, 1], [2, 1]]
"""nibabel's orientation that changes nothing."""
_WHOLE = 1e-3
"""Floating-point values this close to whole numbers are integers (headers with a scale factor make such)."""
_AFFINE = 1e-3
"""Affines of one case's volumes may differ by so many mm (headers store float32)."""
_PAGE = 1 << 16
"""Bytes that are read at a time of what follows the values."""


@dataclass(frozen=True, eq=False)
class Volume:
    """`array` (x, y, z) in LPS order with an integer type, in Fortran memory order as NIfTI files have it.

    `image` has header and affine of what it was read from (for writing likewise), and no data.
    """

    array: np.ndarray
    image: nibabel.Nifti1Image
    path: Path

    @property
    def affine(self) -> np.ndarray:
        """Affine of the canonical array: equal for the same brain in any storage order."""
        return self.image.affine @ inv_ornt_aff(_to_lps(self.image), self.image.shape)


class CaseMemory:
    """Memory of all volumes of a case, one behind the other: nearly all are read where they are to be.

    Given to `read_case` again, it is used again, and what was read before is gone: for reading many cases, one at a time.
    """

    def __init__(self) -> None:
        self._volumes = np.empty((0, 0, 0, 0), np.int16)
        self._mask = np.empty((0, 0, 0, 0), bool)
        self._count = self._used = 0

    def begin(self, count: int) -> None:
        """The next `count` volumes are those of one case."""
        self._count, self._used = count, 0

    def place(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """For the next volume; elsewhere if it is not like the first, or not of the usual type."""
        wanted = (self._count, *reversed(shape))
        if dtype != np.int16 or (self._used and self._volumes.shape != wanted):
            return _anywhere(shape, dtype)
        if self._volumes.shape != wanted:
            self._volumes = np.empty(wanted, np.int16)
        self._used += 1
        return self._volumes[self._used - 1].T

    def joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """(M, x, y, z), of arrays (x, y, z): without a copy if all are where `place` put them, and as they lay there."""
        joined = self._volumes
        placed = self._used == len(arrays)
        if not placed or any(a.ctypes.data != j.ctypes.data for a, j in zip(arrays, joined)):
            joined = np.stack([a.T for a in arrays])
        return joined.transpose(0, 3, 2, 1)

    def above_zero(self, images: np.ndarray) -> np.ndarray:
        """`images > 0`, in memory as `joined` makes them."""
        images_MZYX = images.transpose(0, 3, 2, 1)
        if self._mask.shape != images_MZYX.shape:
            self._mask = np.empty(images_MZYX.shape, bool)
        return np.greater(images_MZYX, 0, out=self._mask).transpose(0, 3, 2, 1)


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """Volumes of one case: `images` (M, x, y, z) integers in the order of `modalities`, `labels` (x, y, z) uint8 or None.

    In memory x is fastest, M slowest.
    """

    case: Case
    modalities: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None
    reference: Volume
    """The first modality, for its geometry."""
    memory: CaseMemory
    stored_types: tuple[np.dtype, ...]
    """Types of the files, in the order of `modalities`."""

    @cached_property
    def foreground(self) -> np.ndarray:
        """(M, x, y, z) bool, where `images` are above 0; in memory as they are."""
        return self.memory.above_zero(self.images)


Place = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Memory, x fastest, for the values of a file of that shape and type."""


def _anywhere(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.empty(shape, dtype, order="F")


def read_volume(path: Path | str, round_values: bool = False) -> Volume:
    """Read one volume. Raises DataError naming the file if it cannot be read, or holds NaN, infinity or fractions.

    `round_values` accepts fractions and rounds them.
    """
    return _read_volume(Path(path), round_values, _anywhere)


def _read_volume(path: Path, round_values: bool, place: Place) -> Volume:
    image, values = _load(path, place)
    return _canonical(_integers(values, path, round_values), image, path, place)


def read_labels(path: Path | str, order: LabelOrder = "brats", modality_set: ModalitySet = BRATS) -> Volume:
    """Read a segmentation in the given order of labels; `array` is uint8 in canonical labels.

    Raises DataError also for unknown labels.
    """
    path = Path(path)
    image, values = _load(path, _anywhere)
    return _canonical(canonical_labels(values, path, order, modality_set), image, path, _anywhere)


def _load(path: Path, place: Place) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """Image (of which only header and affine are used) and its values, scaled as the header says, in the file's storage order."""
    with _damage_named(path), closing(open_stream(path)) as stream:
        image = _header(stream)
        if image is None:
            raise DataError(f"{path}: not a NIfTI file; fetch or convert it again")
        turned = not np.array_equal(_to_lps(image), _AS_STORED)
        values = _values(image, stream, _anywhere if turned else place)
    if values.ndim != 3:
        raise DataError(f"{path}: has shape {values.shape}; expected a 3-D volume")
    if values.dtype.kind not in "iubf":
        raise DataError(f"{path}: values of type {values.dtype} are no intensities; convert them to integers")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        bad = int(np.count_nonzero(~finite))
        raise DataError(
            f"{path}: NaN or infinity in {bad} of {values.size} voxels; mend or leave out the case"
        )
    return image, values


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, IsalError) as error:  # type: ignore[misc]  # isal declares its error wrongly
        raise DataError(f"{path}: truncated or damaged gzip ({_one_line(error)}); fetch it again") from None
    except Exception as error:  # nibabel and numpy raise whatever a damaged header leads them to
        raise DataError(f"{path}: truncated or damaged ({_one_line(error)}); fetch it again") from None


def _header(stream: Stream) -> nibabel.Nifti1Image | None:
    """Image without values from the start of a file, up to where they begin; None if it is no NIfTI file."""
    data = stream.read(nibabel.Nifti1Header.sizeof_hdr)
    # nibabel "repairs" what is no NIfTI header at all, so the magic number is looked at first.
    kinds = {b"n+1\0": nibabel.Nifti1Image, b"n+2\0": nibabel.Nifti2Image}
    kind = kinds.get(data[344:348]) or kinds.get(data[4:8])
    if kind is None:
        return None
    data += stream.read(kind.header_class.sizeof_hdr - len(data))
    offset = kind.header_class(data, check=False).get_data_offset()
    return kind.from_bytes(data + stream.read(max(0, offset - len(data))))


def _values(image: nibabel.Nifti1Image, stream: Stream, place: Place) -> np.ndarray:
    """What nibabel would make of the rest of the file; put where `place` says if that is nothing but its bytes."""
    stored: Any = image.dataobj
    raw = place(stored.shape, stored.dtype)
    memory = raw.reshape(-1, order="F").view(np.uint8).data  # as NIfTI has it, x fastest
    if (count := stream.readinto(memory)) != len(memory):
        raise ValueError(f"{count} of {len(memory)} bytes of its values are there")
    while stream.read(_PAGE):  # to the end, where the checksum is
        pass
    return apply_read_scaling(raw, np.float64(stored.slope), np.float64(stored.inter))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_lps(image: nibabel.Nifti1Image) -> np.ndarray:
    """nibabel orientation that takes the image's storage order to LPS. Oblique axes count as the nearest straight ones."""
    return _affine_to_lps(image.affine.astype(np.float64).tobytes())


@lru_cache(maxsize=64)
def _affine_to_lps(affine: bytes) -> np.ndarray:
    """A cohort has a handful of affines, and nibabel takes milliseconds for each, several times a volume."""
    orientation = ornt_transform(io_orientation(np.frombuffer(affine).reshape(4, 4)), _LPS)
    orientation.flags.writeable = False
    return orientation


def _canonical(array: np.ndarray, image: nibabel.Nifti1Image, path: Path, place: Place) -> Volume:
    """The volume in LPS order: as it is, or else copied to where `place` says."""
    turned = apply_orientation(array, _to_lps(image))
    # Memory in the order of the file (x fastest), which costs a plain copy at most; C order would be a transposition.
    if not turned.flags.f_contiguous:
        turned, source = place(turned.shape, turned.dtype), turned
        turned[...] = source
    return Volume(turned, image, path)


def _integers(values: np.ndarray, path: Path, round_values: bool) -> np.ndarray:
    """`values` as int16 where they fit, else int32."""
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
    memory: CaseMemory | None = None,
) -> CaseVolumes:
    """Read the given modalities of a case, and its labels if it has any and they are wanted, into `memory` if it is given.

    Raises DataError with everything that is wrong, a line each: a modality is missing, a file cannot be used, or its
    shape or affine differs from the others'.
    """
    modalities = case.modality_set.modalities if modalities is None else modalities
    reasons = [f"{case.folder}: no volume for {m}" for m in modalities if m not in case.files]
    volumes: dict[str, Volume] = {}
    memory = memory or CaseMemory()
    memory.begin(len(modalities))
    for name in [*modalities, *(["seg"] if segmentation else [])]:
        if name in case.files:
            with _noted(reasons):
                path = case.files[name]
                volumes[name] = (
                    read_labels(path, modality_set=case.modality_set)
                    if name == "seg"
                    else _read_volume(path, round_values, memory.place)
                )
                check_geometry(next(iter(volumes.values())), volumes[name])
    if reasons:
        raise DataError("\n".join(reasons))
    images = memory.joined([volumes[m].array for m in modalities])
    labels = volumes["seg"].array if "seg" in volumes else None
    stored_types = tuple(volumes[m].image.get_data_dtype() for m in modalities)
    return CaseVolumes(case, tuple(modalities), images, labels, volumes[modalities[0]], memory, stored_types)


@contextmanager
def _noted(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        reasons.append(str(error))


def check_geometry(reference: Volume, other: Volume) -> None:
    """Raise DataError unless both volumes have one shape and, within 0.001 mm, one affine."""
    if reference.array.shape != other.array.shape:
        raise DataError(
            f"{other.path}: shape {other.array.shape} differs from {reference.array.shape} of {reference.path.name}; "
            "resample it to the same grid"
        )
    difference = float(np.abs(reference.affine - other.affine).max())
    if not difference <= _AFFINE:
        raise DataError(
            f"{other.path}: affine differs by up to {difference:.4g} from that of {reference.path.name}; "
            "co-register the volumes, or correct the header"
        )


def write_like(
    path: Path | str, array_xyz: np.ndarray, reference: Volume, dtype: np.dtype | type | None = None
) -> None:
    """Write an LPS array in the storage order, affine, header and integer type (or `dtype`) of `reference`, atomically.

    Values are rounded and clipped to what the type holds. Raises DataError if the shapes differ.
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
    header["cal_max"] = header["cal_min"] = 0  # the display window of another volume
    back = ornt_transform(_LPS, io_orientation(source.affine))
    image = type(source)(apply_orientation(array_xyz.astype(kind), back), source.affine, header)
    for name in ("qform", "sform"):
        code = int(source.header[f"{name}_code"])
        getattr(image, f"set_{name}")(source.affine if code else None, code)
    with atomic_path(path) as temporary:
        data = image.to_bytes()
        temporary.write_bytes(compress(data) if path.name.lower().endswith(".gz") else data)


def compress(data: bytes) -> bytes:
    """gzip without a time stamp: the same volume gives the same bytes."""
    return igzip.compress(data, mtime=0)
