"""Volumes to chunks and back. Only this module defines how a chunk lies in its volume.

The grid of a volume begins at voxel (0, 0, 0). A chunk is a cube; at the upper ends of the volume it is cut
off. Chunks are numbered with z fastest: chunk (i, j, k) of a grid (I, J, K) has number (i J + j) K + k.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from brasyn_dist.preprocessing.slicing import margins

SMALLEST, LARGEST = 8, 128
"""Sides of chunks that are supported."""


def grid_of(shape: Sequence[int], side: int) -> tuple[int, ...]:
    """(I, J, K): chunks along each axis of a volume (x, y, z)."""
    return tuple(-(-length // side) for length in shape)


def chunk_box(number: int, shape: Sequence[int], side: int) -> tuple[slice, ...]:
    """Voxels of a chunk of a volume (x, y, z), for each axis."""
    begins = [int(cell) * side for cell in np.unravel_index(number, grid_of(shape, side))]
    return tuple(slice(begin, min(begin + side, length)) for begin, length in zip(begins, shape))


def chunks_in(
    corner: Sequence[int], size: Sequence[int], shape: Sequence[int], side: int
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """The chunks that a patch of `size` voxels at voxel `corner` touches, which may lie outside the volume.

    Yields:
        Number of the chunk, the voxels that both have in common as slices of the chunk, and as slices of the
        patch.
    """
    grid, spans = grid_of(shape, side), []
    for first, extent, length in zip(corner, size, shape):
        stop, of_axis = min(first + extent, length), []
        for cell in range(max(first, 0) // side, -(-stop // side)):
            begin, end = max(cell * side, first), min((cell + 1) * side, stop)
            inside = slice(begin - cell * side, end - cell * side)
            of_axis.append((cell, inside, slice(begin - first, end - first)))
        spans.append(of_axis)
    for (i, *x), (j, *y), (k, *z) in product(*spans):
        yield (i * grid[1] + j) * grid[2] + k, (x[0], y[0], z[0]), (x[1], y[1], z[1])


def corner_around(centre: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """First voxel of the patch around a voxel, moved into the volume; centred on a smaller volume."""
    return tuple(
        min(max(middle - extent // 2, 0), length - extent)
        if extent <= length
        else -margins(length, extent)[0]
        for middle, extent, length in zip(centre, size, shape)
    )
