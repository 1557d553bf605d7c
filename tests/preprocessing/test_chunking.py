"""Grid of chunks: every voxel of a volume is in one chunk, and a patch finds all of its voxels."""

import math

import numpy as np
import pytest

from brasyn_dist.preprocessing.chunking import chunk_box, chunks_in, corner_around, grid_of

SHAPE = (19, 8, 26)


def test_every_voxel_is_in_one_chunk() -> None:
    seen = np.zeros(SHAPE, int)
    for number in range(math.prod(grid_of(SHAPE, 8))):
        box = chunk_box(number, SHAPE, 8)
        assert all(0 < span.stop - span.start <= 8 for span in box)
        seen[box] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("corner", [(0, 0, 0), (5, 3, 7), (-4, -9, 20), (17, 2, 25), (30, 0, 0), (-40, 0, 0)])
@pytest.mark.parametrize("size", [(1, 1, 1), (8, 8, 8), (13, 5, 9), (40, 40, 70)])
def test_a_patch_is_put_together_from_its_chunks(corner: tuple[int, ...], size: tuple[int, ...]) -> None:
    volume = np.arange(1, 1 + math.prod(SHAPE)).reshape(SHAPE)
    patch = np.zeros(size, int)
    for number, source, place in chunks_in(corner, size, SHAPE, 8):
        assert not patch[place].any()
        patch[place] = volume[chunk_box(number, SHAPE, 8)][source]
        assert patch[place].size > 0
    padded = np.pad(volume, 80)
    expected = padded[tuple(slice(c + 80, c + 80 + n) for c, n in zip(corner, size))]
    np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize(
    ("centre", "corner"), [((9, 4, 13), (5, 0, 9)), ((0, 0, 0), (0, 0, 0)), ((18, 7, 25), (11, 0, 18))]
)
def test_patches_are_moved_into_the_volume(centre: tuple[int, ...], corner: tuple[int, ...]) -> None:
    assert corner_around(centre, (8, 8, 8), SHAPE) == corner


def test_a_larger_patch_has_the_volume_in_its_middle() -> None:
    assert corner_around((3, 3, 3), (25, 9, 26), SHAPE) == (-3, 0, 0)
