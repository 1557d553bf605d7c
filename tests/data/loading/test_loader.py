"""The stream: the same global batches for any number of ranks and restarts, nothing read in vain, clean
ends."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.data.format.index import Selection, ShardIndex
from brasyn_dist.data.loading.loader import SliceBatch, SliceStream, read_samples
from brasyn_dist.data.loading.sampler import SampleOrder, rank_rows, targets_and_masks
from brasyn_dist.errors import DataError
from tests.data.shard_sets import truth_by_key, write_set

VIEWS = ("axial", "sagittal", "coronal")
SIZE = 24
G = 24


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """70 samples of 7 cases in 5 shards."""
    return write_set(tmp_path_factory.mktemp("set"), train=7, slices=10, shards=5).select("train")


def stream(
    selection: Selection, start: int, stop: int, rank: int = 0, world: int = 1, batch: int = G, **options: int
) -> SliceStream:
    order = SampleOrder(5, selection.shard, batch)
    rows = rank_rows(batch, rank, world)
    return SliceStream(selection, order, rows, start, stop, image_size=SIZE, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, bytes) of every read."""
    done: list[tuple[int, int]] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = real(descriptor, buffers, offset)
        done.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return done


def test_batches_hold_what_was_written_in_the_order_of_the_plan(tmp_path: Path) -> None:
    selection = write_set(tmp_path, train=5, views=VIEWS).select("train")
    truth = truth_by_key(selection.index)
    order = SampleOrder(5, selection.shard, 16)
    with stream(selection, 3, 9, batch=16) as batches:
        for k, batch in enumerate(batches, start=3):
            assert batch.index == k and batch.rows == slice(0, 16) and len(batch) == 16
            assert batch.keys == [selection.key(int(i)) for i in order.batch(k)]
            assert (batch.planes.dtype, batch.labels.dtype) == (torch.int16, torch.uint8)
            for row, key in enumerate(batch.keys):
                expected = truth[key]
                width = expected.shape[2]
                before = (SIZE - width) // 2
                inner = batch.planes[row, :, :, before : before + width].numpy()
                np.testing.assert_array_equal(inner, expected[:4])
                assert batch.planes[row].long().abs().sum() == np.abs(expected[:4].astype(int)).sum()
                assert bool(batch.has_labels[row]) == (len(expected) == 5)
                assert batch.labels[row].sum() == (expected[4].sum() if len(expected) == 5 else 0)
                assert VIEWS[int(batch.view[row])] == key.split("/")[1]
    assert k == 8


@pytest.mark.parametrize("samples_fit", [True, False], ids=["N>G", "N<G"])
def test_all_worlds_see_the_same_global_batches(
    selection: Selection, tmp_path: Path, samples_fit: bool
) -> None:
    """Keys, pixels, targets and masks of 1, 2, 3, 4, 6, 8 ranks, across the ends of epochs."""
    if not samples_fit:
        selection = write_set(tmp_path, train=2, slices=4).select("train")  # 8 samples: three epochs a batch
    seen = {}
    for world in (1, 2, 3, 4, 6, 8):
        parts = [list(stream(selection, 0, 7, rank, world)) for rank in range(world)]
        rows = []
        for k in range(7):
            for rank, part in enumerate(parts):
                batch = part[k]
                masks = [targets_and_masks(5, k, u, G, "any")[rank_rows(G, rank, world)] for u in range(4)]
                for i, key in enumerate(batch.keys):
                    pixels = batch.planes[i].numpy().tobytes() + batch.labels[i].numpy().tobytes()
                    drawn = [
                        (
                            int(m.target[i]),
                            m.available[i].tobytes(),
                            int(m.cycle_target[i]),
                            m.cycle_available[i].tobytes(),
                        )
                        for m in masks
                    ]
                    rows.append((k, batch.rows.start + i, key, hash(pixels), drawn))
        seen[world] = rows
        assert len(rows) == 7 * G
    assert all(rows == seen[1] for rows in seen.values())
    keys = [row[2] for row in seen[1]]
    for epoch in range(len(keys) // len(selection)):
        assert len(set(keys[epoch * len(selection) : (epoch + 1) * len(selection)])) == len(selection)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_prefetch_do_not_change_anything(selection: Selection, threads: int) -> None:
    plain = [b.planes.clone() for b in stream(selection, 0, 6, threads=1, prefetch=1)]
    for prefetch in (1, 2, 9):
        for batch, expected in zip(
            stream(selection, 0, 6, threads=threads, prefetch=prefetch), plain, strict=True
        ):
            assert torch.equal(batch.planes, expected)


@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
@pytest.mark.parametrize("start", [1, 2, 5, 1000])
def test_resuming_anywhere_reads_what_its_batches_hold_and_nothing_else(
    tmp_path: Path, reads: list[tuple[int, int]], start: int, codec: str
) -> None:
    selection = write_set(tmp_path, train=7, slices=10, shards=5, codec=codec).select("train")
    rank, world = 1, 3
    order = SampleOrder(5, selection.shard, G)
    batches = list(stream(selection, start, start + 2, rank, world))
    needed = [int(i) for k in (start, start + 1) for i in order.batch(k)[rank_rows(G, rank, world)]]
    offset, size = selection.column("offset"), selection.column("size")
    assert sorted(reads) == sorted((int(offset[i]), int(size[i])) for i in needed)
    assert [key for batch in batches for key in batch.keys] == [selection.key(i) for i in needed]


def test_reading_ahead_is_bounded(selection: Selection, reads: list[tuple[int, int]]) -> None:
    with stream(selection, 0, 50, prefetch=2, threads=3) as batches:
        assert reads == []  # nothing before somebody asks
        for taken in range(1, 4):
            next(batches)
            deadline = time.monotonic() + 10
            while len(reads) < (taken + 2) * G and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
            assert len(reads) == (taken + 2) * G


def test_nothing_is_read_beyond_the_end(selection: Selection, reads: list[tuple[int, int]]) -> None:
    assert [batch.index for batch in stream(selection, 2, 4, prefetch=8)] == [2, 3]
    assert len(reads) == 2 * G
    assert list(stream(selection, 4, 4)) == []


def test_a_batch_in_use_is_not_written_again(selection: Selection) -> None:
    held: list[SliceBatch] = []
    copies = []
    for batch in stream(selection, 0, 12, prefetch=1):
        held.append(batch)
        copies.append(batch.planes.clone())
    assert all(torch.equal(batch.planes, copy) for batch, copy in zip(held, copies))


def test_memory_is_reused_without_references(selection: Selection) -> None:
    addresses = set()
    for batch in stream(selection, 0, 40, prefetch=2):
        addresses.add(batch.planes.data_ptr())
    assert len(addresses) <= 5
    part = next(iter(stream(selection, 0, 40))).planes[3, 1]  # a view of a batch keeps all of it
    kept = part.clone()
    with stream(selection, 0, 40) as batches:
        part = next(batches).planes[3, 1]
        for _ in batches:
            assert torch.equal(part, kept)


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_threads_and_descriptors_are_gone_after_every_kind_of_end(selection: Selection) -> None:
    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = descriptors()
    list(stream(selection, 0, 4))
    assert stream_threads() == [] and descriptors() == before
    with stream(selection, 0, 400, threads=4) as batches:
        next(batches)
        assert len(stream_threads()) > 0 and descriptors() > before
    assert stream_threads() == [] and descriptors() == before
    with pytest.raises(KeyError), stream(selection, 0, 400) as batches:
        next(batches)
        raise KeyError
    assert stream_threads() == [] and descriptors() == before
    batches.close()  # again
    assert list(batches) == []


def test_no_global_generator_is_touched(selection: Selection) -> None:
    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())
    list(stream(selection, 0, 5))
    after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())
    assert before == after


def test_time_spent_waiting_is_told(selection: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: time.sleep(0.01) or real(*a))
    with stream(selection, 0, 2, threads=1) as batches:
        list(batches)
        assert batches.wait_seconds > 0.3


def test_pinned_memory_where_there_is_cuda(selection: Selection) -> None:
    (batch,) = stream(selection, 0, 1, pin_memory=True)
    for tensor in (batch.planes, batch.labels, batch.has_labels, batch.view, batch.tumour_type):
        assert tensor.is_pinned() == torch.cuda.is_available()


def test_an_order_of_other_length_is_refused(selection: Selection) -> None:
    with pytest.raises(DataError, match="order of 3 samples does not fit a selection of 70"):
        SliceStream(selection, SampleOrder(0, np.zeros(3, int), 4), slice(0, 4), 0, 1)


def test_read_samples_reads_each_once(selection: Selection, reads: list[tuple[int, int]]) -> None:
    batch = read_samples(selection, [5, 0, 69], image_size=SIZE)
    assert batch.keys == [selection.key(i) for i in (5, 0, 69)] and batch.index == -1
    truth = truth_by_key(selection.index, slices=10)
    for row, key in enumerate(batch.keys):
        np.testing.assert_array_equal(batch.planes[row].numpy(), truth[key][:4])
    assert len(reads) == 3


# ---- damage


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[tuple[Path, ShardIndex, int]]:
    """(folder, index, sample): a set, and the sample whose shard a test damages; it comes in batch 1."""
    index = write_set(tmp_path, train=7, slices=10, shards=5)
    selection = index.select("train")
    yield tmp_path, index, int(SampleOrder(5, selection.shard, 8).batch(1)[3])


def expect_failure(index: ShardIndex, sample: int, problem: str) -> str:
    """Batches before the damaged one arrive; then an error with shard, key and offset. Returns its text."""
    selection = index.select("train")
    row = selection.rows[sample]
    shard = index.shards[selection.shard[sample]]
    with pytest.raises(DataError, match=problem) as raised:
        list(stream(selection, 0, 4, batch=8))
    text = str(raised.value)
    assert stream_threads() == []
    assert shard.name in text and "Restore the shard" in text and "data.quarantine=[" in text
    if "Zstandard" in problem:
        assert f"sample {index.key(row)} at byte {index.columns['offset'][row]} of {shard.name}" in text
    return text


def test_a_flipped_byte(damaged: tuple[Path, ShardIndex, int]) -> None:
    folder, index, sample = damaged
    selection = index.select("train")
    path = folder / index.shards[selection.shard[sample]].name
    data = bytearray(path.read_bytes())
    data[selection.column("offset")[sample] + selection.column("size")[sample] // 2] ^= 0x01
    path.write_bytes(data)
    with stream(selection, 0, 4, batch=8) as batches:
        assert next(batches).index == 0  # what was whole comes first
    expect_failure(index, sample, "damaged Zstandard data")

    key = selection.key(sample)
    rest = index.select("train", quarantine=[key])
    keys = [k for batch in stream(rest, 0, 9, batch=8) for k in batch.keys]
    assert len(rest) == 69 and key not in keys and len(set(keys)) == 69
    assert rest.fingerprint != selection.fingerprint


def test_a_truncated_shard(damaged: tuple[Path, ShardIndex, int]) -> None:
    folder, index, sample = damaged
    path = folder / index.shards[index.select("train").shard[sample]].name
    path.write_bytes(path.read_bytes()[:-10240])
    expect_failure(index, sample, r"\.tar: \d+ bytes instead of \d+")


def test_a_shard_of_wrong_size(damaged: tuple[Path, ShardIndex, int]) -> None:
    folder, index, sample = damaged
    path = folder / index.shards[index.select("train").shard[sample]].name
    path.write_bytes(path.read_bytes() + bytes(512))
    expect_failure(index, sample, r"\.tar: \d+ bytes instead of \d+")


def test_a_missing_shard(damaged: tuple[Path, ShardIndex, int]) -> None:
    folder, index, sample = damaged
    (folder / index.shards[index.select("train").shard[sample]].name).unlink()
    expect_failure(index, sample, "No such file")


def test_a_shard_cut_off_while_it_is_open(damaged: tuple[Path, ShardIndex, int]) -> None:
    folder, index, sample = damaged
    selection = index.select("train")
    number = int(selection.shard[sample])
    last = int(np.flatnonzero(selection.shard == number)[-1])
    batches = stream(selection, 0, 40, batch=8, prefetch=1)
    for _ in range(12):  # every shard is open by now
        next(batches)
    os.truncate(folder / index.shards[number].name, int(selection.column("offset")[last]) + 10)
    with pytest.raises(
        DataError, match=rf"sample {selection.key(last)} at byte .* ends after 10 of \d+ bytes"
    ):
        list(batches)
    assert stream_threads() == []


def test_larger_slices_are_cut_to_their_middle(selection: Selection) -> None:
    whole = read_samples(selection, [5, 0, 69], image_size=SIZE)
    cut = read_samples(selection, [5, 0, 69], image_size=(SIZE - 8, SIZE - 2))
    assert torch.equal(cut.planes, whole.planes[:, :, 4:-4, 1:-1])
    assert torch.equal(cut.labels, whole.labels[:, 4:-4, 1:-1])
    assert cut.medians.tolist() == [[1.0] * 4] * 3
