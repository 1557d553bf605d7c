"""The index: rebuilt from the tars alone, refused when it lies, small and quick for half a million
samples."""

import hashlib
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from brasyn_dist.data.format.index import ShardIndex, rebuild_index
from brasyn_dist.data.format.metadata import CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.errors import DataError
from tests.data.shard_sets import STATISTICS, case_table, truth_by_key, write_set

VIEWS = ("axial", "sagittal", "coronal")


def test_rebuilt_from_the_tars_alone_it_is_the_same_bytes(tmp_path: Path) -> None:
    write_set(tmp_path, views=VIEWS)
    before = {name: (tmp_path / name).read_bytes() for name in ("index.json", "statistics.json")}
    for name in before:
        (tmp_path / name).unlink()
    rebuild_index(tmp_path).save(tmp_path)
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content


def test_files_can_be_checked_with_common_tools(tmp_path: Path) -> None:
    write_set(tmp_path)
    said = json.loads((tmp_path / "index.json").read_text())
    statistics = (tmp_path / "statistics.json").read_bytes()
    assert json.loads(statistics) == said["statistics"] == STATISTICS
    assert hashlib.sha256(statistics).hexdigest() == said["statistics_sha256"]
    for shard in said["shards"]:
        assert hashlib.sha256((tmp_path / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"4 shards expected, 3 found, train-00001\.tar is missing"):
        rebuild_index(tmp_path)


def test_shards_of_two_sets_do_not_mix(tmp_path: Path) -> None:
    write_set(tmp_path / "a")
    write_set(tmp_path / "b", train=5)
    (tmp_path / "b" / "train-00001.tar").replace(tmp_path / "a" / "train-00001.tar")
    with pytest.raises(DataError, match=r"train-00001\.tar: belongs to another shard set"):
        rebuild_index(tmp_path / "a")


def test_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards such as"):
        rebuild_index(tmp_path)
    with pytest.raises(DataError, match=r"no readable index\.json"):
        open_shard_set(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 7', '"seed": 8'),
        ('"tumour_pixels":[', '"tumour_pixels":[1'),
        ('"train-00000.tar"', '"train-00001.tar"'),
        ('"train-00000.tar"', '"../rain-00000.tar"'),
        ('"fingerprint": "', '"fingerprint": "0'),
        ('"offset":', '"offsets":'),
        ('"cases": {', '"cases": ['),
        ('"shards": [', '"shards": 3, "x": ['),
    ],
)
def test_an_edited_index_is_refused(tmp_path: Path, old: str, new: str) -> None:
    write_set(tmp_path)
    text = (tmp_path / "index.json").read_text()
    assert old in text
    (tmp_path / "index.json").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=r"index\.json|not complete"):
        open_shard_set(tmp_path)


def test_selection_is_what_a_filter_over_all_samples_gives(tmp_path: Path) -> None:
    index = write_set(tmp_path, train=6, val=2, views=VIEWS)
    truth = truth_by_key(index)
    by_name = {case.name: case for case in index.header.cases}
    for split, views, cohorts, fraction in itertools.product(
        ("train", "val"), ((), ("axial",), ("coronal", "axial")), ((), ("met",)), (0.0, 0.005)
    ):
        expected = set()
        for key, planes in truth.items():
            case = by_name[key.split("/")[0]]
            tumour = (planes[4] > 0).sum() if len(planes) == 5 else 0
            if (
                case.split == split
                and (not views or key.split("/")[1] in views)
                and (not cohorts or case.cohort in cohorts)
                and tumour >= fraction * 240 * 240
            ):
                expected.add(key)
        selection = index.select(split, views, cohorts, min_tumour_fraction=fraction)
        keys = [selection.key(i) for i in range(len(selection))]
        assert set(keys) == expected and len(keys) == len(expected)
        assert (np.diff(selection.rows) > 0).all()  # tar order
        np.testing.assert_array_equal(selection.shard, selection.column("shard"))


def test_quarantined_keys_are_left_out_and_must_exist(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    everything = index.select("train")
    bad = [everything.key(3), everything.key(11)]
    rest = index.select("train", quarantine=bad)
    assert {rest.key(i) for i in range(len(rest))} == {
        everything.key(i) for i in range(len(everything))
    } - set(bad)
    for wrong in ("nobody/axial/000", bad[0] + "0", bad[0].replace("axial", "coronal"), "", "a/b/c/d"):
        with pytest.raises(DataError, match="no sample"):
            index.select("train", quarantine=[wrong])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split test: .*train, val"),
        ({"split": "train", "views": ["coronal"]}, r'views coronal: .*axial; set "data.views=\[axial\]"'),
        (
            {"split": "train", "cohorts": ["men"]},
            r'cohorts men: .*; set "data.cohorts=\[gli, met\]", or "data.cohorts=\[\]" for all',
        ),
        ({"split": "train", "min_tumour_fraction": 0.9}, "no sample is left"),
    ],
)
def test_what_the_set_does_not_hold_is_an_error(tmp_path: Path, options: dict, message: str) -> None:
    index = write_set(tmp_path)
    with pytest.raises(DataError, match=message):
        index.select(**options)


def test_fingerprints_tell_sets_and_choices_apart(tmp_path: Path) -> None:
    index = write_set(tmp_path / "a", views=VIEWS)
    assert write_set(tmp_path / "same", views=VIEWS).fingerprint == index.fingerprint
    others = [
        write_set(tmp_path / "b", views=VIEWS, slices=4),
        write_set(tmp_path / "c", views=VIEWS, codec="npy"),
        write_set(tmp_path / "d", views=VIEWS[:2]),
    ]
    assert len({index.fingerprint, *(other.fingerprint for other in others)}) == 4
    choices = [
        index.select("train"),
        index.select("val"),
        index.select("train", ["axial"]),
        index.select("train", cohorts=["gli"]),
        index.select("train", quarantine=[index.select("train").key(0)]),
        index.select("train", quarantine=[index.select("train").key(1)]),
        index.select("train", min_tumour_fraction=0.001),
        others[0].select("train"),
    ]
    assert len({choice.fingerprint for choice in choices}) == len(choices)
    assert index.select("train", VIEWS).fingerprint == choices[0].fingerprint


def large_index(samples: int, per_shard: int, cases: int) -> ShardIndex:
    """An index as half a million real slices would have it."""
    rng = np.random.RandomState(0)
    shards = samples // per_shard
    names = [f"BraTS-GLI-{i:05d}-000" for i in range(cases)]
    table = tuple(CaseEntry(n, "train_gli", "train", n[:-4], True) for n in names)
    header = SetHeader("npy.zst", "int16", 0, VIEWS, {"train": shards}, table, STATISTICS)
    entries = []
    for number in range(shards):
        size = rng.randint(40_000, 90_000, per_shard)
        columns = [
            rng.randint(0, cases, per_shard), rng.randint(0, 3, per_shard), rng.randint(20, 200, per_shard),
            np.cumsum(size + 2048), size, np.maximum(0, rng.randint(-1500, 3000, per_shard)),
        ]  # fmt: skip
        digest = hashlib.sha256(bytes([number % 256])).hexdigest()
        entries.append(
            ShardEntry(f"train-{number:05d}.tar", "train", 65_000_000, digest, np.stack(columns, 1))
        )
    return ShardIndex(header, tuple(entries))


@pytest.mark.slow
def test_half_a_million_samples_stay_small_and_load_fast(tmp_path: Path) -> None:
    written = large_index(500_000, 1_000, 1_500)
    written.save(tmp_path)
    assert (tmp_path / "index.json").stat().st_size < 20e6
    started = time.process_time()
    index = open_shard_set(tmp_path)
    selection = index.select("train", ["axial"])
    # Two seconds on an idle core; the bound leaves room for a busy one.
    assert time.process_time() - started < 6
    assert index.fingerprint == written.fingerprint
    assert len(index) == 500_000 and 160_000 < len(selection) < 174_000


def test_sets_made_before_medians_were_noted_are_read_and_say_so(tmp_path: Path) -> None:
    old = write_set(tmp_path / "old")
    assert "medians" not in old.header.to_dict()["cases"] and old.select("train").medians is None
    table = tuple(replace(case, medians=(i + 1, 20, 30, 40)) for i, case in enumerate(case_table(4, 1)))
    new = write_set(tmp_path / "new", cases=table)
    assert new.header.cases == table and rebuild_index(tmp_path / "new").header.cases == table
    medians = new.select("train").medians
    assert medians is not None and medians.dtype == np.float32
    assert medians[:, 0].tolist() == [1, 2, 3, 4, 5] and (medians[:, 1:] == [20, 30, 40]).all()


def test_the_remedy_for_an_absent_cohort_can_be_copied(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    cases = tuple(replace(case, cohort="Site A, 3T") for case in index.header.cases)
    renamed = replace(index, header=replace(index.header, cases=cases))
    with pytest.raises(DataError) as refused:
        renamed.select("train", cohorts=["train_gli"])
    option = str(refused.value).split('"')[1]
    assert yaml.safe_load(option.removeprefix("data.cohorts=")) == ["Site A, 3T"]
