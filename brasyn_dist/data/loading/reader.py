"""Single samples of a selection: shard --preadv--> payload --decode--> planes, padded into the row of a batch.

    ShardFiles     descriptors of the shards, opened when first needed, the least recently used closed at a limit
    SampleReader   one sample into given memory; every failure names shard, key, offset and remedy

`os.preadv` has no file position to share, releases the interpreter lock, and on network file systems is preferable to
mapped memory, whose failures kill the process. Both classes are for use by several threads.
"""

import os
import resource
import threading
from collections import OrderedDict

import numpy as np

from brasyn_dist.data.format.codec import SliceDecoder, npy_header
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.storage import ShardSource
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.slicing import pad_or_crop_into


class _OpenShard:
    """A descriptor that is closed when nobody refers to it: a thread may still read what ShardFiles has let go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardFiles:
    """Open shards by their number in the index, at most `limit` (None: a quarter of what the process may open)."""

    def __init__(self, source: ShardSource, shards: tuple[ShardEntry, ...], limit: int | None = None) -> None:
        self._source = source
        self._shards = shards
        self._limit = limit or _descriptor_limit()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in shards]

    def read(self, shard: int, offset: int, *buffers: bytearray | memoryview) -> None:
        """Fill `buffers`, one after the other, from `offset` of a shard. Raises DataError if that cannot be done."""
        file = self._get(shard)
        wanted = sum(memoryview(buffer).nbytes for buffer in buffers)
        try:
            count = os.preadv(file.descriptor, buffers, offset)
        except OSError as error:
            raise DataError(f"{self._source.describe(self._shards[shard].name)}: {error.strerror}") from None
        if count != wanted:
            name = self._source.describe(self._shards[shard].name)
            raise DataError(f"{name} ends after {count} of {wanted} bytes")

    def _get(self, shard: int) -> _OpenShard:
        file = self._lookup(shard)
        if file is None:
            # Opening may mean fetching: other shards must not wait for it, other readers of this one must.
            with self._opening[shard]:
                file = self._lookup(shard)
                if file is None:
                    file = _OpenShard(self._source.open(self._shards[shard]))
                    self._keep(shard, file)
        return file

    def _lookup(self, shard: int) -> _OpenShard | None:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
            return self._open.get(shard)

    def _keep(self, shard: int, file: _OpenShard) -> None:
        with self._lock:
            self._open[shard] = file
            while len(self._open) > self._limit:
                self._open.popitem(last=False)

    def close(self) -> None:
        """Close all; those being read are closed after it."""
        with self._lock:
            self._open.clear()


def _descriptor_limit() -> int:
    """A quarter of what the process may open: every process of the trainer has its own shards open, and sockets."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(1, allowed // 4)


class _Scratch(threading.local):
    """Memory of each thread that is used again for every sample."""

    def __init__(self, codec: str) -> None:
        self.decoder = SliceDecoder(codec)
        self._bytes = bytearray()

    def bytes(self, size: int) -> memoryview:
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]


class SampleReader:
    """Reads samples of `selection`, by any number of threads."""

    def __init__(self, selection: Selection, max_open: int | None = None) -> None:
        index = selection.index
        if index.source is None:
            raise DataError(
                "this index was not loaded from a location: nothing to read from; use ShardIndex.load"
            )
        self._selection = selection
        self._files = ShardFiles(index.source, index.shards, max_open)
        self._places = [selection.column(name) for name in ("shard", "offset", "size")]
        self._codec, self._modalities = index.header.codec, len(index.header.modality_set)
        self._scratch = _Scratch(self._codec)

    def read_into(self, sample: int, planes: np.ndarray, labels: np.ndarray) -> bool:
        """Fill `planes` (M, H, W) and `labels` (H, W), background around smaller slices, larger ones cut (see slicing.py).

        Returns whether the sample has labels; where it has none they are 0. Raises DataError with shard, key, offset
        and remedy.
        """
        shard, offset, size = (int(column[sample]) for column in self._places)
        try:
            if self._codec == "npy":
                has_labels = self._read_in_place(shard, offset, size, planes, labels)
                if has_labels is not None:
                    return has_labels
            payload = self._scratch.bytes(size)
            self._files.read(shard, offset, payload)
            return _place_all(self._scratch.decoder(payload), planes, labels)
        except DataError as error:
            raise DataError(self._explain(sample, error)) from None

    def _read_in_place(
        self, shard: int, offset: int, size: int, planes: np.ndarray, labels: np.ndarray
    ) -> bool | None:
        """Values that are stored as they are, unpadded, go from the file to where they belong; None if they are not."""
        for count in (self._modalities + 1, self._modalities):
            expected = npy_header((count, *planes.shape[1:]), planes.dtype.name)
            extra = (count - self._modalities) * planes[0].nbytes
            if size == len(expected) + planes.nbytes + extra:
                scratch = self._scratch.bytes(len(expected) + extra)
                header, label_bytes = scratch[: len(expected)], scratch[len(expected) :]
                self._files.read(shard, offset, header, planes.data.cast("B"), label_bytes)
                if header != expected:
                    return None
                labels[...] = np.frombuffer(label_bytes, planes.dtype).reshape(labels.shape) if extra else 0
                return extra > 0
        return None

    def _explain(self, sample: int, error: DataError) -> str:
        number, offset, _ = (int(column[sample]) for column in self._places)
        shard, key = self._selection.index.shards[number], self._selection.key(sample)
        return (
            f"cannot read sample {key} at byte {offset} of {shard.name}: {error}. Restore the shard "
            f"(its sha256 is {shard.sha256}), or go on without the sample: data.quarantine=[{key}], as a new run"
        )

    def close(self) -> None:
        self._files.close()


def _place_all(slices: np.ndarray, planes: np.ndarray, labels: np.ndarray) -> bool:
    """Copy (M or M + 1, h, w) slices to the middle of `planes` and `labels`; whether there are labels."""
    if len(slices) - len(planes) not in (0, 1):
        raise DataError(f"stored with {len(slices)} planes, but the set has {len(planes)} modalities")
    if slices.dtype != planes.dtype:
        raise DataError(f"stored as {slices.dtype}, but the index says {planes.dtype}")
    pad_or_crop_into(slices[: len(planes)], planes)
    has_labels = len(slices) > len(planes)
    if has_labels:
        pad_or_crop_into(slices[-1], labels)
    else:
        labels[...] = 0
    return has_labels
