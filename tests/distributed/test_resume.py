"""Runs of real processes, stopped, continued and moved to other numbers of processes; faults are in test_faults.py."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from brasyn_dist.common.processes import descendants
from tests.distributed.faults import output, train
from tests.distributed.launch import (
    Running,
    command,
    final_state,
    logged_step,
    run,
    saved_step,
    start,
    wait_until,
)
from tests.distributed.traces import losses, traced_batches
from tests.distributed.warm import WarmRun
from tests.small import small_shard_set

pytestmark = pytest.mark.slow

STEPS = 14


@pytest.fixture(scope="module")
def options(work: Path) -> tuple[str, ...]:
    shards = small_shard_set(work / "shards")
    return (
        f"data.shards={shards}", f"training.max_steps={STEPS}", "checkpoint.every_steps=3", "validation.every_steps=7",
        f"runs_dir={work / 'runs'}", "telemetry.trace_batches=true",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(work: Path, options: tuple[str, ...]) -> Path:
    """A run of two processes from beginning to end, under `accelerate launch`."""
    log = work / "undisturbed.log"
    assert run(command((*options, "name=undisturbed"), launcher="accelerate"), log) == 0, log.read_text()
    return work / "runs/undisturbed"


@pytest.fixture(scope="module")
def stopped(work: Path, options: tuple[str, ...]) -> Path:
    """A run of two processes that a STOP file ended between the four updates of a batch."""
    run_dir, log = work / "runs/stopped", work / "stopped.log"
    process = start(command((*options, "name=stopped")), log)
    assert wait_until(process, lambda: logged_step(run_dir) >= 4, log), log.read_text()
    (run_dir / "STOP").touch()
    assert process.wait(60) == 1  # torchrun's status for workers that exit with 75
    status = json.loads((run_dir / "status.json").read_text())
    assert status["status"] == "stopped" and status["reason"] == "STOP file"
    assert status["step"] == saved_step(run_dir) < STEPS
    assert not (run_dir / "STOP").exists()
    return run_dir


@pytest.mark.parametrize("processes", [1, 4])
def test_other_numbers_of_processes_see_the_same_global_batches(
    work: Path, options: tuple[str, ...], undisturbed: Path, stopped: Path, processes: int
):
    name = f"elastic-{processes}"
    shutil.copytree(stopped, work / "runs" / name)
    log = work / f"{name}.log"
    assert train((*options, f"name={name}"), log, processes) == 0, log.read_text()[-4000:]
    expected, actual = traced_batches(undisturbed), traced_batches(work / "runs" / name)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert all(len(samples) == 8 for samples in expected.values())
    assert actual == expected
    assert losses(work / "runs" / name) == pytest.approx(losses(undisturbed), rel=1e-3)


def test_stopped_run_continues_bit_identically(
    work: Path, options: tuple[str, ...], undisturbed: Path, stopped: Path
):
    shutil.copytree(stopped, work / "runs/continued")
    log = work / "continued.log"
    assert train((*options, "name=continued"), log) == 0, log.read_text()[-4000:]
    assert final_state(work / "runs/continued", STEPS) == final_state(undisturbed, STEPS)
    # A further start reports that the run is finished and changes nothing.
    assert train((*options, "name=continued"), log) == 0
    assert final_state(work / "runs/continued", STEPS) == final_state(undisturbed, STEPS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_signal_to_one_rank_stops_all_within_a_step(
    work: Path, options: tuple[str, ...], number: signal.Signals
):
    """Plain `python -m` exits with 75; with two ranks the signal goes to one worker only, and both stop."""
    processes = 1 if number == signal.SIGTERM else 2
    name = f"signal-{number.name}"
    run_dir, log = work / "runs" / name, work / f"{name}.log"
    arguments = (*options, f"name={name}", "training.max_steps=100000")
    process: Running = (
        start(command(arguments, 1, "python"), log) if processes == 1 else WarmRun(arguments, log)
    )
    assert wait_until(process, lambda: logged_step(run_dir) >= 2, log), log.read_text()
    before = logged_step(run_dir)
    victim = process.pid if processes == 1 else descendants(process.pid)[-1]
    os.kill(victim, number)
    assert process.wait(60) == (75 if processes == 1 else 1), log.read_text()[-4000:]
    status = json.loads((run_dir / "status.json").read_text())
    assert status["status"] == "stopped" and status["step"] == saved_step(run_dir) >= before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.global_batch_size=4", "global_batch_size: checkpoint 8, configuration 4"),
        ("order.seed=9", "order"),
        ("generator.transformer_layers=2", "generator"),
        ("data.views=[sagittal]", "no slices|sagittal|data_fingerprint"),
    ],
)
def test_another_run_is_refused(
    work: Path, options: tuple[str, ...], stopped: Path, override: str, named: str
):
    log = work / f"refused-{override}.log".replace("/", "_")
    assert re.search(named, output((*options, "name=stopped", override), log, processes=1))


def test_never_resume_refuses_a_used_folder(work: Path, options: tuple[str, ...], stopped: Path):
    log = work / "never.log"
    arguments = (*options, "name=stopped", "checkpoint.resume=never")
    assert "checkpoint.resume=never" in output(arguments, log, processes=1)


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(work: Path, options: tuple[str, ...]):
    run_dir, log = work / "runs/diverges", work / "diverges.log"
    arguments = (
        *options, "name=diverges", "optimizer.base_rate=1e9", "optimizer.warmup_steps=0", "checkpoint.every_steps=1",
        "telemetry.log_every=1", "training.ema_decay=0",
    )  # fmt: skip
    text = output(arguments, log)
    assert "is not finite" in text and "BraTS-GLI" in text and "step" in text
    from brasyn_dist.training.checkpoint import newest_intact

    found, passed_over = newest_intact(run_dir / "checkpoints")
    assert not passed_over
    if found is not None:
        assert all(t.isfinite().all() for t in found.tensors("generator").values())
