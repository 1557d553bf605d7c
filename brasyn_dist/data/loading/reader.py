"""Single samples: shard --preadv--> payload --decode--> planes, padded into the row of a batch.

    ShardFiles     descriptors of the shards, opened at first use; above a limit the least recently used is
    closed SampleReader   reads one sample into given memory; errors name shard, key, offset and remedy

`os.preadv` has no shared file position and releases the interpreter lock. On network file systems it is
preferable to mapped memory, where a failure kills the process. Both classes are thread-safe.
"""

import functools
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from brasyn_dist.data.format.codec import SliceDecoder, npy_header
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.storage import ShardStorage
from brasyn_dist.data.loading.transfer import TransferError
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.slicing import pad_or_crop_into


class _Descriptor:
    """A file descriptor that is closed when no thread references it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class ShardFiles:
    """Open shards by their number in the index.

    Args:
        storage: Files of the set.
        shards: Entries of the index.
        limit: Most descriptors; None: a quarter of the limit of the process, because every process of the
            trainer has its own shards open, and sockets.
    """

    def __init__(
        self, storage: ShardStorage, shards: tuple[ShardEntry, ...], limit: int | None = None
    ) -> None:
        self._storage = storage
        self._shards = shards
        self._open = functools.lru_cache(limit or _descriptor_limit())(self._open_shard)

    def _open_shard(self, shard: int) -> _Descriptor:
        return _Descriptor(self._storage.open(self._shards[shard]))

    def read(self, shard: int, offset: int, *buffers: bytearray | memoryview) -> None:
        """Fill `buffers`, one after the other, from `offset` of a shard. Raises DataError on failure."""
        wanted = sum(memoryview(buffer).nbytes for buffer in buffers)
        descriptor = self._open(shard)
        try:
            count = os.preadv(descriptor.number, buffers, offset)
        except OSError as error:
            raise DataError(f"{self._storage.location(self._shards[shard].name)}: {error.strerror}") from None
        if count != wanted:
            name = self._storage.location(self._shards[shard].name)
            raise DataError(f"{name} ends after {count} of {wanted} bytes")

    def close(self) -> None:
        """Close all shards; those that are being read are closed afterwards."""
        self._open.cache_clear()


def _descriptor_limit() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(1, allowed // 4)


class _Scratch(threading.local):
    """Decoder and memory of each thread, reused for every sample."""

    def __init__(self, codec: str) -> None:
        self.decoder = SliceDecoder(codec)
        self._bytes = bytearray()

    def bytes(self, size: int) -> memoryview:
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]


class SampleReader:
    """Reads samples of `selection`, in any number of threads."""

    def __init__(self, selection: Selection, max_open: int | None = None) -> None:
        index = selection.index
        if index.storage is None:
            raise DataError(
                "this index was not loaded from a location: nothing to read from; use open_shard_set"
            )
        self._selection = selection
        self._files = ShardFiles(index.storage, index.shards, max_open)
        self._locations = [selection.column(name) for name in ("shard", "offset", "size")]
        self._codec = index.header.codec
        self._scratch = _Scratch(self._codec)

    def read_into(
        self, sample: int, planes: np.ndarray, labels: np.ndarray, shift: Sequence[int] = (0, 0)
    ) -> bool:
        """Read one sample. Small slices are padded with background, large ones are cropped.

        Args:
            sample: Number of the sample in the selection.
            planes: (M, H, W), filled with the intensities.
            labels: (H, W), filled with the labels, or with 0 if the sample has none.
            shift: Rows and columns by which the window (H, W) lies off the middle of the slice.

        Returns:
            Whether the sample has labels.

        Raises:
            DataError: With shard, key, offset and remedy.
        """
        with self._located(sample) as (shard, offset, size):
            if self._codec == "npy" and not any(shift):
                has_labels = self._read_in_place(shard, offset, size, planes, labels)
                if has_labels is not None:
                    return has_labels
            return _place_all(self._decoded(shard, offset, size), planes, labels, shift)

    def read(self, sample: int, shape: Sequence[int]) -> np.ndarray:
        """Planes of one sample as stored, valid until the next read in this thread.

        Args:
            sample: Number of the sample in the selection.
            shape: Expected shape.

        Raises:
            DataError: With shard, key, offset and remedy; also if it has another shape or type.
        """
        dtype = self._selection.index.header.dtype
        with self._located(sample) as location:
            found = self._decoded(*location)
            if found.shape != tuple(shape) or found.dtype != dtype:
                raise DataError(f"stored as {found.dtype} {found.shape}, but the index says {dtype} {shape}")
            return found

    def _decoded(self, shard: int, offset: int, size: int) -> np.ndarray:
        payload = self._scratch.bytes(size)
        self._files.read(shard, offset, payload)
        return self._scratch.decoder(payload)

    @contextmanager
    def _located(self, sample: int) -> Iterator[tuple[int, int, int]]:
        """Shard, offset and size of a sample; errors name them and the remedy."""
        shard, offset, size = (int(column[sample]) for column in self._locations)
        try:
            yield shard, offset, size
        except TransferError:
            raise  # the sample may be intact: it is no reason to leave it out
        except DataError as error:
            name, key = self._selection.index.shards[shard], self._selection.key(sample)
            raise DataError(
                f"cannot read sample {key} at byte {offset} of {name.name}: {error}. Restore the "
                "shard (its sha256 is "
                f"{name.sha256}), or leave the sample out of a new run: data.quarantine=[{key}]"
            ) from None

    def _read_in_place(
        self, shard: int, offset: int, size: int, planes: np.ndarray, labels: np.ndarray
    ) -> bool | None:
        """Read uncompressed, unpadded values directly into `planes`; None if they are stored otherwise."""
        for extra_planes in (1, 0):
            expected = npy_header((len(planes) + extra_planes, *planes.shape[1:]), planes.dtype.name)
            extra = extra_planes * planes[0].nbytes
            if size == len(expected) + planes.nbytes + extra:
                scratch = self._scratch.bytes(len(expected) + extra)
                header, label_bytes = scratch[: len(expected)], scratch[len(expected) :]
                self._files.read(shard, offset, header, planes.data.cast("B"), label_bytes)
                if header != expected:
                    return None
                labels[...] = np.frombuffer(label_bytes, planes.dtype).reshape(labels.shape) if extra else 0
                return extra > 0
        return None

    def close(self) -> None:
        """Close the shards."""
        self._files.close()


def _place_all(
    slices: np.ndarray, planes: np.ndarray, labels: np.ndarray, shift: Sequence[int] = (0, 0)
) -> bool:
    """Copy (M or M + 1, h, w) to `planes` and `labels`; whether there are labels."""
    if len(slices) - len(planes) not in (0, 1):
        raise DataError(f"stored with {len(slices)} planes, but the set has {len(planes)} modalities")
    if slices.dtype != planes.dtype:
        raise DataError(f"stored as {slices.dtype}, but the index says {planes.dtype}")
    pad_or_crop_into(slices[: len(planes)], planes, shift)
    has_labels = len(slices) > len(planes)
    if has_labels:
        pad_or_crop_into(slices[-1], labels, shift)
    else:
        labels[...] = 0
    return has_labels
