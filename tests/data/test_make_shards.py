"""Whole shard sets: what is in them, that nothing but the input decides their bytes, and that no kill leaves half of one."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist import files
from brasyn_dist.brats import VIEWS
from brasyn_dist.data import make_shards as module
from brasyn_dist.data import spool
from brasyn_dist.data.codec import decode_slice
from brasyn_dist.data.index import ShardIndex, rebuild_index
from brasyn_dist.data.make_shards import ShardOptions, make_shards
from brasyn_dist.data.statistics import PUBLISHED, Statistics
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.processes import descendants
from tests.conftest import REPOSITORY
from tests.data.case_files import MODALITIES, NAMES_2021, brain, write_case

OPTIONS = ShardOptions(seed=5, validation_fraction=0.25, minimum_foreground=300, samples_per_shard=40)
SEEDS = {
    "BraTS-GLI-00000-000": 0, "BraTS-GLI-00000-001": 1, "BraTS-GLI-00001-000": 2, "BraTS-GLI-00002-000": 3,
    "BraTS-MET-00000-000": 4, "BraTS-MET-00001-000": 5,
}  # fmt: skip
UNLABELLED = "BraTS-MET-00001-000"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> list[Path]:
    """Six cases of five patients in two cohorts, one without segmentation."""
    root = tmp_path_factory.mktemp("cohorts")
    for name, seed in SEEDS.items():
        folder = root / ("train_gli" if "GLI" in name else "train_met")
        write_case(folder, name, seed, segmentation=name != UNLABELLED)
    return [root / "train_gli", root / "train_met"]


@pytest.fixture(scope="module")
def made(cohorts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "shards"
    make_shards(cohorts, out, OPTIONS)
    return out


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too, by its path."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def expected_slices() -> dict[str, np.ndarray]:
    """Key -> planes of all slices that belong into the set, straight from the arrays that the cases were written from."""
    found = {}
    for name, seed in SEEDS.items():
        images, labels = brain(seed)
        planes = np.stack([images[m] for m in MODALITIES] + ([labels] if name != UNLABELLED else [])).astype(
            np.int16
        )
        for view, axis in (("axial", 3), ("sagittal", 1), ("coronal", 2)):
            for k in range(planes.shape[axis]):
                cut = planes.take(k, axis)
                if min((plane > 0).sum() for plane in cut[:4]) >= 300:
                    found[f"{name}/{view}/{k:03d}"] = cut
    return found


def read_all(folder: Path) -> dict[str, np.ndarray]:
    index = ShardIndex.load(folder)
    found = {}
    for row in range(len(index)):
        column = {name: int(values[row]) for name, values in index.columns.items()}
        with (folder / index.shards[column["shard"]].name).open("rb") as file:
            file.seek(column["offset"])
            found[index.key(row)] = decode_slice(file.read(column["size"]), index.header.codec)
    return found


def test_every_slice_is_stored_once_and_losslessly(made):
    found, expected = read_all(made), expected_slices()
    assert found.keys() == expected.keys()
    for key, planes in expected.items():
        assert found[key].dtype == np.int16
        np.testing.assert_array_equal(found[key], planes)
    assert len(found[f"{UNLABELLED}/axial/014"]) == 4, "an absent segmentation is absent, not zeros"


def test_statistics_are_those_of_the_training_voxels(made):
    index = ShardIndex.load(made)
    training = [c.name for c in index.header.cases if c.split == "train"]
    statistics = Statistics.load(made / "statistics.json")
    assert statistics.cases == len(training) == statistics.from_dict(index.header.statistics).cases
    for number, modality in enumerate(MODALITIES):
        volumes = [brain(SEEDS[name])[0][modality] for name in training]
        voxels = np.concatenate([v[v > 0] for v in volumes]).astype(float)
        clip_max = np.percentile(voxels, 99.5)
        clipped = np.minimum(voxels, clip_max)
        found = [statistics.column(c)[number] for c in ("clip_max", "mean", "std", "voxels")]
        assert found == pytest.approx([clip_max, clipped.mean(), clipped.std(), len(voxels)], rel=1e-12)


def test_the_medians_of_every_case_are_noted(made):
    for case in ShardIndex.load(made).header.cases:
        volumes = [brain(SEEDS[case.name])[0][modality] for modality in MODALITIES]
        assert case.medians == tuple(int(np.percentile(v[v > 0], 50, method="lower")) for v in volumes)


def test_patients_are_not_cut_and_cohorts_recorded(made):
    index = ShardIndex.load(made)
    splits = {c.name: c.split for c in index.header.cases}
    assert splits["BraTS-GLI-00000-000"] == splits["BraTS-GLI-00000-001"]
    assert {c.cohort for c in index.header.cases if c.split == "val"} == {"train_gli", "train_met"}
    assert all(c.cohort == ("train_gli" if "GLI" in c.name else "train_met") for c in index.header.cases)
    assert [c.name for c in index.header.cases if not c.segmentation] == [UNLABELLED]


def test_tumour_pixels_are_counted(made):
    index, expected = ShardIndex.load(made), expected_slices()
    for row in range(len(index)):
        planes = expected[index.key(row)]
        assert index.columns["tumour_pixels"][row] == ((planes[4] > 0).sum() if len(planes) == 5 else 0)


def test_a_sequential_reader_gets_mixed_patients_and_views(made):
    index = ShardIndex.load(made)
    training = sum(c.split == "train" for c in index.header.cases)
    for shard in index.shards:
        if shard.split == "train" and len(shard) == OPTIONS.samples_per_shard:
            first = shard.columns[:20]
            assert len(set(first[:, 0])) >= training - 1
            assert len(set(first[:, 1])) == len(VIEWS)
    sizes = [len(s) for s in index.shards if s.split == "train"]
    assert set(sizes[:-1]) == {40} and 0 < sizes[-1] <= 40


def test_any_number_of_workers_writes_the_same_bytes(made, cohorts, tmp_path):
    make_shards(cohorts, tmp_path / "three", OPTIONS, workers=3)
    assert contents(tmp_path / "three") == contents(made)


def test_place_and_order_of_the_cohorts_do_not_matter(made, cohorts, tmp_path):
    for cohort in cohorts:
        shutil.copytree(cohort, tmp_path / cohort.name)
    make_shards([tmp_path / "train_met", tmp_path / "train_gli"], tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(made)


def test_another_seed_gives_another_order(made, cohorts, tmp_path):
    index = make_shards(cohorts, tmp_path / "out", replace(OPTIONS, seed=6))
    assert [index.key(i) for i in range(9)] != [ShardIndex.load(made).key(i) for i in range(9)]


@pytest.mark.parametrize(
    "form", [{"ras": True}, {"names": NAMES_2021, "enhancing": 4}, {"suffix": ".nii"}, {"dtype": np.float32}]
)
def test_the_same_brain_gives_the_same_shards(tmp_path, form):
    """RAS order, old names and labels, no compression, float headers."""
    out = {}
    for kind, how in (("plain", {}), ("other", form)):
        for number in range(2):
            write_case(tmp_path / kind / "gli", f"case-{number}", number, **how)
        out[kind] = make_shards([tmp_path / kind / "gli"], tmp_path / f"{kind}-shards", OPTIONS)
    assert read_all(tmp_path / "plain-shards").keys() == read_all(tmp_path / "other-shards").keys()
    for one, other in zip(out["plain"].shards, out["other"].shards, strict=True):
        np.testing.assert_array_equal(one.columns[:, :3], other.columns[:, :3])
    first, second = read_all(tmp_path / "plain-shards"), read_all(tmp_path / "other-shards")
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert out["plain"].header.statistics == out["other"].header.statistics


def test_tar_and_webdataset_read_the_set(made):
    import webdataset

    expected = expected_slices()
    listed = []
    for path in sorted(made.glob("train-*.tar")):
        done = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
        listed += done.stdout.split()
    stored = webdataset.WebDataset([str(p) for p in sorted(made.glob("train-*.tar"))], shardshuffle=False)
    keys = []
    for sample in stored:
        keys.append(sample["__key__"])
        np.testing.assert_array_equal(decode_slice(sample["npy.zst"], "npy.zst"), expected[keys[-1]])
    assert listed == [f"{key}.{kind}" for key in keys for kind in ("npy.zst", "json")]
    training = {c.name for c in ShardIndex.load(made).header.cases if c.split == "train"}
    assert sorted(keys) == sorted(key for key in expected if key.split("/")[0] in training)


def test_the_index_is_rebuilt_from_the_tars(made, tmp_path):
    for path in made.glob("*.tar"):
        shutil.copy(path, tmp_path)
    rebuild_index(tmp_path).save(tmp_path)
    assert contents(tmp_path) == contents(made)


def test_one_value_beyond_int16_makes_the_set_int32(tmp_path):
    import nibabel

    folder = write_case(tmp_path / "gli", "wide", 0)
    image = nibabel.load(folder / "wide-t1c.nii.gz")
    array = np.asarray(image.dataobj).astype(np.int32)
    array[18, 20, 14] = 40_000
    nibabel.save(nibabel.Nifti1Image(array, image.affine), folder / "wide-t1c.nii.gz")
    index = make_shards([tmp_path / "gli"], tmp_path / "out", replace(OPTIONS, validation_fraction=0))
    assert index.header.dtype == "int32"
    assert read_all(tmp_path / "out")["wide/axial/014"][0, 18, 20] == 40_000


def test_given_statistics_and_split_are_used(cohorts, tmp_path):
    options = replace(OPTIONS, validation_cases=("BraTS-GLI-00000-001", "BraTS-MET-00000-000"))
    index = make_shards(cohorts, tmp_path / "out", options, statistics=PUBLISHED)
    assert Statistics.load(tmp_path / "out" / "statistics.json") == PUBLISHED
    held_out = {c.name for c in index.header.cases if c.split == "val"}
    assert held_out == {"BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-MET-00000-000"}
    with pytest.raises(DataError, match="no case or patient is called BraTS-GLI-9"):
        make_shards(cohorts, tmp_path / "other", replace(OPTIONS, validation_cases=("BraTS-GLI-9",)))


def test_bad_cases_leave_no_trace_in_split_and_statistics(cohorts, tmp_path):
    """Left out by --skip-bad or never there: the same split, statistics and slices."""
    good = tmp_path / "good" / "gli"
    for number in range(9):
        write_case(good, f"case-{number}", number)
    some_bad = tmp_path / "some" / "gli"
    shutil.copytree(good, some_bad)
    for number in range(9, 14):
        (write_case(some_bad, f"case-{number}", number) / f"case-{number}-t1c.nii.gz").write_bytes(b"bad")
    options = replace(OPTIONS, validation_fraction=0.3, views=("axial",))
    one = make_shards([good], tmp_path / "a", options)
    other = make_shards([some_bad], tmp_path / "b", options, skip_bad=True)
    assert len(other.header.skipped) == 5
    assert one.header.cases == other.header.cases
    assert one.header.statistics == other.header.statistics
    assert list(read_all(tmp_path / "a")) == list(read_all(tmp_path / "b"))


def test_no_slice_is_large_enough(cohorts, tmp_path):
    with pytest.raises(DataError, match="no training slice has 5000 foreground pixels"):
        make_shards(cohorts, tmp_path / "out", replace(OPTIONS, minimum_foreground=5000))
    with pytest.raises(DataError):
        ShardIndex.load(tmp_path / "out")


@pytest.mark.parametrize(
    "changed", [{"views": ("axial", "axial")}, {"views": ()}, {"samples_per_shard": 0}, {"codec": "zip"}]
)
def test_impossible_options(changed):
    with pytest.raises(DataError):
        replace(OPTIONS, **changed)


# ---- run again


def test_a_complete_set_is_left_alone(made, cohorts, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    make_shards(cohorts, made, OPTIONS)
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before
    assert "complete already" in capsys.readouterr().out


def test_other_settings_are_refused_by_name(made, cohorts):
    before = contents(made)
    with pytest.raises(
        DataError, match=r"made otherwise \(seed: there 5, here 9; codec: .*\)\. Choose another --out"
    ):
        make_shards(cohorts, made, replace(OPTIONS, seed=9, codec="npy"))
    with pytest.raises(DataError, match=r"made otherwise \(input: "):
        make_shards(cohorts[:1], made, OPTIONS)
    with pytest.raises(DataError, match=r"made otherwise \(statistics: there 'computed'"):
        make_shards(cohorts, made, OPTIONS, statistics=PUBLISHED)
    assert contents(made) == before


def test_a_complete_set_that_lost_a_shard_is_not_complete(made, cohorts, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    (tmp_path / "out" / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"train-00001\.tar: missing"):
        make_shards(cohorts, tmp_path / "out", OPTIONS)


def test_a_set_without_bad_cases_must_be_asked_for_again(tmp_path):
    write_case(tmp_path / "gli", "good", 0)
    (write_case(tmp_path / "gli", "worse", 1) / "worse-t1c.nii.gz").write_bytes(b"bad")
    make_shards([tmp_path / "gli"], tmp_path / "out", OPTIONS, skip_bad=True)
    make_shards([tmp_path / "gli"], tmp_path / "out", OPTIONS, skip_bad=True)
    with pytest.raises(DataError, match="without 1 bad cases"):
        make_shards([tmp_path / "gli"], tmp_path / "out", OPTIONS)


def test_shards_of_unknown_origin_are_not_deleted(made, cohorts, tmp_path):
    shutil.copy(made / "train-00000.tar", tmp_path / "train-00000.tar")
    with pytest.raises(DataError, match=r"holds train-00000\.tar without an index\.json; rebuild that"):
        make_shards(cohorts, tmp_path, OPTIONS)
    assert (tmp_path / "train-00000.tar").exists()


def test_a_second_run_at_the_same_time_is_refused(cohorts, tmp_path):
    with spool.locked_work(tmp_path), pytest.raises(DataError, match="another run is writing here"):
        make_shards(cohorts, tmp_path, OPTIONS)


def test_input_edited_after_an_interruption_is_read_again(tmp_path, monkeypatch):
    """Same names and sizes, other content: nothing of the first run may be used."""
    for number in range(3):
        write_case(tmp_path / "gli", f"case-{number}", number, suffix=".nii")
    options = replace(OPTIONS, validation_fraction=0)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "gather_shard", stop)
        make_shards([tmp_path / "gli"], tmp_path / "out", options)
    write_case(tmp_path / "gli", "case-1", 77, suffix=".nii")
    make_shards([tmp_path / "gli"], tmp_path / "out", options)
    np.testing.assert_array_equal(
        read_all(tmp_path / "out")["case-1/axial/014"][1], brain(77)[0]["t1n"][:, :, 14]
    )


# ---- killed


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """Run in a forked process that SIGKILLs itself before its `step`th flush to disk. False if there are fewer."""
    child = os.fork()
    if child == 0:
        flushes = 0

        def fsync(path: Path, really=files.fsync) -> None:
            nonlocal flushes
            flushes += 1
            if flushes == step:
                os.kill(os.getpid(), signal.SIGKILL)
            really(path)

        files.fsync = fsync
        try:
            run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_killed_at_any_write_and_run_again(tmp_path):
    """Every file is flushed before its renaming and after: a kill before each of these, and the same command again."""
    for number in range(2):
        write_case(tmp_path / "gli", f"case-{number}", number)
    options = replace(OPTIONS, views=("axial",), samples_per_shard=30)

    def run(out: Path) -> None:
        make_shards([tmp_path / "gli"], out, options, say=lambda _: None)

    run(tmp_path / "undisturbed")
    truth = contents(tmp_path / "undisturbed")
    step, reused = 1, 0
    while killed_at(step, partial(run, out := tmp_path / f"{step}")):
        if (out / "index.json").exists():
            assert truth.items() <= contents(out).items(), "what looks complete is complete"
        else:
            with pytest.raises(DataError):
                ShardIndex.load(out)
        reused += any((out / ".work").glob("*.slices.json"))
        run(out)
        assert contents(out) == truth
        step += 1
    assert step > 12 and reused > 5


def test_finished_cases_are_not_encoded_again(cohorts, tmp_path, monkeypatch):
    encoded = []
    real = spool.SliceEncoder.__call__

    def count(encoder, *planes):
        encoded.append(1)
        return real(encoder, *planes)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(spool.SliceEncoder, "__call__", count)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "plan_shards", stop)
        make_shards(cohorts, tmp_path / "out", OPTIONS)
    assert len(encoded) == len(expected_slices())
    make_shards(cohorts, tmp_path / "out", OPTIONS)
    assert len(encoded) == len(expected_slices()), "the second run takes all from the spool"


COMMAND = [sys.executable, str(REPOSITORY / "tools" / "shard_dataset.py")]
ARGUMENTS = [
    "--seed", "5", "--validation-fraction", "0.25", "--minimum-foreground", "300", "--samples-per-shard", "40",
]  # fmt: skip


def start(cohorts: list[Path], out: Path, *more: str, **how) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    arguments = [*map(str, cohorts), "--out", str(out), *ARGUMENTS, *more]
    return subprocess.Popen([*COMMAND, *arguments], env=environment, text=True, **how)


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended before the moment to kill it"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["examining", "encoding"])
def test_the_command_killed_with_its_workers_at_work(made, cohorts, tmp_path, moment):
    """SIGKILL to the command alone: its workers must end by themselves, and the next run must give the same bytes."""
    out = tmp_path / "out"
    process = start(cohorts, out, "--workers", "2", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if moment == "examining":
        wait_until(
            lambda: len(descendants(process.pid)) >= 3, process
        )  # two workers and multiprocessing's tracker
    else:
        wait_until(lambda: any((out / ".work").glob("*.blob")), process)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)
    assert not (out / "index.json").exists()
    assert start(cohorts, out, "--workers", "2").wait() == 0
    assert contents(out) == contents(made)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_that_is_killed_is_reported(cohorts, tmp_path):
    from brasyn_dist.data.workers import worker_pool

    with worker_pool(2) as pool, pytest.raises(BrasynError, match="a worker process was killed"):
        list(pool.run("die", die, [1, 2, 3]))


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- the command line


def test_command_line(made, cohorts, tmp_path):
    done = start(cohorts, tmp_path / "out", "--workers", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert contents(tmp_path / "out") == contents(made)
    assert "encode: 6/6" in err and "\r" not in err, "plain lines where there is no terminal"
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["cohort", "split", "cases", "unlabelled", "axial", "sagittal", "coronal", "MB"]
    per_view = {v: sum(f"/{v}/" in key for key in expected_slices()) for v in VIEWS}
    assert rows[5][:6] == ["all", "6", "1", *(str(per_view[v]) for v in VIEWS)]
    assert [row[:2] for row in rows[1:5]] == [
        [c, s] for c in ("train_gli", "train_met") for s in ("train", "val")
    ]


def test_command_line_with_a_bad_case(tmp_path, capsys):
    from tools.shard_dataset import main

    write_case(tmp_path / "gli", "good", 0)
    (write_case(tmp_path / "gli", "worse", 1) / "worse-t1c.nii.gz").write_bytes(b"bad")
    arguments = [str(tmp_path / "gli"), "--out", str(tmp_path / "out"), *ARGUMENTS, "--workers", "1"]
    assert main(arguments) == 1
    assert "worse-t1c.nii.gz: not a NIfTI file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--skip-bad"]) == 0
    assert "left out: gli/worse" in capsys.readouterr().out
    (tmp_path / "out" / "index.json").unlink()
    assert main(["--rebuild-index", str(tmp_path / "out")]) == 0
    assert "left out: gli/worse" in capsys.readouterr().out
    ShardIndex.load(tmp_path / "out")


def test_command_line_with_a_split_file_and_published_statistics(cohorts, tmp_path):
    from tools.shard_dataset import main

    (tmp_path / "split.txt").write_text("BraTS-GLI-00001\n")
    assert main([
        *map(str, cohorts), "--out", str(tmp_path / "out"), "--split", str(tmp_path / "split.txt"), "--statistics", "published",
        "--minimum-foreground", "300", "--workers", "1", "--views", "coronal",
    ]) == 0  # fmt: skip
    index = ShardIndex.load(tmp_path / "out")
    assert [c.name for c in index.header.cases if c.split == "val"] == ["BraTS-GLI-00001-000"]
    assert index.header.statistics == PUBLISHED.to_dict()
    assert index.header.views == ("coronal",)
