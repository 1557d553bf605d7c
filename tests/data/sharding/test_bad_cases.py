"""Every kind of bad case: found, reported with file and reason, and left out only with --skip-bad."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.data.case_folders import cohort_name, find_cohorts, input_hash, modified_hash
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import DataError
from tests.data.case_files import LPS, NAMES_2021, SHAPE, brain, save, write_case

OPTIONS = ShardOptions(views=("axial",), minimum_foreground=50, validation_fraction=0)
Damage = Callable[[Path], object]
"""Makes a bad case of the good one in this folder (.../cohort/bad)."""


def file(folder: Path, kind: str) -> Path:
    return folder / f"bad-{kind}.nii.gz"


def cut(folder: Path) -> None:
    whole = file(folder, "t2w").read_bytes()
    file(folder, "t2w").write_bytes(whole[: len(whole) // 2])


def with_value(kind: str, value: float) -> Damage:
    """One voxel of the case's volume of this kind gets the value."""

    def damage(folder: Path) -> None:
        images, labels = brain(0)
        array = (labels if kind == "seg" else images[kind]).astype(np.float64)
        array[3, 4, 5] = value
        save(file(folder, kind), array, dtype=np.float32)

    return damage


def shifted(folder: Path) -> None:
    affine = LPS.copy()
    affine[0, 3] += 1
    save(file(folder, "t2f"), brain(0)[0]["t2f"], affine)


def mixed(folder: Path) -> None:
    file(folder, "t2f").rename(folder / "other-t2f.nii.gz")


BAD: dict[str, tuple[Damage, str]] = {
    "a modality is missing": (lambda f: file(f, "t1n").unlink(), "bad: no volume for t1n"),
    "shapes differ": (lambda f: save(file(f, "t2f"), np.ones((8, 9, 10))), "bad/bad-t2f.nii.gz: shape"),
    "the segmentation's shape differs": (
        lambda f: save(file(f, "seg"), np.ones((8, 9, 10))), "bad/bad-seg.nii.gz: shape",
    ),
    "affines differ": (shifted, "bad/bad-t2f.nii.gz: affine"),
    "NaN": (with_value("t1c", np.nan), "bad/bad-t1c.nii.gz: NaN or infinity in 1 of"),
    "infinity": (with_value("t2w", np.inf), "bad/bad-t2w.nii.gz: NaN or infinity in 1 of"),
    "fractions": (with_value("t1n", 0.5), "bad/bad-t1n.nii.gz: intensities are not whole numbers"),
    "truncated gzip": (cut, "bad/bad-t2w.nii.gz: truncated or damaged"),
    "no NIfTI": (
        lambda f: file(f, "t1c").write_bytes(gzip.compress(b"hello" * 99)), "bad/bad-t1c.nii.gz: not a NIfTI",
    ),
    "unknown labels": (with_value("seg", 7), "bad/bad-seg.nii.gz: unknown labels"),
    "empty brain": (lambda f: save(file(f, "t2f"), np.zeros(SHAPE)), "bad/bad-t2f.nii.gz: empty brain"),
    "only negative voxels": (
        lambda f: save(file(f, "t2f"), np.full(SHAPE, -3)), "bad/bad-t2f.nii.gz: empty brain",
    ),
    "two files for a modality": (
        lambda f: shutil.copy(file(f, "t1c"), f / "bad_t1ce.nii.gz"), "bad: two files for t1c",
    ),
    "files of two cases": (mixed, "bad: files of different cases: bad, other"),
    "slices too large": (
        lambda f: [save(file(f, m), np.ones((241, 3, 3))) for m in ("t1c", "t1n", "t2f", "t2w", "seg")],
        "bad: axial slices: a slice of 241 pixels",
    ),
}  # fmt: skip


def cohort(tmp_path: Path) -> Path:
    """Two good cases and one that is to become bad."""
    for number, name in enumerate(("bad", "good-1", "good-2")):
        write_case(tmp_path / "gli", name, number)
    return tmp_path / "gli"


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_of_bad_case(tmp_path, caplog, kind):
    damage, message = BAD[kind]
    root, out = cohort(tmp_path), tmp_path / "shards"
    damage(root / "bad")
    with pytest.raises(DataError) as raised:
        make_shards([root], out, OPTIONS)
    text = str(raised.value)
    assert text.startswith("1 bad case, nothing was written") and "--skip-bad" in text
    assert f"{root}/{message}" in text
    assert not out.exists(), "nothing may be written"

    with caplog.at_level("INFO"):
        index = make_shards([root], out, OPTIONS, skip_bad=True)
    assert [c.name for c in index.header.cases] == ["good-1", "good-2"]
    (skipped,) = index.header.skipped
    assert (skipped["case"], skipped["cohort"]) == ("bad", "gli")
    assert message.split("/")[-1].partition(":")[2] in skipped["reason"]
    assert str(tmp_path) not in skipped["reason"], "a set must not depend on where its input lay"
    assert caplog.messages[-1].splitlines()[-1].startswith("left out: gli/bad")
    assert open_shard_set(out).header.skipped == index.header.skipped


def test_two_cases_of_one_name(tmp_path):
    for root in ("gli", "met"):
        write_case(tmp_path / root, "twin", 1)
        write_case(tmp_path / root, f"only-{root}", 2)
    roots, out = [tmp_path / "gli", tmp_path / "met"], tmp_path / "shards"
    with pytest.raises(DataError) as raised:
        make_shards(roots, out, OPTIONS)
    assert f"{tmp_path}/gli/twin: met/twin has this name too" in str(raised.value)
    assert f"{tmp_path}/met/twin: gli/twin has this name too" in str(raised.value)
    index = make_shards(roots, out, OPTIONS, skip_bad=True)
    assert [c.name for c in index.header.cases] == ["only-gli", "only-met"]
    assert [s["cohort"] for s in index.header.skipped] == ["gli", "met"]


def test_all_bad_cases_come_in_one_message(tmp_path):
    root = cohort(tmp_path)
    for kind in ("NaN", "truncated gzip"):  # two things wrong with one case
        BAD[kind][0](root / "bad")
    (root / "good-1" / "good-1-seg.nii.gz").write_bytes(b"nothing")
    shutil.copytree(root / "good-2", root / "later")
    for path in sorted((root / "later").iterdir()):
        path.rename(path.with_name(path.name.replace("good-2", "later")))
    (root / "later" / "later-t1c.nii.gz").unlink()
    with pytest.raises(DataError) as raised:
        make_shards([root], tmp_path / "shards", OPTIONS)
    text = str(raised.value)
    assert text.startswith("3 bad cases")
    for part in (
        "bad-t1c.nii.gz: NaN or infinity in 1 of",
        "bad-t2w.nii.gz: truncated",
        "good-1-seg.nii.gz: not a NIfTI",
        "t1c",
    ):
        assert part in text


def test_folders_without_cases(tmp_path):
    (tmp_path / "empty" / "case").mkdir(parents=True)
    (tmp_path / "empty" / "case" / "notes.txt").write_text("no volumes here")
    with pytest.raises(DataError, match="empty: no BraTS case found"):
        make_shards([tmp_path / "empty"], tmp_path / "shards", OPTIONS)
    with pytest.raises(DataError, match="absent: no such folder"):
        make_shards([tmp_path / "absent"], tmp_path / "shards", OPTIONS)


def test_editions_mix_and_cohorts_are_recorded(tmp_path):
    write_case(tmp_path / "a", "new", 0)
    write_case(tmp_path / "b", "old", 1, names=NAMES_2021, suffix=".nii", enhancing=4)
    (tmp_path / "named_by_link").symlink_to(tmp_path / "b")
    cases, problems = find_cohorts([tmp_path / "a", tmp_path / "named_by_link"])
    assert not problems
    assert [(c.name, c.cohort) for c in cases] == [("new", "a"), ("old", "named_by_link")]
    assert cohort_name(tmp_path / "a" / "..") == tmp_path.name


def test_hashes_tell_inputs_apart(tmp_path):
    write_case(tmp_path / "a", "one", 0)
    first = find_cohorts([tmp_path / "a"])[0]
    hashes = input_hash(first), modified_hash(first)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "a")
    assert input_hash(find_cohorts([tmp_path / "elsewhere" / "a"])[0]) == hashes[0], (
        "independent of the place"
    )
    (tmp_path / "a" / "one" / "one-t1c.nii.gz").touch()
    assert modified_hash(first) != hashes[1]
    write_case(tmp_path / "a", "two", 1)
    assert input_hash(find_cohorts([tmp_path / "a"])[0]) != hashes[0]
