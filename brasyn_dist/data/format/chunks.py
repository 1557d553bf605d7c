"""Chunks of a shard set by case: which sample holds which part of a volume.

ShardIndex --select_chunks(split, ...)--> ChunkSelection: cases 0 .. n - 1, each with a grid of chunks
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from brasyn_dist.data.format.index import Selection, ShardIndex
from brasyn_dist.data.format.metadata import CHUNK, CaseEntry
from brasyn_dist.preprocessing.chunking import chunk_box, grid_of


def select_chunks(
    index: ShardIndex, split: str, cohorts: Sequence[str] = (), quarantine: Sequence[str] = ()
) -> "ChunkSelection":
    """Cases of a split with their chunks.

    Args:
        index: A set with chunks.
        split: `train` or `val`.
        cohorts: Empty: all.
        quarantine: Keys of damaged samples; the cases of chunks among them are left out.

    Raises:
        DataError: The set has no chunks, a name is not in it, or no case is left.
    """
    return ChunkSelection(index.select(split, (CHUNK,), cohorts, quarantine))


class ChunkSelection:
    """Cases 0 to len - 1 of a set with chunks, in the order of the case table.

    Args:
        selection: All chunks of these cases.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.header = selection.index.header
        assert self.header.chunk is not None
        self.side = self.header.chunk
        self._numbers, case = np.unique(selection.column("case"), return_inverse=True)
        self.shapes = np.array([self.case(i).shape for i in range(len(self._numbers))], dtype=np.int64)
        """(n, 3): size of the volumes of each case."""
        order = np.lexsort((selection.column("index"), case))
        bounds = np.searchsorted(case[order], np.arange(len(self._numbers) + 1))
        self._samples = [order[a:b] for a, b in pairwise(bounds)]
        self.shard = selection.shard[order[bounds[:-1]]]
        """(n,) number of the shard of each case, for SampleOrder."""

    def __len__(self) -> int:
        return len(self._numbers)

    def case(self, number: int) -> CaseEntry:
        """Entry of a case in the case table."""
        return self.header.cases[self._numbers[number]]

    @property
    def stage1(self) -> bool:
        """Whether the chunks have stage-1 volumes."""
        return self.header.stage1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the fingerprint of the set and the chosen samples."""
        return self.selection.fingerprint

    @functools.cached_property
    def tumour_type(self) -> np.ndarray:
        """(n,) int64: see `Selection.tumour_type`."""
        return self.selection.tumour_type[[samples[0] for samples in self._samples]]

    @functools.cached_property
    def medians(self) -> np.ndarray:
        """(n, M) float32: median of the foreground of each volume."""
        medians = self.selection.medians
        assert medians is not None  # older than chunks
        return medians[self._numbers]

    def chunks(self, case: int) -> np.ndarray:
        """(grid,) int64: sample of each chunk of a case, -1 for those that are background everywhere."""
        samples = self._samples[case]
        grid = np.full(math.prod(grid_of(self.shapes[case], self.side)), -1)
        grid[self.selection.column("index", samples)] = samples
        return grid

    def box(self, case: int, number: int) -> tuple[slice, ...]:
        """Voxels of a chunk of a case, for each axis."""
        return chunk_box(number, self.shapes[case].tolist(), self.side)

    def sample_shape(self, case: int, number: int) -> tuple[int, ...]:
        """(P, X, Y, Z) of a chunk of a case."""
        planes = self.header.planes(int(self._numbers[case]), CHUNK)
        return (planes, *(span.stop - span.start for span in self.box(case, number)))

    def voxels(self, case: int, tumour: bool) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of the tumour or brain: number of each stored chunk of a case, and the sums up to each."""
        samples = self._samples[case]
        counts = self.selection.column("tumour_pixels" if tumour else "brain", samples)
        return self.selection.column("index", samples), np.cumsum(counts)
