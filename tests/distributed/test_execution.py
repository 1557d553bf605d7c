"""Other ways to execute the same training: compiled, channels-last, bf16, micro-batches, trackers, other objectives."""

import json
from pathlib import Path

import pytest

from tests.distributed.faults import output
from tests.distributed.faults import train as warm_train
from tests.distributed.launch import command, run
from tests.small import small_shard_set

pytestmark = pytest.mark.slow
STEPS = 5


@pytest.fixture(scope="module")
def options(work: Path) -> tuple[str, ...]:
    shards = small_shard_set(work / "shards", views=("axial", "sagittal"))
    return (
        f"data.shards={shards}", f"runs_dir={work / 'runs'}", f"training.max_steps={STEPS}", "validation.every_steps=5",
    )  # fmt: skip


def train(
    work: Path, options: tuple[str, ...], name: str, *more: str, processes: int = 1
) -> list[dict[str, float]]:
    """Metrics of the run's optimiser steps."""
    log = work / f"{name}.log"
    assert warm_train((*options, f"name={name}", *more), log, processes) == 0, log.read_text()[-4000:]
    lines = map(json.loads, (work / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def eager(work: Path, options: tuple[str, ...]) -> list[dict[str, float]]:
    return train(work, options, "eager")


def compare(actual: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    assert len(actual) == len(expected) == STEPS
    for a, e in zip(actual, expected):
        for term in ("reconstruction", "cycle", "ssim_healthy", "adversarial", "discriminator_real"):
            assert a[term] == pytest.approx(e[term], rel=tolerance, abs=tolerance), (a["step"], term)


def test_compiled_channels_last_bf16_on_two_processes(work: Path, options: tuple[str, ...], eager):
    """Through Accelerate's wrapping and DistributedDataParallel; bf16 has 8 bits, so the losses agree to a few per cent.

    Captured and split by torch.compile as for GPUs, but run without generated code, which takes minutes to compile here;
    tests/training/test_step.py compares generated code.
    """
    more = ("runtime.compile=aot_eager", "runtime.channels_last=true", "runtime.precision=bf16")
    compare(train(work, options, "compiled", *more, processes=2), eager, 0.08)


def test_a_static_graph_changes_nothing(work: Path, options: tuple[str, ...], eager):
    compare(train(work, options, "static", "runtime.static_graph=true", processes=2), eager, 2e-3)


def test_micro_batches_and_plain_passes_give_the_same_losses(work: Path, options: tuple[str, ...], eager):
    more = ("training.micro_batch_size=3", "training.fast_passes=false", "runtime.encoder_execution=grouped")
    compare(train(work, options, "micro", *more), eager, 2e-3)


def test_one_update_a_batch_several_views_trackers_and_any_availability(work: Path, options: tuple[str, ...]):
    more = (
        "training.updates_per_batch=1", "data.views=[axial,sagittal]", "generator.view_embedding=true",
        "order.availability=any", "telemetry.tensorboard=true", "telemetry.wandb=offline", "objective.ssim_regions=whole",
    )  # fmt: skip
    lines = train(work, options, "one-update", *more, processes=2)
    assert len(lines) == STEPS and "ssim_brain" in lines[0]
    run_dir = work / "runs/one-update"
    assert list((run_dir / "tensorboard").glob("events.*")) and list(
        (run_dir / "wandb").glob("offline-run-*")
    )
    panels = sorted(p.name for p in (run_dir / "panels").iterdir())
    assert panels == [f"step-00000005-{m}.png" for m in ("t1c", "t1n", "t2f", "t2w")]
    export = json.loads((run_dir / "export/config.json").read_text())
    assert export["views"] == ["axial", "sagittal"]


def test_without_cycle_without_average_from_other_weights(work: Path, options: tuple[str, ...], eager):
    """R5's objective, started from another run's weights: its first loss is better than from scratch."""
    more = (
        "objective.cycle=0", "objective.feature=0", "objective.ssim=0", "training.ema_decay=0",
        f"checkpoint.init_from={work / 'runs/eager'}",
    )  # fmt: skip
    lines = train(work, options, "tuned", *more)
    assert "cycle" not in lines[0] and "ssim_healthy" not in lines[0]
    assert lines[0]["reconstruction"] < eager[0]["reconstruction"]


def test_dry_run_and_help_say_what_there_is(work: Path, options: tuple[str, ...]):
    log = work / "dry.log"
    assert run([*command((*options, "name=dry"), 1, "python"), "--dry-run"], log) == 0, log.read_text()
    text = log.read_text()
    assert "GFLOP per slice" in text and "GiB a slice" in text and not (work / "runs/dry").exists()


def test_wrong_options_end_with_one_line(work: Path, options: tuple[str, ...]):
    log = work / "wrong.log"
    text = output((*options, "runtime.precision=fp16"), log, processes=1)
    assert "error: runtime.precision=fp16 needs a CUDA device" in text
    assert "nowhere" in output((*options, f"data.shards={work / 'nowhere'}"), log, processes=1)


def test_zero_switches_periodic_work_off(work: Path, options: tuple[str, ...]):
    """The last step is logged and saved in any case."""
    zero = (
        "telemetry.log_every=0",
        "checkpoint.every_steps=0",
        "checkpoint.every_minutes=0",
        "validation.slices=0",
    )
    lines = train(work, options, "zero", *zero)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    run_dir = work / "runs/zero"
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    assert (
        "validation    off" in (work / "zero.log").read_text() and (run_dir / "export/config.json").exists()
    )
