"""Batches in order, read ahead by threads: what the streams of slices and of patches have in common.

A stream has no state to resume: a stream that starts at batch k reads only what batch k needs. Memory is
bounded by `prefetch` batches beyond the one in use.
"""

import time
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.data.loading.reader import SampleReader

Batch = TypeVar("Batch", bound=Sized)


class HostMemory:
    """Allocates tensors in memory that is reused when a tensor is no longer referenced.

    New memory takes as long as copying into it, because the kernel clears it first. torch caches pinned
    memory itself.
    """

    def __init__(self, pin_memory: bool = False) -> None:
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._free: dict[tuple[object, ...], list[np.ndarray]] = defaultdict(list)

    def large(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A tensor of any content, in memory that is reused."""
        if self.pin_memory:
            return self.small(shape, getattr(torch, dtype))
        free = self._free[*shape, dtype]
        memory = free.pop() if free else np.empty(shape, dtype)
        # The tensor references the view; the memory is free when the view is deleted.
        view = memory[:]
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.from_numpy(view)

    def small(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.pin_memory)


class BatchStream(ABC, Generic[Batch]):
    """Iterator over the part of a rank of global batches. As a context manager it ends its threads.

    A read error is raised by `next()` for its batch, as DataError with shard, key, offset and remedy.

    Subclasses allocate and read the batches.

    Args:
        reader: Reader of the samples, which the stream closes.
        start: First global batch.
        stop: End of the global batches.
        threads: Reader threads.
        prefetch: Batches that are read ahead.
    """

    def __init__(self, reader: SampleReader, start: int, stop: int, threads: int, prefetch: int) -> None:
        self.wait_seconds = 0.0
        """Time that the consumer has waited for data."""
        self._reader = reader
        self._next, self._stop = start, stop
        self._threads, self._prefetch = threads, prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._pending: deque[tuple[Batch, list[Future[None]]]] = deque()

    @abstractmethod
    def _allocate(self, k: int) -> Batch:
        """Memory for this rank's part of global batch k."""

    @abstractmethod
    def _fill(self, batch: Batch, rows: range) -> None:
        """Read these rows of a batch, in one of the threads."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        self._read_ahead()
        if not self._pending:
            self.close()
            raise StopIteration
        batch, parts = self._pending.popleft()
        self._read_ahead()
        started = time.perf_counter()
        try:
            for part in parts:
                part.result()
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        return batch

    def _read_ahead(self) -> None:
        while self._next < self._stop and len(self._pending) < self._prefetch:
            batch = self._allocate(self._next)
            edges = np.linspace(0, len(batch), min(self._threads, len(batch)) + 1).astype(int).tolist()
            parts = [range(a, b) for a, b in pairwise(edges)]
            self._pending.append((batch, [self._pool.submit(self._fill, batch, part) for part in parts]))
            self._next += 1

    def close(self) -> None:
        """Discard the batches that were read ahead, end the threads, close the shards. Idempotent."""
        self._next = self._stop
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
