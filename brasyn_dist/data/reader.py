"""Single samples of a selection: shard --pread--> payload --decode--> planes, padded into the row of a batch.

    ShardFiles     descriptors of the shards, opened when first needed, the least recently used closed at a limit
    SampleReader   one sample into given memory; every failure names shard, key, offset and remedy

`os.pread` has no file position to share, releases the interpreter lock, and on network file systems is preferable to
mapped memory, whose failures kill the process. Both classes are for use by several threads.
"""

import os
import resource
import threading
from collections import OrderedDict

import numpy as np

from brasyn_dist.brats import MODALITIES
from brasyn_dist.data.cache import ShardSource
from brasyn_dist.data.codec import SliceDecoder
from brasyn_dist.data.index import Selection
from brasyn_dist.data.shards import ShardEntry
from brasyn_dist.data.slicing import crop_from_square
from brasyn_dist.errors import DataError


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
        self._limit = limit or max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in shards]

    def read(self, shard: int, size: int, offset: int) -> bytes:
        """`size` bytes at `offset` of a shard. Raises DataError if they are not to be had."""
        file = self._get(shard)
        try:
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self._source.describe(self._shards[shard].name)}: {error.strerror}") from None
        if len(data) != size:
            raise DataError(
                f"{self._source.describe(self._shards[shard].name)} ends after {len(data)} of {size} bytes"
            )
        return data

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
        self._shard, self._offset, self._size = (selection.column(c) for c in ("shard", "offset", "size"))
        self._local = threading.local()

    def read_into(self, sample: int, planes: np.ndarray, labels: np.ndarray) -> bool:
        """Fill `planes` (4, S, S) and `labels` (S, S), background around smaller slices (see slicing.py).

        Returns whether the sample has labels; where it has none they are 0.

        Raises DataError with shard, key, offset and remedy.
        """
        try:
            slices = self._decode(sample)
            _place(slices[: len(MODALITIES)], planes)
            has_labels = len(slices) > len(MODALITIES)
            if has_labels:
                _place(slices[len(MODALITIES)], labels)
            else:
                labels[...] = 0
            return has_labels
        except DataError as error:
            raise DataError(self._explain(sample, error)) from None

    def _decode(self, sample: int) -> np.ndarray:
        if not hasattr(self._local, "decoder"):
            self._local.decoder = SliceDecoder(self._selection.index.header.codec)
        shard, size, offset = (int(c[sample]) for c in (self._shard, self._size, self._offset))
        return self._local.decoder(self._files.read(shard, size, offset))

    def _explain(self, sample: int, error: DataError) -> str:
        shard = self._selection.index.shards[int(self._shard[sample])]
        key = self._selection.key(sample)
        return (
            f"cannot read sample {key} at byte {self._offset[sample]} of {shard.name}: {error}. Restore the shard "
            f"(its sha256 is {shard.sha256}), or go on without the sample: data.quarantine=[{key}], as a new run"
        )

    def close(self) -> None:
        self._files.close()


def _place(source: np.ndarray, target: np.ndarray) -> None:
    """Copy `source` (..., h, w) to its place in `target` (..., S, S), background around it."""
    if source.shape[-2:] != target.shape[-2:]:
        inner = crop_from_square(target, source.shape[-2:])
        target[...] = 0
        target = inner
    target[...] = source
