"""Slow storage, counted instead of timed: what is read ahead, and how often shards cross the link."""

import threading
import time
from pathlib import Path

import pytest

from benchmarks.bench_storage import Throttle, read_through, write_set
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.loading import reader
from brasyn_dist.data.loading.loader import SliceStream
from brasyn_dist.data.loading.sampler import SampleOrder

SLICES, SHARDS, BATCH, SIDE = 48, 6, 4, 24


class GatedLink(Throttle):
    """Infinitely fast while open; answers nothing while shut."""

    def __init__(self) -> None:
        super().__init__(0.0, float("inf"))
        self.open = threading.Event()
        self.open.set()

    def request(self, size: int) -> None:
        self.open.wait(30)
        super().request(size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "set"
    write_set(folder, SLICES, SHARDS, SIDE)
    return folder


@pytest.fixture(autouse=True)
def _system_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "os", reader.os)  # read_through replaces it


def stream(
    selection: Selection, epochs: int = 1, block_shards: int | None = None, prefetch: int = 4
) -> SliceStream:
    order = SampleOrder(0, selection.shard, BATCH, block_shards)
    stop = epochs * SLICES // BATCH
    return SliceStream(selection, order, slice(0, BATCH), 0, stop, prefetch=prefetch, image_size=SIDE)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetched_batches_need_no_storage(folder: Path, prefetch: int):
    """When the link stops, `data.prefetch` batches are there, and no more."""
    link = GatedLink()
    with stream(read_through(folder, link), prefetch=prefetch) as batches:
        next(batches)
        wait_for(lambda: all(part.done() for _, parts in batches._pending for part in parts))
        link.open.clear()
        for _ in range(prefetch):
            next(batches)
        requests = link.requests
        assert not any(part.done() for part in batches._pending[0][1])
        link.open.set()
        next(batches)
        assert link.requests > requests


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_without_a_cache_every_slice_of_every_epoch_crosses_the_link(folder: Path):
    link = Throttle(0.0, float("inf"))
    with stream(read_through(folder, link), epochs=2) as batches:
        assert len(list(batches)) == 2 * SLICES // BATCH
    # Two threads may open the same shard at the same time.
    assert SHARDS <= link.requests - 2 * SLICES <= 2 * SHARDS


def test_with_a_cache_every_shard_crosses_the_link_once(folder: Path, tmp_path: Path):
    link = Throttle(0.0, float("inf"))
    for _ in range(2):  # another process, later
        with stream(read_through(folder, link, tmp_path / "cache"), epochs=2) as batches:
            assert len(list(batches)) == 2 * SLICES // BATCH
    assert link.requests == SHARDS


def test_blocks_make_a_small_cache_enough(folder: Path, tmp_path: Path):
    """A cache of half the set: with blocks of a third each shard is fetched once an epoch, else over and over."""
    half = sum(path.stat().st_size for path in folder.glob("*.tar")) // 2
    requests = {}
    for block_shards in (2, None):
        link = Throttle(0.0, float("inf"))
        selection = read_through(folder, link, tmp_path / f"{block_shards}", half)
        # One shard open at a time in the reader: what it holds open needs no fetch.
        with stream(selection, 1, block_shards, prefetch=1) as batches:
            batches._reader._files = reader.ShardFiles(
                selection.index.storage, selection.index.shards, limit=1
            )
            assert len(list(batches)) == SLICES // BATCH
        requests[block_shards] = link.requests
    # At the border of two blocks a thread may still read from the older one.
    assert SHARDS <= requests[2] < 2 * SHARDS
    assert requests[None] > 2 * SHARDS
