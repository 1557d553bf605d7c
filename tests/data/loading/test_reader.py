"""Single samples: position, padding, number of descriptors, and errors with a remedy."""

import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading.reader import SampleReader, ShardFiles
from brasyn_dist.errors import DataError
from tests.data.shard_sets import truth_by_key, write_set

VIEWS = ("axial", "sagittal", "coronal")


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def padded(planes: np.ndarray, size: int) -> np.ndarray:
    """(P, size, size), the slice in the middle, an odd pixel of background behind it."""
    missing = [size - n for n in planes.shape[1:]]
    return np.pad(planes, [(0, 0), *((n // 2, n - n // 2) for n in missing)])


@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
def test_samples_come_padded_with_labels_where_there_are_any(tmp_path: Path, codec: str, dtype: str) -> None:
    selection = write_set(tmp_path, views=VIEWS, codec=codec, dtype=dtype).select("train")
    truth = truth_by_key(selection.index)
    reader = SampleReader(selection)
    for sample in range(len(selection)):
        planes, labels = np.full((4, 32, 32), 99, dtype), np.full((32, 32), 99, np.uint8)
        has_labels = reader.read_into(sample, planes, labels)
        expected = padded(truth[selection.key(sample)], 32)
        np.testing.assert_array_equal(planes, expected[:4])
        np.testing.assert_array_equal(labels, expected[4] if len(expected) == 5 else 0)
        assert has_labels == (len(expected) == 5)
    reader.close()


def test_a_coronal_slice_of_brats_has_42_background_columns_before_and_43_behind(tmp_path: Path) -> None:
    shapes = {"axial": (240, 240), "coronal": (240, 155)}
    index = write_set(tmp_path, train=1, val=0, slices=1, views=tuple(shapes), shards=1, shapes=shapes)
    truth = truth_by_key(index, shapes, slices=1)
    selection = index.select("train")
    reader = SampleReader(selection)
    for sample in range(2):
        planes, labels = np.full((4, 240, 240), 9, "int16"), np.full((240, 240), 9, "uint8")
        reader.read_into(sample, planes, labels)
        expected = truth[selection.key(sample)]
        start = 42 if "coronal" in selection.key(sample) else 0
        np.testing.assert_array_equal(planes[:, :, start : start + expected.shape[2]], expected[:4])
        np.testing.assert_array_equal(labels[:, start : start + expected.shape[2]], expected[4])
        outside = np.delete(planes, np.s_[start : start + expected.shape[2]], axis=2)
        assert outside.shape[2] == (85 if start else 0) and not outside.any()


@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
def test_of_a_slice_larger_than_the_networks_see_they_get_the_middle(tmp_path: Path, codec: str) -> None:
    index = write_set(tmp_path, codec=codec)
    truth, selection = truth_by_key(index), index.select("train")
    planes, labels = np.full((4, 16, 30), 9, "int16"), np.full((16, 30), 9, "uint8")
    labelled = next(i for i in range(len(selection)) if len(truth[selection.key(i)]) == 5)
    assert SampleReader(selection).read_into(labelled, planes, labels)
    expected = truth[selection.key(labelled)][:, 4:-4]
    np.testing.assert_array_equal(planes[:, :, 3:27], expected[:4])
    np.testing.assert_array_equal(labels[:, 3:27], expected[4])
    assert not planes[:, :, :3].any() and not planes[:, :, 27:].any() and not labels[:, 27:].any()


def test_integers_wider_than_the_index_says_are_not_cut_down(tmp_path: Path) -> None:
    for codec in ("npy.zst", "npy"):
        index = write_set(tmp_path / codec, codec=codec, dtype="int32")
        narrow = replace(index, header=replace(index.header, dtype="int16"))
        reader = SampleReader(narrow.select("train"))
        with pytest.raises(DataError, match="stored as int32, but the index says int16"):
            reader.read_into(0, np.empty((4, 24, 24), "int16"), np.empty((24, 24), "uint8"))


def test_raw_slices_of_full_size_are_read_in_place_and_checked(tmp_path: Path) -> None:
    index = write_set(tmp_path, codec="npy", shards=1)
    selection = index.select("train")
    path = tmp_path / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[selection.column("offset")[2] + 20] ^= 1  # in the .npy header
    path.write_bytes(data)
    reader = SampleReader(selection)
    planes, labels = np.empty((4, 24, 24), "int16"), np.empty((24, 24), "uint8")
    reader.read_into(1, planes, labels)
    np.testing.assert_array_equal(planes, truth_by_key(index)[selection.key(1)][:4])
    with pytest.raises(
        DataError, match=rf"sample {selection.key(2)} at byte \d+ of train-00000\.tar: .*\.npy"
    ):
        reader.read_into(2, planes, labels)


def test_an_index_from_memory_has_nothing_to_read_from(tmp_path: Path) -> None:
    loaded = write_set(tmp_path)
    with pytest.raises(DataError, match="use open_shard_set"):
        SampleReader(ShardIndex(loaded.header, loaded.shards).select("train"))


def test_descriptors_stay_below_the_limit_and_are_given_back(tmp_path: Path) -> None:
    index = write_set(tmp_path, train=8, slices=8, shards=60)
    before = open_descriptors()
    files = ShardFiles(index.storage, index.shards, limit=5)
    for _ in range(3):
        for number in random.Random(0).sample(range(60), 60):
            files.read(number, 0, bytearray(100))
            assert open_descriptors() - before <= 5
    assert open_descriptors() - before == 5
    files.close()
    assert open_descriptors() == before


def test_the_limit_follows_what_the_process_may_open(tmp_path: Path) -> None:
    index = write_set(tmp_path, train=8, slices=8, shards=60)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        files = ShardFiles(index.storage, index.shards)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for number in range(60):
        files.read(number, 0, bytearray(100))
    assert open_descriptors() - before == 16
    files.close()


def test_threads_read_right_bytes_while_shards_are_closed_under_them(tmp_path: Path) -> None:
    selection = write_set(tmp_path, slices=20, shards=6).select("train")
    truth = truth_by_key(selection.index, slices=20)
    reader = SampleReader(selection, max_open=1)

    def check(sample: int) -> None:
        planes, labels = np.empty((4, 24, 24), "int16"), np.empty((24, 24), "uint8")
        reader.read_into(sample, planes, labels)
        np.testing.assert_array_equal(planes, truth[selection.key(sample)][:4])

    samples = random.Random(1).choices(range(len(selection)), k=2000)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(check, samples))) == 2000


def test_shards_are_opened_when_first_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = write_set(tmp_path, shards=6).select("train")
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(Path(path).name) or real(path, *rest))
    reader = SampleReader(selection)
    assert opened == []
    reader.read_into(0, np.empty((4, 24, 24), "int16"), np.empty((24, 24), "uint8"))
    assert opened == ["train-00000.tar"]
