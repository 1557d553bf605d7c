"""Slices against loops that spell out where each voxel belongs."""

import numpy as np
import pytest

from brasyn_dist.brats import VIEW_AXES, VIEWS
from brasyn_dist.preprocessing.slicing import (
    extract_slices,
    foreground_pixels,
    kept_slices,
    margins,
    pad_or_crop,
)

SHAPE = (5, 6, 7)
VOLUMES = np.random.default_rng(0).integers(-40, 60, (4, *SHAPE)).astype(np.int16)


def voxel(view: str, k: int, row: int, column: int) -> tuple[int, int, int]:
    """Where pixel (row, column) of slice k lies in the volume (x, y, z)."""
    return {"axial": (row, column, k), "sagittal": (k, row, column), "coronal": (row, k, column)}[view]


@pytest.mark.parametrize(
    "view, count, height, width", [("axial", 7, 5, 6), ("sagittal", 5, 6, 7), ("coronal", 6, 5, 7)]
)
def test_every_pixel_is_where_its_view_says(view, count, height, width):
    slices = extract_slices(VOLUMES, view)
    assert slices.shape == (count, 4, height, width)
    for k, m, row, column in np.ndindex(slices.shape):
        assert slices[k, m, row, column] == VOLUMES[(m, *voxel(view, k, row, column))]


def test_padding_is_centred_with_the_odd_pixel_after():
    assert margins(155, 240) == (42, 43)
    assert margins(240, 240) == (0, 0)
    slices = np.arange(1, 2 * 240 * 155 + 1).reshape(2, 240, 155)
    padded = pad_or_crop(slices, (240, 240))
    assert padded.shape == (2, 240, 240)
    np.testing.assert_array_equal(padded[:, :, 42:197], slices)
    assert not padded[:, :, :42].any() and not padded[:, :, 197:].any()
    np.testing.assert_array_equal(pad_or_crop(padded, (240, 155)), slices)


def test_what_does_not_fit_is_cut_around_the_middle():
    slices = np.arange(1, 2 * 240 * 155 + 1).reshape(2, 240, 155)
    cut = pad_or_crop(slices, (208, 160))
    assert cut.shape == (2, 208, 160)
    np.testing.assert_array_equal(cut[:, :, 2:157], slices[:, 16:224])
    assert not cut[:, :, :2].any() and not cut[:, :, 157:].any()
    np.testing.assert_array_equal(pad_or_crop(slices, (240, 144)), slices[:, :, 5:149])
    # Back in their place, and 0 where they were cut.
    back = pad_or_crop(cut, (240, 155))
    np.testing.assert_array_equal(back[:, 16:224], slices[:, 16:224])
    assert not back[:, :16].any() and not back[:, 224:].any()


@pytest.mark.parametrize("view", VIEWS)
def test_a_slice_is_kept_if_every_modality_has_enough_foreground(view):
    volumes = VOLUMES.copy()
    volumes[2, 1:3] = 0  # one modality ends early
    counts = [
        min(int((volumes[m] > 0)[np.s_[:, :, k] if view == "axial" else np.s_[k] if view == "sagittal" else np.s_[:, k]].sum())
            for m in range(4))
        for k in range(SHAPE[VIEW_AXES[view]])
    ]  # fmt: skip
    np.testing.assert_array_equal(foreground_pixels(volumes > 0, view), counts)
    for minimum in {0, min(counts), sorted(counts)[2], max(counts), max(counts) + 1}:
        expected = [k for k, count in enumerate(counts) if count >= minimum]
        assert kept_slices(volumes > 0, view, minimum).tolist() == expected


@pytest.mark.parametrize("view", VIEWS)
def test_long_slices_are_counted_too(view):
    foreground = np.random.default_rng(0).random((4, 300, 290, 280)) < 0.99
    axis = VIEW_AXES[view] + 1
    expected = np.moveaxis(foreground, axis, 1).reshape(4, foreground.shape[axis], -1).sum(2).min(0)
    np.testing.assert_array_equal(foreground_pixels(foreground, view), expected)


def test_two_thousand_pixels_are_enough_and_one_less_is_not():
    volumes = np.zeros((4, 100, 100, 2), np.int16)
    volumes.reshape(4, -1, 2)[:, :2000] = 1
    volumes[3, 0, 0, 1] = -5  # not foreground: 1,999 are left
    assert kept_slices(volumes > 0, "axial").tolist() == [0]
