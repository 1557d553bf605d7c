"""The same command again: after the end, during the first run, and after a kill, which leaves no partial
set."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.common import files
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.common.processes import descendants
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding import staging
from brasyn_dist.data.sharding import write_shards as module
from brasyn_dist.data.sharding.write_shards import make_shards
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.data.case_files import brain, write_case
from tests.data.shard_runs import OPTIONS, contents, expected_slices, read_all, start


def test_a_complete_set_is_left_alone(made, cohorts, caplog):
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    with caplog.at_level("INFO"):
        make_shards(cohorts, made, OPTIONS)
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before
    assert "complete already" in caplog.text


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
    with staging.locked_staging(tmp_path), pytest.raises(DataError, match="another run is writing here"):
        make_shards(cohorts, tmp_path, OPTIONS)


def test_input_edited_after_an_interruption_is_read_again(tmp_path, monkeypatch):
    """Same names and sizes, other content: nothing of the first run may be used."""
    for number in range(3):
        write_case(tmp_path / "gli", f"case-{number}", number, suffix=".nii")
    options = replace(OPTIONS, validation_fraction=0)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_planned_shard", stop)
        make_shards([tmp_path / "gli"], tmp_path / "out", options)
    write_case(tmp_path / "gli", "case-1", 77, suffix=".nii")
    make_shards([tmp_path / "gli"], tmp_path / "out", options)
    np.testing.assert_array_equal(
        read_all(tmp_path / "out")["case-1/axial/014"][1], brain(77)[0]["t1n"][:, :, 14]
    )


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """Run in a forked process that SIGKILLs itself before its `step`th flush to disk.

    False if there are fewer.
    """
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
    """Every file is flushed before its renaming and after: a kill before each of these, and the "
    "same command again."""
    for number in range(2):
        write_case(tmp_path / "gli", f"case-{number}", number)
    options = replace(OPTIONS, views=("axial",), samples_per_shard=30)

    def run(out: Path) -> None:
        make_shards([tmp_path / "gli"], out, options)

    run(tmp_path / "undisturbed")
    truth = contents(tmp_path / "undisturbed")
    step, reused = 1, 0
    while killed_at(step, partial(run, out := tmp_path / f"{step}")):
        if (out / "index.json").exists():
            assert truth.items() <= contents(out).items(), "what looks complete is complete"
        else:
            with pytest.raises(DataError):
                open_shard_set(out)
        reused += any((out / ".work").glob("*.slices.json"))
        run(out)
        assert contents(out) == truth
        step += 1
    assert step > 12 and reused > 5


def test_finished_cases_are_not_encoded_again(cohorts, tmp_path, monkeypatch):
    encoded = []
    real = staging.SliceEncoder.__call__

    def count(encoder, *planes):
        encoded.append(1)
        return real(encoder, *planes)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(staging.SliceEncoder, "__call__", count)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "plan_shards", stop)
        make_shards(cohorts, tmp_path / "out", OPTIONS)
    assert len(encoded) == len(expected_slices())
    make_shards(cohorts, tmp_path / "out", OPTIONS)
    assert len(encoded) == len(expected_slices()), "the second run takes all from the staging folder"


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended before the moment to kill it"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["examining", "encoding"])
def test_the_command_killed_with_its_workers_at_work(made, cohorts, tmp_path, moment):
    """SIGKILL to the command alone: its workers must end by themselves, and the next run must "
    "give the same bytes."""
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
    with pytest.raises(BrasynError, match="a worker process was killed"):
        list(parallel_map("die", die, [1, 2, 3], workers=2))


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
