"""Volumes to slices. Only this module defines how a slice lies in its volume.

A volume is (x, y, z) in LPS order. Slices keep the order of the remaining axes:

    axial     slice k = volume[:, :, k]   (x, y)   240 x 240
    sagittal  slice k = volume[k, :, :]   (y, z)   240 x 155
    coronal   slice k = volume[:, k, :]   (x, z)   240 x 155

For the networks they are centred and padded with background to a square, the odd pixel after (155 -> 240: 42
before, 43 after; docs/explanation/method.md, section 2). A slice that is larger than the network's input is
cropped around its centre.
"""

from collections.abc import Sequence

import numpy as np

from brasyn_dist.brats import VIEW_AXES

MINIMUM_FOREGROUND = 2000
"""Foreground pixels that each modality of a training slice must have (docs/explanation/method.md, section
2)."""


def extract_slices(volumes: np.ndarray, view: str) -> np.ndarray:
    """(..., x, y, z) to (slices, ..., H, W), as a view without a copy."""
    return np.moveaxis(volumes, VIEW_AXES[view] - 3, 0)


def foreground_pixels(foreground_MXYZ: np.ndarray, view: str) -> np.ndarray:
    """(slices,) int: for each slice, the smallest number of True pixels over the modalities."""
    near, far = (axis for axis in (1, 2, 3) if axis != VIEW_AXES[view] + 1)
    # Along y or z first, in the smallest type: this adds contiguous rows of x.
    rows = foreground_MXYZ.sum(far, dtype=np.min_scalar_type(foreground_MXYZ.shape[far]), keepdims=True)
    return rows.sum((near, far), dtype=np.int64).min(0)


def kept_slices(foreground_MXYZ: np.ndarray, view: str, minimum: int = MINIMUM_FOREGROUND) -> np.ndarray:
    """Indices of the slices in which every modality has at least `minimum` foreground pixels."""
    return np.flatnonzero(foreground_pixels(foreground_MXYZ, view) >= minimum)


def margins(length: int, size: int) -> tuple[int, int]:
    """Pixels before and after `length` pixels that are centred in `size`; negative if pixels are cropped."""
    before = -((length - size) // 2) if length > size else (size - length) // 2
    return before, size - length - before


def pad_or_crop_into(source: np.ndarray, target: np.ndarray, shift: Sequence[int] = (0, 0)) -> None:
    """Copy (..., h, w) to the centre of (..., H, W), padded with 0 and cropped.

    `shift` moves the target's window by this number of source pixels (rows, columns).
    """
    if source.shape[-2:] == target.shape[-2:] and not any(shift):
        target[...] = source
        return
    spans = [shared_span(n, s, d) for n, s, d in zip(source.shape[-2:], target.shape[-2:], shift)]
    (source_rows, target_rows), (source_columns, target_columns) = spans
    target[...] = 0
    target[..., target_rows, target_columns] = source[..., source_rows, source_columns]


def pad_or_crop(slices: np.ndarray, shape_HW: tuple[int, int]) -> np.ndarray:
    """(..., h, w) to (..., H, W), see `pad_or_crop_into`. Its own inverse where nothing was cropped."""
    target = np.empty((*slices.shape[:-2], *shape_HW), slices.dtype)
    pad_or_crop_into(slices, target)
    return target


def shared_span(length: int, size: int, shift: int = 0) -> tuple[slice, slice]:
    """The pixels that `length` pixels and a window of `size` pixels have in common, as a slice of each.

    The window is centred and then moved by `shift` pixels.
    """
    first = shift - margins(length, size)[0]
    start, stop = max(0, first), max(0, first, min(length, first + size))
    return slice(start, stop), slice(start - first, stop - first)
