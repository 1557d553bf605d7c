"""After every fault the run continues bit-identically, or it stops with a clear message and intact checkpoints.

Each test applies one fault to a run of two processes, removes it and gives the same command again.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brasyn_dist.training.checkpoint import newest_intact
from tests.distributed.drill import drill
from tests.distributed.faults import PATIENCE, output, remount, small_disk, train
from tests.distributed.launch import command, final_state, kill, logged_step, wait_until
from tests.distributed.warm import WarmRun
from tests.small import small_shard_set

pytestmark = pytest.mark.slow

STEPS = 9


@pytest.fixture(scope="module")
def shards(work: Path) -> Path:
    return small_shard_set(work / "shards")


def options(shards: Path, runs: Path, name: str, *more: str) -> tuple[str, ...]:
    return (
        f"data.shards={shards}", f"training.max_steps={STEPS}", "checkpoint.every_steps=2", "validation.every_steps=0",
        "telemetry.log_every=1", f"runs_dir={runs}", f"name={name}", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(work: Path, shards: Path) -> dict[str, bytes]:
    """Final bytes of an undisturbed run."""
    assert train(options(shards, work / "runs", "undisturbed"), work / "undisturbed.log") == 0
    return final_state(work / "runs/undisturbed", STEPS)


def test_a_kill_of_each_kind_ends_bit_identical(work: Path):
    hits = drill(work / "drill", kills=6, seed=1, steps=18)
    assert set(hits.values()) == {1}


def test_stopped_rank_is_named_with_all_stacks_before_the_collective_timeout(
    work: Path, shards: Path, expected: dict[str, bytes]
):
    """SIGSTOP: the other rank writes its stack and the silent rank, then ends; the same command continues."""
    log, run_dir = work / "stopped.log", work / "runs/stopped"
    wanted = options(shards, work / "runs", "stopped")
    # Long enough for two ranks to start on a busy machine.
    process = WarmRun((*wanted, "runtime.collective_timeout_minutes=0.7", "runtime.hang_minutes=0.2"), log)
    assert wait_until(process, lambda: logged_step(run_dir) >= 3, log, PATIENCE)
    victim = process_of_rank(run_dir, 1)
    os.kill(victim, signal.SIGSTOP)
    try:
        assert wait_until(process, lambda: "no answer from another rank" in log.read_text(), log, PATIENCE)
    finally:
        kill(process)  # torchrun does it after half a minute
    text = log.read_text()
    assert "Traceback" not in text
    silent = f"rank 1 (process {victim} on {os.uname().nodename}) does not answer: stopped by a signal"
    assert text.index(silent) < text.index("rank 0: no answer from another rank")
    stacks = (run_dir / "logs/rank-0.log").read_text()
    assert "made no progress for" in stacks and 'watchdog.py", line' in stacks
    assert re.search(r"Current thread|Thread 0x", stacks) and 'trainer.py", line' in stacks
    assert train(wanted, log) == 0, log.read_text()[-4000:]
    assert final_state(run_dir, STEPS) == expected


def process_of_rank(run_dir: Path, rank: int) -> int:
    starts = re.findall(rf"rank {rank} \(process (\d+) on", (run_dir / f"logs/rank-{rank}.log").read_text())
    return int(starts[-1])


def test_full_disk_during_a_save_stops_all_ranks_and_keeps_what_was_saved(
    work: Path, shards: Path, expected: dict[str, bytes]
):
    log = work / "full.log"
    # A checkpoint takes 17 MB: two fit, and a part of the third.
    with small_disk(work / "full", 45) as disk:
        wanted = options(shards, disk, "run")
        text = output(wanted, log)
        assert "No space left on device" in text and "earlier checkpoints are untouched" in text
        assert "rank 1: stops, since rank 0 could not save" in text or "no answer from another rank" in text
        found, passed_over = newest_intact(disk / "run/checkpoints")
        assert found is not None and not passed_over
        assert not list((disk / "run/checkpoints").glob(".tmp-*"))
        remount(disk, "size=200m")
        assert train(wanted, log) == 0, log.read_text()[-4000:]
        assert final_state(disk / "run", STEPS) == expected


def test_read_only_run_folder_is_refused_at_once(work: Path, shards: Path, expected: dict[str, bytes]):
    log = work / "read-only.log"
    with small_disk(work / "read-only", 200) as disk:
        wanted = options(shards, disk, "run")
        process = WarmRun(wanted, log)
        assert wait_until(process, lambda: logged_step(disk / "run") >= 3, log, PATIENCE)
        kill(process)
        remount(disk, "ro")
        before = newest_intact(disk / "run/checkpoints")[0]
        text = output(wanted, log)
        assert "Read-only file system" in text and str(disk / "run") in text
        assert newest_intact(disk / "run/checkpoints")[0] == before
        remount(disk, "rw")
        assert train(wanted, log) == 0, log.read_text()[-4000:]
        assert final_state(disk / "run", STEPS) == expected


def damage(shard: Path, kind: str) -> None:
    data = bytearray(shard.read_bytes())
    if kind == "deleted":
        shard.unlink()
    elif kind == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    else:
        # A bit in the middle of every 512-byte block: wherever the samples lie, they are hit.
        for position in range(256, len(data), 512):
            data[position] ^= 0x10
        shard.write_bytes(data)


@pytest.mark.parametrize("kind", ["deleted", "truncated", "flipped"])
def test_damaged_shard_is_named_and_once_restored_the_run_continues(
    work: Path, shards: Path, expected: dict[str, bytes], kind: str
):
    """All training shards of a copy are damaged half-way: one of two ranks may be the first to notice."""
    log, copy = work / f"{kind}.log", work / f"shards-{kind}"
    shutil.copytree(shards, copy)
    wanted = options(copy, work / "runs", f"shard-{kind}")
    run_dir = work / f"runs/shard-{kind}"
    process = WarmRun(wanted, log)
    saved = lambda: newest_intact(run_dir / "checkpoints")[0] is not None  # noqa: E731
    assert wait_until(process, lambda: logged_step(run_dir) >= 3 and saved(), log, PATIENCE)
    kill(process)
    for shard in copy.glob("train-*.tar"):
        damage(shard, kind)
    text = output(wanted, log)
    assert re.search(r"error: cannot read sample \S+ at byte \d+ of train-\S+\.tar: ", text), text[-3000:]
    assert "Restore the shard" in text
    assert newest_intact(run_dir / "checkpoints")[0] is not None
    for shard in shards.glob("train-*.tar"):
        shutil.copy(shard, copy / shard.name)
    assert train(wanted, log) == 0, log.read_text()[-4000:]
    assert final_state(run_dir, STEPS) == expected


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    work: Path, shards: Path, expected: dict[str, bytes], kind: str
):
    run_dir, log = work / f"runs/checkpoint-{kind}", work / f"checkpoint-{kind}.log"
    shutil.copytree(work / "runs/undisturbed", run_dir)
    newest = run_dir / f"checkpoints/step-{STEPS:08d}/generator.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 1
    newest.write_bytes(data if kind == "flipped" else data[:-100])
    assert train(options(shards, work / "runs", run_dir.name), log) == 0, log.read_text()[-4000:]
    assert "passed over a damaged checkpoint" in log.read_text() and newest.name in log.read_text()
    assert final_state(run_dir, STEPS) == expected


CLOCK = """
import itertools, time
_real, _calls = time.time, itertools.count()
# Every look at the wall clock finds it elsewhere: a day ahead, a day behind, ten years back.
time.time = lambda: _real() + (86400.0, -86400.0, -3.2e8)[next(_calls) % 3]
"""


def test_jumping_wall_clock_changes_nothing(work: Path, shards: Path, expected: dict[str, bytes]):
    """Python's `time.time` jumps in launcher and ranks; nothing is saved too often, too rarely or otherwise."""
    (work / "clock").mkdir()
    (work / "clock/sitecustomize.py").write_text(CLOCK)
    log, run_dir = work / "clock.log", work / "runs/clock"
    arguments = command(
        options(shards, work / "runs", "clock", "checkpoint.every_steps=1000", "checkpoint.every_minutes=60")
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{work / 'clock'}{os.pathsep}{Path(__file__).parents[2]}",
    }
    probe = [sys.executable, "-c", "import time; print(abs(time.time() - time.time()) > 80000)"]
    assert subprocess.run(probe, env=environment, capture_output=True, text=True).stdout == "True\n"
    with log.open("ab") as file:
        assert (
            subprocess.run(arguments, env=environment, stdout=file, stderr=file, timeout=PATIENCE).returncode
            == 0
        ), log.read_text()[-4000:]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    assert final_state(run_dir, STEPS) == expected


def test_measuring_changes_no_bit_on_three_processes(work: Path, shards: Path):
    """The communication hook multiplies as DistributedDataParallel does (three is where dividing rounds differently)."""
    states = []
    for measured in ("true", "false"):
        name = f"measured-{measured}"
        more = (f"runtime.time_communication={measured}", "training.max_steps=4")
        assert train(options(shards, work / "runs", name, *more), work / f"{name}.log", processes=3) == 0
        states.append(final_state(work / "runs" / name, 4))
        line = json.loads((work / "runs" / name / "performance.jsonl").read_text().splitlines()[-1])
        assert ("communication_seconds_per_step" in line) == (measured == "true")
    assert states[0] == states[1]
