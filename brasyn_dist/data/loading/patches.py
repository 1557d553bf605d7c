"""Patches: three-dimensional parts of cases, from sets that store chunks (`brasyn shard --chunks 32`).

    select_chunks(index, "train", cohorts, quarantine) --> ChunkSelection: cases 0 .. n - 1
    PatchOrder(config, seed, chunks, G).draw(k)        --> case and random words of each row of global batch k
    PatchStream(chunks, order, rows, start, stop)      --> PatchBatch k, k + 1, ...

Case, kind of the centre (tumour or brain) and the number of the centre among the voxels of its kind are pure
functions of (seed, k, position in the batch). The index has the number of such voxels in each chunk, so that
all of them are equally likely, and only the chunks that a patch touches are read.

    chunks = select_chunks(index, "train")
    order = PatchOrder(config.patches, config.order.seed, chunks, global_batch_size)
    with PatchStream(chunks, order, rows, start, stop, threads=2, prefetch=4) as stream:
        for batch in stream: ...

`chunks.shapes` (n, 3) are the sizes of the volumes, `chunks.case(i)` is the CaseEntry, `chunks.stage1` says
whether the set has stage-1 volumes. An epoch is one patch of each case: `order.epoch(k)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.config import PatchConfig
from brasyn_dist.data.format.chunks import ChunkSelection
from brasyn_dist.data.loading.augmentation import unit
from brasyn_dist.data.loading.reader import SampleReader
from brasyn_dist.data.loading.sampler import Purpose, SampleOrder, below, random_words
from brasyn_dist.data.loading.stream import BatchStream, HostMemory
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.chunking import chunks_in, corner_around


@dataclass(frozen=True)
class PatchBatch:
    """Part of a rank (b rows) of global batch `index`, on the host."""

    index: int
    """Number of the global batch; -1: not part of one."""
    rows: slice
    """Rows of the global batch."""
    volumes: Tensor
    """(b, M, X, Y, Z) int16 or int32: intensities in modality order, 0 outside the volume."""
    stage1: Tensor | None
    """Like `volumes`: each modality as a stage-1 network synthesised it; None: the set has none."""
    labels: Tensor
    """(b, X, Y, Z) uint8: canonical labels, 0 without a segmentation."""
    has_labels: Tensor
    """(b,) bool: the case has a segmentation."""
    tumour_type: Tensor
    """(b,) int64: index into brats.TUMOUR_TYPES, or UNKNOWN_TYPE."""
    medians: Tensor
    """(b, M) float32: median of the foreground of the volumes of the case."""
    stage1_medians: Tensor
    """(b, M) float32: the same of its stage-1 volumes; 1 without them."""
    cases: Tensor
    """(b,) int64: number of the case in the ChunkSelection."""
    corners: Tensor
    """(b, 3) int64: voxel of the case's volume at which the patch begins; may be negative."""
    keys: list[str]
    """`<case>/<x>,<y>,<z>`: case and corner."""

    def __len__(self) -> int:
        return len(self.keys)


class PatchMemory(HostMemory):
    """Allocates batches of patches.

    Args:
        size: (X, Y, Z) of a patch.
        dtype: Type of the intensities.
        modalities: M.
        stage1: With stage-1 volumes.
        pin_memory: Pinned memory, if CUDA is available.
    """

    def __init__(
        self, size: Sequence[int], dtype: str, modalities: int, stage1: bool = False, pin_memory: bool = False
    ) -> None:
        super().__init__(pin_memory)
        self._size, self._dtype, self._modalities, self._stage1 = tuple(size), dtype, modalities, stage1

    @classmethod
    def of(cls, chunks: ChunkSelection, size: Sequence[int], pin_memory: bool = False) -> "PatchMemory":
        """Memory for patches of these cases."""
        header = chunks.header
        return cls(size, header.dtype, len(header.modality_set), chunks.stage1, pin_memory)

    def batch(self, index: int, rows: slice) -> PatchBatch:
        """An empty batch of rows.stop - rows.start patches."""
        count, modalities = rows.stop - rows.start, self._modalities
        volumes = (count, modalities, *self._size)
        return PatchBatch(
            index,
            rows,
            self.large(volumes, self._dtype),
            self.large(volumes, self._dtype) if self._stage1 else None,
            self.large((count, *self._size), "uint8"),
            self.small((count,), torch.bool),
            self.small((count,), torch.int64),
            self.small((count, modalities), torch.float32),
            self.small((count, modalities), torch.float32),
            self.small((count,), torch.int64),
            self.small((count, 3), torch.int64),
            [""] * count,
        )


class PatchOrder:
    """Order of the patches.

    Args:
        config: Size of a patch, share of patches around tumours.
        seed: Seed of the run.
        chunks: Cases.
        global_batch_size: G.
        block_shards: As for SampleOrder.
    """

    def __init__(
        self,
        config: PatchConfig,
        seed: int,
        chunks: ChunkSelection,
        global_batch_size: int,
        block_shards: int | None = None,
    ) -> None:
        self.config = config
        self._seed = seed
        self._cases = SampleOrder(seed, chunks.shard, global_batch_size, block_shards)

    @property
    def samples(self) -> int:
        """Patches of an epoch: one of each case."""
        return self._cases.samples

    def epoch(self, k: int) -> float:
        """Epochs that are complete when batch k starts."""
        return self._cases.epoch(k)

    def draw(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row of global batch k: (G,) case, (G,) bool around a tumour, (G,) uint64 random word."""
        cases = self._cases.batch(k)
        words = random_words(self._seed, Purpose.PATCHES, len(cases), k)
        return cases, unit(words[:, 0]) < self.config.tumour_share, words[:, 1]


class PatchReader:
    """Reads patches of cases, in any number of threads."""

    def __init__(self, chunks: ChunkSelection) -> None:
        self.samples = SampleReader(chunks.selection)
        self._chunks = chunks
        self._modalities = len(chunks.header.modality_set)

    def read_around(self, batch: PatchBatch, row: int, case: int, tumour: bool, word: np.ndarray) -> None:
        """Read the patch whose centre is a voxel of the tumour or brain of a case into a row of a batch.

        Args:
            batch: Filled in row `row`.
            row: Row of the batch.
            case: Number of the case.
            tumour: Centre in the tumour; in the brain if the case has none.
            word: Random word that selects the voxel.
        """
        chunks = self._chunks
        numbers, sums = chunks.voxels(case, tumour)
        if tumour and not sums[-1]:
            tumour = False
            numbers, sums = chunks.voxels(case, tumour)
        voxel = int(below(word, sums[-1]))
        position = int(np.searchsorted(sums, voxel, side="right"))
        number = int(numbers[position])
        planes = self._read(case, number, chunks.chunks(case))
        if tumour:
            labels = planes[-1]
            chosen = (labels > 0) & (labels <= chunks.header.modality_set.highest_label)
        else:
            chosen = (planes[: self._modalities] > 0).any(0)
        before = int(sums[position - 1]) if position else 0
        inside = np.unravel_index(np.flatnonzero(chosen)[voxel - before], chosen.shape)
        centre = [span.start + int(i) for span, i in zip(chunks.box(case, number), inside)]
        corner = corner_around(centre, batch.labels.shape[1:], chunks.shapes[case].tolist())
        self.read_into(batch, row, case, corner, (number, planes))

    def read_into(
        self,
        batch: PatchBatch,
        row: int,
        case: int,
        corner: Sequence[int],
        known: tuple[int, np.ndarray] | None = None,
    ) -> None:
        """Read one patch into a row of a batch.

        Args:
            batch: Filled in row `row`.
            row: Row of the batch.
            case: Number of the case.
            corner: First voxel; the patch may lie beyond the volume.
            known: Number and planes of a chunk that was read last.
        """
        chunks, entry = self._chunks, self._chunks.case(case)
        targets = [batch.volumes[row].numpy()]
        if batch.stage1 is not None:
            targets.append(batch.stage1[row].numpy())
        labels = batch.labels[row].numpy()
        for target in (*targets, labels):
            target[...] = 0
        touched = chunks_in(corner, labels.shape, chunks.shapes[case].tolist(), chunks.side)
        samples = chunks.chunks(case)
        known_first = sorted(touched, key=lambda one: known is None or one[0] != known[0])
        for number, chunk_box, target_box in known_first:
            if samples[number] < 0:
                continue
            planes = known[1] if known and known[0] == number else self._read(case, number, samples)
            for part, target in enumerate(targets):
                begin = part * self._modalities
                target[:, *target_box] = planes[begin : begin + self._modalities, *chunk_box]
            if entry.segmentation:
                labels[target_box] = planes[-1][chunk_box]
        batch.has_labels[row] = entry.segmentation
        batch.tumour_type[row] = int(chunks.tumour_type[case])
        batch.medians[row] = torch.from_numpy(chunks.medians[case])
        batch.stage1_medians[row] = torch.tensor(entry.stage1_medians or 1.0)
        batch.cases[row] = case
        batch.corners[row] = torch.tensor(corner)
        batch.keys[row] = f"{entry.name}/{','.join(map(str, corner))}"

    def _read(self, case: int, number: int, samples: np.ndarray) -> np.ndarray:
        return self.samples.read(int(samples[number]), self._chunks.sample_shape(case, number))


class PatchStream(BatchStream[PatchBatch]):
    """Stream of patches, see BatchStream.

    Args:
        chunks: Cases.
        order: Order of the patches.
        rows: Rows of the global batch.
        start: First global batch.
        stop: End of the global batches.
        threads: Reader threads.
        prefetch: Batches that are read ahead.
        pin_memory: Allocate pinned memory, if CUDA is available.
    """

    def __init__(
        self,
        chunks: ChunkSelection,
        order: PatchOrder,
        rows: slice,
        start: int,
        stop: int,
        *,
        threads: int = 2,
        prefetch: int = 4,
        pin_memory: bool = False,
    ) -> None:
        if order.samples != len(chunks):
            raise DataError(f"order of {order.samples} cases does not fit a selection of {len(chunks)}")
        self._patches = PatchReader(chunks)
        super().__init__(self._patches.samples, start, stop, threads, prefetch)
        self._order = order
        self._rows = rows
        self._memory = PatchMemory.of(chunks, order.config.size, pin_memory)

    def _allocate(self, k: int) -> PatchBatch:
        return self._memory.batch(k, self._rows)

    def _fill(self, batch: PatchBatch, rows: range) -> None:
        cases, tumour, words = (values[batch.rows] for values in self._order.draw(batch.index))
        for row in rows:
            self._patches.read_around(batch, row, int(cases[row]), bool(tumour[row]), words[row])
