"""Volumes to slices and back: the only place that knows how a slice lies in its volume.

A volume is (x, y, z) in LPS order. Slices keep the order of the remaining axes:

    axial     slice k = volume[:, :, k]   (x, y)   240 x 240
    sagittal  slice k = volume[k, :, :]   (y, z)   240 x 155
    coronal   slice k = volume[:, k, :]   (x, z)   240 x 155

For the networks they are padded to a square with background, centred, the odd pixel after (155 -> 240: 42 before, 43 after;
method, section 2).
"""

from collections.abc import Sequence

import numpy as np

from brasyn_dist.brats import VIEW_AXES
from brasyn_dist.errors import DataError

MINIMUM_FOREGROUND = 2000
"""Foreground pixels that each modality of a slice must have for it to be trained on (method, section 2)."""


def slice_count(shape_xyz: Sequence[int], view: str) -> int:
    return shape_xyz[VIEW_AXES[view]]


def extract_slices(volumes: np.ndarray, view: str) -> np.ndarray:
    """(..., x, y, z) to (slices, ..., H, W); a view into `volumes`, nothing is copied."""
    return np.moveaxis(volumes, VIEW_AXES[view] - 3, 0)


def stack_slices(slices_KHW: np.ndarray, view: str) -> np.ndarray:
    """Inverse of `extract_slices` for one volume: (slices, H, W) to (x, y, z)."""
    return np.moveaxis(slices_KHW, 0, VIEW_AXES[view])


def foreground_pixels(images_MXYZ: np.ndarray, view: str) -> np.ndarray:
    """(slices,) int: foreground pixels (value > 0) of the modality that has fewest, for each slice."""
    others = tuple(a for a in (1, 2, 3) if a != VIEW_AXES[view] + 1)
    return np.count_nonzero(images_MXYZ > 0, axis=others).min(0)


def kept_slices(images_MXYZ: np.ndarray, view: str, minimum: int = MINIMUM_FOREGROUND) -> np.ndarray:
    """Indices of the slices in which every modality has at least `minimum` foreground pixels."""
    return np.flatnonzero(foreground_pixels(images_MXYZ, view) >= minimum)


def margins(length: int, size: int) -> tuple[int, int]:
    """Background before and after `length` pixels that are centred in `size`."""
    if length > size:
        raise DataError(
            f"a slice of {length} pixels does not fit into {size}; larger volumes are not supported"
        )
    before = (size - length) // 2
    return before, size - length - before


def pad_to_square(slices: np.ndarray, size: int, value: float = 0) -> np.ndarray:
    """(..., H, W) to (..., size, size), centred."""
    none = [(0, 0)] * (slices.ndim - 2)
    return np.pad(slices, [*none, *(margins(n, size) for n in slices.shape[-2:])], constant_values=value)


def crop_from_square(slices: np.ndarray, shape_HW: tuple[int, int]) -> np.ndarray:
    """Inverse of `pad_to_square`: (..., size, size) to (..., H, W)."""
    rows, columns = (
        slice(before, before + n)
        for n, before in ((n, margins(n, s)[0]) for n, s in zip(shape_HW, slices.shape[-2:]))
    )
    return slices[..., rows, columns]
