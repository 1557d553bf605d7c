"""Shards are tar files that others can read, reproducible byte for byte, and describe themselves."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from brasyn_dist.data.format.codec import decode_slice
from brasyn_dist.data.format.metadata import CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import (
    COLUMNS,
    is_shard_name,
    read_shard,
    sample_key,
    shard_name,
    write_shard,
)
from brasyn_dist.errors import DataError
from tests.data.shard_sets import SHAPES, STATISTICS, case_table, encode, truth_by_key, write_set

ODD_NAMES = ("plain", "with space", "Üml.aut", "dots.in.it", "100%", "semi;colon$(x)", "l" * 180)


def odd_cases() -> tuple[CaseEntry, ...]:
    return tuple(CaseEntry(name, "gli", "train", name, True) for name in ODD_NAMES)


def test_payloads_lie_where_the_columns_say(tmp_path: Path) -> None:
    index = write_set(tmp_path, views=("axial", "coronal"))
    truth = truth_by_key(index)
    row = 0
    for shard in index.shards:
        data = (tmp_path / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
        for values in shard.columns:
            sample = dict(zip(COLUMNS, values.tolist()))
            payload = data[sample["offset"] : sample["offset"] + sample["size"]]
            np.testing.assert_array_equal(decode_slice(payload, "npy.zst"), truth.pop(index.key(row)))
            row += 1
    assert not truth


def test_written_twice_is_the_same_bytes(tmp_path: Path) -> None:
    write_set(tmp_path / "a")
    write_set(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "index.json",
        "statistics.json",
        *(f"train-0000{i}.tar" for i in range(3)),
        "val-00000.tar",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_members_have_constant_owner_and_time(tmp_path: Path) -> None:
    write_set(tmp_path)
    with tarfile.open(tmp_path / "train-00000.tar") as tar:
        for member in tar.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_the_bytes_are_those_that_tarfile_writes(tmp_path: Path) -> None:
    """Names of all kinds and lengths, among them 99 to 101 letters, where pax begins."""
    names = (*ODD_NAMES, *("n" * (length - len("/axial/000.json")) for length in (99, 100, 101)))
    cases = tuple(CaseEntry(name, "gli", "train", name, True) for name in names)
    write_set(tmp_path, cases=cases, shards=1, slices=1)
    written, again = tmp_path / "train-00000.tar", tmp_path / "again.tar"
    with tarfile.open(written) as tar:
        with tarfile.open(again, "w", format=tarfile.PAX_FORMAT, pax_headers=tar.pax_headers) as other:
            for member in tar.getmembers():
                plain = tarfile.TarInfo(member.name)
                plain.size = member.size
                other.addfile(plain, tar.extractfile(member))
        lengths = {len(member.name) for member in tar.getmembers()}
    assert {99, 100, 101} <= lengths
    assert written.read_bytes() == again.read_bytes()


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
def test_tar_program_lists_and_extracts_without_warnings(tmp_path: Path) -> None:
    index = write_set(tmp_path / "set", cases=odd_cases(), shards=1, slices=2)
    shard = tmp_path / "set" / "train-00000.tar"
    result = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True)
    keys = [index.key(row) for row in range(len(index))]
    assert result.stdout.split("\n")[:-1] == [f"{k}{end}" for k in keys for end in (".npy.zst", ".json")]
    assert result.stderr == ""
    subprocess.run(["tar", "xf", shard, "-C", tmp_path], check=True)
    assert (tmp_path / f"{keys[0]}.npy.zst").is_file()


@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
def test_stock_webdataset_reads_and_decodes(tmp_path: Path, codec: str) -> None:
    import webdataset

    index = write_set(
        tmp_path, views=("axial", "sagittal"), codec=codec, cases=(*case_table(4), *odd_cases())
    )
    truth = truth_by_key(index)

    def decode(key: str, data: bytes) -> np.ndarray | None:
        if key.endswith(".npy.zst"):
            data = zstandard.decompress(data)
        return np.load(io.BytesIO(data)) if key.endswith((".npy", ".npy.zst")) else None

    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode(decode)
    for sample in dataset:
        expected = truth.pop(sample["__key__"])
        np.testing.assert_array_equal(sample[codec], expected)
        described = sample["json"]
        assert sample_key(described["case"], described["view"], described["index"]) == sample["__key__"]
        assert described["segmentation"] == (len(expected) == 5)
        assert described["tumour_pixels"] == ((expected[4] > 0).sum() if len(expected) == 5 else 0)
        case = next(c for c in index.header.cases if c.name == described["case"])
        assert (described["cohort"], described["split"]) == (case.cohort, case.split)
    assert not truth


def test_keys_are_safe_and_distinct_for_any_case_name() -> None:
    keys = {sample_key(name, "axial", 7) for name in (*ODD_NAMES, "with%20space", "a/b", "../up")}
    assert len(keys) == len(ODD_NAMES) + 3
    for key in keys:
        assert key.count("/") == 2 and key.endswith("/axial/007")
        assert not set(key) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~%/")


def test_shard_names() -> None:
    assert shard_name("train", 3) == "train-00003.tar"
    assert is_shard_name("val-00012.tar")
    for name in (
        "../train-00000.tar",
        "train-0.tar",
        "train-00000.tar; rm x",
        "a b-00000.tar",
        "train-00000.tar\n",
    ):
        assert not is_shard_name(name)
    with pytest.raises(DataError, match="lower-case"):
        shard_name("Train set", 0)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    cases = case_table(2)
    header = SetHeader("npy.zst", "int16", 0, ("axial",), {"train": 1}, cases, STATISTICS)

    def samples() -> object:
        yield encode(cases, 0, "axial", 0, SHAPES, "int16", "npy.zst")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, header, "train", 0, samples())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_without_samples_is_not_written(tmp_path: Path) -> None:
    header = SetHeader("npy.zst", "int16", 0, ("axial",), {"train": 1}, case_table(2), STATISTICS)
    with pytest.raises(DataError, match="at least one sample"):
        write_shard(tmp_path, header, "train", 0, [])
    assert list(tmp_path.iterdir()) == []


def test_read_shard_returns_what_was_written(tmp_path: Path) -> None:
    index = write_set(tmp_path, cases=odd_cases(), shards=2)
    for written in index.shards:
        header, read = read_shard(tmp_path / written.name)
        assert header == index.header
        assert (read.name, read.split, read.size, read.sha256) == (
            written.name, written.split, written.size, written.sha256,
        )  # fmt: skip
        np.testing.assert_array_equal(read.columns, written.columns)


def test_header_survives_json(tmp_path: Path) -> None:
    skipped = [{"case": "X", "cohort": "gli", "reason": "t1c: truncated"}]
    header = SetHeader(
        "npy",
        "int32",
        5,
        ("axial", "coronal"),
        {"val": 1, "train": 2},
        odd_cases(),
        STATISTICS,
        skipped,
        {"a": [1]},
    )
    text = json.dumps(header.to_dict())
    again = SetHeader.from_dict(json.loads(text), "here")
    assert again == header
    assert json.dumps(again.to_dict()) == text


def test_truncated_shards_are_refused_wherever_they_were_cut(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train-00001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        boundary = tar.getmembers()[2].offset
    for length in (0, 100, 512, boundary, boundary + 512, boundary + 700, len(whole) - 10240):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train-00001\.tar: .*restore it"):
            read_shard(path)


def test_damage_to_any_tar_header_is_noticed(tmp_path: Path) -> None:
    write_set(tmp_path, slices=2)
    path = tmp_path / "train-00001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [0, *(member.offset for member in tar.getmembers())]
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset + 3] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            read_shard(path)


def test_damaged_payloads_are_not_vouched_for(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    path, shard = tmp_path / "train-00001.tar", index.shards[1]
    damaged = bytearray(path.read_bytes())
    damaged[shard.columns[2, 3] + shard.columns[2, 4] // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train-00001\.tar: .*npy\.zst: damaged"):
        read_shard(path)


def test_other_tar_files_and_renamed_shards_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-00000.tar").rename(tmp_path / "train-00009.tar")
    with pytest.raises(DataError, match=r"holds shard train-00000\.tar"):
        read_shard(tmp_path / "train-00009.tar")
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        tar.add(tmp_path / "index.json", "a.json")
    with pytest.raises(DataError, match="describes no shard set"):
        read_shard(tmp_path / "train-00000.tar")


def test_later_versions_are_refused_with_both_versions_named() -> None:
    values = {**SetHeader("npy", "int16", 0, ("axial",), {}, (), {}).to_dict(), "version": 3}
    with pytest.raises(DataError, match=r"here: expected .* version 1 or 2, found .* version 3"):
        SetHeader.from_dict(values, "here")


def test_the_description_stays_small_beside_a_thousand_slices() -> None:
    names = [f"BraTS-GLI-{i:05d}-000" for i in range(1500)]
    cases = tuple(CaseEntry(n, "train_gli", "train", n[:-4], True) for n in names)
    header = SetHeader("npy.zst", "int16", 0, ("axial",), {"train": 160}, cases, STATISTICS)
    # A shard of 1,000 slices is about 60 MB.
    assert len(json.dumps(header.to_dict())) < 150_000
