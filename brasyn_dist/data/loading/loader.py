"""Loader: global batches of slices in order, read ahead by threads (stream.py).

    order.batch(k)[rows] --> SampleReader in threads, each a part of the batch --> SliceBatch k --> trainer

Batches hold the stored integers; the device casts, masks and normalises them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.brats import BRATS, IMAGE_SIZE, ImageSize, image_shape
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.loading.reader import SampleReader
from brasyn_dist.data.loading.sampler import SampleOrder
from brasyn_dist.data.loading.stream import BatchStream, HostMemory
from brasyn_dist.errors import DataError


@dataclass(frozen=True)
class SliceBatch:
    """Part of a rank (b rows) of global batch `index`, on the host."""

    index: int
    """Number of the global batch; -1: not part of one."""
    rows: slice
    """Rows of the global batch."""
    planes: Tensor
    """(b, M, H, W) int16 or int32: intensities in modality order; small slices are padded with 0, large ones
    cropped."""
    labels: Tensor
    """(b, H, W) uint8: canonical labels, 0 without a segmentation."""
    has_labels: Tensor
    """(b,) bool: the case has a segmentation."""
    view: Tensor
    """(b,) int64: 0 axial, 1 sagittal, 2 coronal."""
    tumour_type: Tensor
    """(b,) int64: index into brats.TUMOUR_TYPES, or UNKNOWN_TYPE."""
    medians: Tensor
    """(b, M) float32: median of the foreground of the volumes of the case; 1 in sets of earlier versions."""
    keys: list[str]
    """Sample keys."""
    context: Tensor
    """(b, N, M, H, W) of the type of `planes`: the N neighbouring slices, in the order of their position. N
    is twice the context of the generator, 0 by default."""

    def __len__(self) -> int:
        return len(self.keys)

    def fill(
        self,
        reader: SampleReader,
        selection: Selection,
        samples: np.ndarray,
        rows: range,
        shifts: np.ndarray | None = None,
    ) -> None:
        """Read `samples[rows]`, of (b,) sample numbers, into the same rows of this batch.

        `shifts` (b, 2) are rows and columns by which the window of each slice lies off its middle.
        """
        planes, labels, has_labels = self.planes.numpy(), self.labels.numpy(), self.has_labels.numpy()
        context, scratch = self.context.numpy(), np.empty_like(labels[0])
        taken = samples[rows.start : rows.stop]
        self.view.numpy()[rows.start : rows.stop] = selection.column("view", taken)
        self.tumour_type.numpy()[rows.start : rows.stop] = selection.tumour_type[taken]
        if selection.medians is not None:
            self.medians.numpy()[rows.start : rows.stop] = selection.medians[selection.column("case", taken)]
        for row in rows:
            sample = int(samples[row])
            shift = (0, 0) if shifts is None else shifts[row]
            has_labels[row] = reader.read_into(sample, planes[row], labels[row], shift)
            for number, neighbour in enumerate(selection.neighbours(sample, len(context[row]) // 2)):
                reader.read_into(neighbour, context[row, number], scratch, shift)
            self.keys[row] = selection.key(sample)


class BatchMemory(HostMemory):
    """Allocates batches of slices."""

    def __init__(
        self,
        image_size: ImageSize,
        dtype: str,
        modalities: int = len(BRATS),
        pin_memory: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__(pin_memory)
        self._modalities, self._neighbours = modalities, 2 * context
        self._shape_HW = image_shape(image_size)
        self._dtype = dtype

    def batch(self, index: int, rows: slice) -> SliceBatch:
        """An empty batch of rows.stop - rows.start samples."""
        count, shape_HW = rows.stop - rows.start, self._shape_HW
        return SliceBatch(
            index,
            rows,
            self.large((count, self._modalities, *shape_HW), self._dtype),
            self.small((count, *shape_HW), torch.uint8),
            self.small((count,), torch.bool),
            self.small((count,), torch.int64),
            self.small((count,), torch.int64),
            self.small((count, self._modalities), torch.float32).fill_(1),
            [""] * count,
            self.large((count, self._neighbours, self._modalities, *shape_HW), self._dtype),
        )


class SliceStream(BatchStream[SliceBatch]):
    """Stream of slices, see BatchStream.

    Args:
        selection: Samples.
        order: Order of the samples.
        rows: Rows of the global batch.
        start: First global batch.
        stop: End of the global batches.
        threads: Reader threads.
        prefetch: Batches that are read ahead.
        pin_memory: Allocate pinned memory, if CUDA is available.
        image_size: Size of the slices in a batch.
        shifts: (global batch number) -> (G, 2) rows and columns by which the window of each slice of the
            global batch lies off its middle; None: not at all.
        context: Neighbouring slices on each side that are read, too.
    """

    def __init__(
        self,
        selection: Selection,
        order: SampleOrder,
        rows: slice,
        start: int,
        stop: int,
        *,
        threads: int = 2,
        prefetch: int = 4,
        pin_memory: bool = False,
        image_size: ImageSize = IMAGE_SIZE,
        shifts: Callable[[int], np.ndarray] | None = None,
        context: int = 0,
    ) -> None:
        if order.samples != len(selection):
            raise DataError(f"order of {order.samples} samples does not fit a selection of {len(selection)}")
        super().__init__(SampleReader(selection), start, stop, threads, prefetch)
        self._selection = selection
        self._order = order
        self._rows = rows
        header = selection.index.header
        self._memory = BatchMemory(image_size, header.dtype, len(header.modality_set), pin_memory, context)
        self._shifts = shifts

    def _allocate(self, k: int) -> SliceBatch:
        return self._memory.batch(k, self._rows)

    def _fill(self, batch: SliceBatch, rows: range) -> None:
        # Computed in this thread, so that the consumer does not wait for the permutation of an epoch.
        samples = self._order.batch(batch.index)[batch.rows]
        shifts = None if self._shifts is None else self._shifts(batch.index)[batch.rows]
        batch.fill(self._reader, self._selection, samples, rows, shifts)


def read_samples(
    selection: Selection, samples: Sequence[int], image_size: ImageSize = IMAGE_SIZE, context: int = 0
) -> SliceBatch:
    """Read the given samples once, in the calling thread, for validation and panels."""
    numbers = np.asarray(samples, dtype=np.int64)
    header = selection.index.header
    memory = BatchMemory(image_size, header.dtype, len(header.modality_set), context=context)
    batch = memory.batch(-1, slice(0, len(numbers)))
    reader = SampleReader(selection)
    try:
        batch.fill(reader, selection, numbers, range(len(numbers)))
    finally:
        reader.close()
    return batch
