"""NIfTI volumes of BraTS in one canonical form: integers, axes (x, y, z) in LPS order.

    *.nii, *.nii.gz --> Volume (LPS integers + how the file had them) --> write_like --> *.nii.gz in the file's own form

BraTS stores nearly all volumes in LPS order; some cases come in RAS. Whatever the order, header type or scaling, the same
brain gives the same array. Negative values are kept: clamping them is part of normalisation (method, section 2).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from brasyn_dist.brats import MODALITIES, Case, canonical_labels
from brasyn_dist.errors import DataError
from brasyn_dist.files import atomic_path

_LPS = axcodes2ornt(("L", "P", "S"))
_WHOLE = 1e-3
"""Floating-point values this close to whole numbers are integers (headers with a scale factor make such)."""
_AFFINE = 1e-3
"""Affines of one case's modalities may differ by so many mm (headers store float32)."""


@dataclass(frozen=True, eq=False)
class Volume:
    """`array` (x, y, z) in LPS order with an integer type, and the `image` it was read from (for writing likewise)."""

    array: np.ndarray
    image: nibabel.Nifti1Image
    path: Path

    @property
    def affine(self) -> np.ndarray:
        """Affine of the canonical array: equal for the same brain in any storage order."""
        transform = ornt_transform(io_orientation(self.image.affine), _LPS)
        return self.image.affine @ inv_ornt_aff(transform, self.image.shape)


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """Volumes of one case: `images` (M, x, y, z) integers in the order of `modalities`, `labels` (x, y, z) uint8 or None."""

    case: Case
    modalities: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None
    reference: Volume
    """The first modality, for its geometry."""


def read_volume(path: Path | str, round_values: bool = False) -> Volume:
    """Read one volume. Raises DataError naming the file if it cannot be read, or holds NaN, infinity or fractions.

    `round_values` accepts fractions and rounds them.
    """
    path = Path(path)
    image = _load(path)
    if len(image.shape) != 3:
        raise DataError(f"{path}: has shape {image.shape}; expected a 3-D volume")
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged ({error}); fetch it again") from None
    array = _integers(values, path, round_values)
    orientation = ornt_transform(io_orientation(image.affine), _LPS)
    return Volume(np.ascontiguousarray(apply_orientation(array, orientation)), image, path)


def _load(path: Path) -> nibabel.Nifti1Image:
    """Parse header and, without decoding it, data. gunzip by igzip: 1.7 times as fast as zlib's on BraTS volumes."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = igzip.decompress(data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip ({error}); fetch it again") from None
    try:
        image = nibabel.Nifti1Image.from_bytes(data)
    except Exception as error:  # nibabel raises whatever its parsing meets
        raise DataError(f"{path}: not a NIfTI file ({error})") from None
    return image


def _integers(values: np.ndarray, path: Path, round_values: bool) -> np.ndarray:
    """`values` as int16 where they fit, else int32."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise DataError(f"{path}: {bad} voxels are NaN or infinite; mend or leave out the case")
        rounded = np.rint(values)
        if not round_values and np.abs(values - rounded).max(initial=0) > _WHOLE:
            raise DataError(
                f"{path}: intensities are not whole numbers (as BraTS stores them); to round them, give --round"
            )
        values = rounded
    elif values.dtype.kind not in "iub":
        raise DataError(f"{path}: values of type {values.dtype} are no intensities")
    low, high = values.min(initial=0), values.max(initial=0)
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    raise DataError(f"{path}: values from {low} to {high} do not fit 32-bit integers")


def read_case(
    case: Case,
    modalities: Sequence[str] = MODALITIES,
    segmentation: bool = True,
    round_values: bool = False,
) -> CaseVolumes:
    """Read the given modalities of a case, and its labels if it has any and they are wanted.

    Raises DataError if one is missing or their shapes or affines differ.
    """
    absent = [m for m in modalities if m not in case.files]
    if absent:
        raise DataError(f"{case.folder}: no volume for {', '.join(absent)}")
    volumes = [read_volume(case.files[m], round_values) for m in modalities]
    labels = None
    if segmentation and "seg" in case.files:
        read = read_volume(case.files["seg"])
        _check_geometry(volumes[0], read)
        labels = canonical_labels(read.array, read.path)
    for volume in volumes[1:]:
        _check_geometry(volumes[0], volume)
    images = np.stack([v.array for v in volumes])
    return CaseVolumes(case, tuple(modalities), images, labels, volumes[0])


def _check_geometry(reference: Volume, other: Volume) -> None:
    if reference.array.shape != other.array.shape:
        raise DataError(
            f"{other.path}: shape {other.array.shape} differs from {reference.array.shape} of {reference.path.name}"
        )
    if not np.allclose(reference.affine, other.affine, rtol=0, atol=_AFFINE):
        raise DataError(
            f"{other.path}: affine differs from that of {reference.path.name}: the volumes are not aligned; "
            f"co-register them, or correct the header:\n{other.affine}\n{reference.affine}"
        )


def write_like(
    path: Path | str, array_xyz: np.ndarray, reference: Volume, dtype: np.dtype | type | None = None
) -> None:
    """Write an LPS array in the storage order, affine, header and integer type (or `dtype`) of `reference`, atomically.

    Values are rounded and clipped to what the type holds.
    """
    kind = np.dtype(dtype or reference.image.get_data_dtype())
    if array_xyz.shape != reference.array.shape:
        raise DataError(
            f"{path}: shape {array_xyz.shape} differs from {reference.array.shape} of {reference.path}"
        )
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        array_xyz = np.clip(np.rint(array_xyz), limits.min, limits.max)
    back = ornt_transform(_LPS, io_orientation(reference.image.affine))
    header = reference.image.header.copy()
    header.set_data_dtype(kind)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    image = nibabel.Nifti1Image(
        apply_orientation(array_xyz.astype(kind), back), reference.image.affine, header
    )
    for name in ("qform", "sform"):
        code = int(reference.image.header[f"{name}_code"])
        getattr(image, f"set_{name}")(reference.image.affine if code else None, code)
    path = Path(path)
    with atomic_path(path) as temporary:
        data = image.to_bytes()
        temporary.write_bytes(compress(data) if path.name.endswith(".gz") else data)


def compress(data: bytes) -> bytes:
    """gzip without a time stamp: the same volume gives the same bytes."""
    return igzip.compress(data, mtime=0)
