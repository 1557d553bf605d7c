"""Slow storage of shards: what data.prefetch, data.threads, order.block_shards and the node-local cache give. One JSON line.

    python benchmarks/bench_storage.py [--latency-ms 20] [--megabytes 20] [--batch-ms 200] [--slices 512]

    shard set --ThrottledFolder: every read waits, all share one bandwidth--> SliceStream --> consumer, busy for --batch-ms

The source is a folder whose files are read through a throttle in this process, as a network file system of this latency and
bandwidth is: every open and every read waits for the latency, and their bytes wait for their share of the bandwidth. The consumer
takes batches as an update does. Waiting is the part of the time that the consumer stands still (`data_wait_fraction` of
a training). With a GPU, batches also go through pinned memory to the device. Times depend on --batch-ms; requests and bytes do not.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.data.format.codec import DEFAULT_CODEC, encode_slice
from brasyn_dist.data.format.index import INDEX_NAME, Selection, ShardIndex
from brasyn_dist.data.format.metadata import CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import EncodedSample, ShardEntry, write_shard
from brasyn_dist.data.loading import reader
from brasyn_dist.data.loading.cache import ShardCache
from brasyn_dist.data.loading.loader import SliceStream
from brasyn_dist.data.loading.sampler import SampleOrder
from brasyn_dist.data.loading.storage import ShardFolder


class Throttle:
    """Delays requests like one slow link, and counts them."""

    def __init__(self, latency: float, bytes_per_second: float) -> None:
        self.latency, self.bytes_per_second = latency, bytes_per_second
        self.requests = self.bytes = 0
        self._free_at, self._lock = 0.0, threading.Lock()

    def request(self, size: int) -> None:
        """Return when a request of `size` bytes would be answered. Latencies overlap, transfers do not."""
        with self._lock:
            self.requests += 1
            self.bytes += size
            begins = max(time.monotonic() + self.latency, self._free_at)
            self._free_at = begins + size / self.bytes_per_second
            end = self._free_at
        time.sleep(max(0.0, end - time.monotonic()))


class ThrottledFolder(ShardFolder):
    """A folder on slow storage. `descriptors` are those of its files: reads of cached copies are fast."""

    def __init__(self, folder: Path, throttle: Throttle) -> None:
        super().__init__(folder)
        self.throttle, self.descriptors = throttle, set[int]()

    def chunks(self, name: str) -> Iterator[bytes]:
        for chunk in super().chunks(name):
            self.throttle.request(len(chunk))
            yield chunk

    def open(self, shard: ShardEntry) -> int:
        self.throttle.request(0)
        descriptor = super().open(shard)
        self.descriptors.add(descriptor)
        return descriptor

    def preadv(self, descriptor: int, buffers: Any, offset: int) -> int:
        """In place of os.preadv."""
        count = os.preadv(descriptor, buffers, offset)
        if descriptor in self.descriptors:
            self.throttle.request(count)
        return count


class _System:
    """`os` for the reader, with another preadv."""

    def __init__(self, folder: ThrottledFolder) -> None:
        self.preadv = folder.preadv

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def read_through(
    folder: Path, throttle: Throttle, cache: Path | None = None, cache_bytes: int = 2**40
) -> Selection:
    """The training slices of a set on slow storage, with or without a node-local cache."""
    slow = ThrottledFolder(folder, throttle)
    reader.os = _System(slow)  # type: ignore[assignment]
    storage = slow if cache is None else ShardCache(slow, cache, cache_bytes)
    index = ShardIndex.from_json((folder / INDEX_NAME).read_bytes(), str(folder), storage)
    storage.use_set(index.fingerprint)
    return index.select("train")


def write_set(folder: Path, slices: int, shards: int, side: int) -> None:
    """A shard set of random slices, which take about as many bytes as real ones (70 kB of 240 x 240 pixels)."""
    folder.mkdir(parents=True)
    case = CaseEntry(
        name="BraTS-GLI-00000-000", cohort="gli", split="train", patient="BraTS-GLI-00000", segmentation=True
    )
    header = SetHeader(DEFAULT_CODEC, "int16", 0, ("axial",), {"train": shards}, (case,), {"version": 1})
    random = np.random.default_rng(0)

    def sample(number: int) -> EncodedSample:
        planes = np.zeros((5, side, side), np.int16)
        brain = slice(side * 3 // 11, side * 8 // 11)
        planes[:4, brain, brain] = random.integers(100, 1900, planes[:4, brain, brain].shape)
        return EncodedSample(0, "axial", number, 0, encode_slice(planes, DEFAULT_CODEC))

    entries = [
        write_shard(folder, header, "train", shard, map(sample, range(shard, slices, shards)))
        for shard in range(shards)
    ]
    ShardIndex(header, tuple(entries)).save(folder)


def measure(
    selection: Selection, throttle: Throttle, epochs: int, busy: float, options: argparse.Namespace,
    *, block_shards: int | None = None, threads: int = 2, prefetch: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """Take `epochs` epochs of batches, with `busy` seconds of work for each."""
    throttle.requests = throttle.bytes = 0
    cuda = torch.cuda.is_available()
    order = SampleOrder(0, selection.shard, options.batch, block_shards)
    batches = epochs * len(selection) // options.batch
    begun = time.perf_counter()
    stream = SliceStream(
        selection, order, slice(0, options.batch), 0, batches,
        threads=threads, prefetch=prefetch, pin_memory=cuda, image_size=options.side,
    )  # fmt: skip
    with stream:
        for number, batch in enumerate(stream):
            if number == 0:
                first = time.perf_counter() - begun
            if cuda:
                batch.planes.to("cuda", non_blocking=True)
                torch.cuda.synchronize()
            time.sleep(busy)
    seconds = time.perf_counter() - begun
    return {
        "threads": threads, "prefetch": prefetch, "block_shards": block_shards, "epochs": epochs,
        "first_batch_seconds": first,
        "slices_per_second": batches * options.batch / seconds,
        "waiting": stream.wait_seconds / seconds,
        "requests_per_slice": throttle.requests / (batches * options.batch),
        "kilobytes_per_slice": throttle.bytes / (batches * options.batch) / 1e3,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--latency-ms", type=float, default=20, help="of each request")
    add("--megabytes", type=float, default=20, help="bandwidth, MB/s")
    add("--batch-ms", type=float, default=200, help="work of the consumer for each batch")
    add("--slices", type=int, default=512)
    add("--shards", type=int, default=32)
    add("--batch", type=int, default=16)
    add("--side", type=int, default=240)
    options = parser.parse_args()
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        write_set(folder, options.slices, options.shards, options.side)
        size = sum(path.stat().st_size for path in folder.glob("*.tar"))
        throttle = Throttle(options.latency_ms / 1e3, options.megabytes * 1e6)
        busy = options.batch_ms / 1e3

        def row(name: str, epochs: int = 1, cache_bytes: float = 0, wait: float = busy, **more: Any) -> None:
            cache = Path(scratch) / f"cache-{len(rows)}" if cache_bytes else None
            selection = read_through(folder, throttle, cache, int(cache_bytes))
            rows.append({"case": name, **measure(selection, throttle, epochs, wait, options, **more)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

        for threads, prefetch in ((1, 1), (2, 1), (2, 4), (8, 4)):
            row("slow folder", threads=threads, prefetch=prefetch)
        row("cache, first epoch", cache_bytes=2 * size)
        row("cache, first epoch", cache_bytes=2 * size, block_shards=4)
        row("cache, four epochs", epochs=4, cache_bytes=2 * size)
        throttle = Throttle(0.0, float("inf"))
        row("local folder, no work", epochs=4, wait=0.0)
    print(json.dumps({**vars(options), "bytes": size, "device": device_name(), "rows": rows}))
    return 0


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    sys.exit(main())
