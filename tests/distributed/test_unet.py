"""The recommended recipe in real processes: crops, neighbouring slices, weight decay, no discriminator."""

import shutil
from pathlib import Path

import pytest

from brasyn_dist.cli.infer import main as infer
from tests.distributed.launch import command, final_state, run
from tests.distributed.traces import losses
from tests.small import small_cases, small_shard_set

pytestmark = pytest.mark.slow

STEPS = 10
RECIPE = (
    "--config", "laptop_axial", "generator.widths=[16,32]", "generator.units=1", "generator.condition=8",
    "generator.image_size=48", "augmentation.crop=[32,32]", "generator.context=1", "training.global_batch_size=8",
    f"training.max_steps={STEPS}", "optimizer.warmup_steps=4", "checkpoint.every_steps=3", "checkpoint.keep=9", "telemetry.log_every=2",
    "telemetry.report=false", "runtime.threads=1", "order.availability=mixed",
)  # fmt: skip
PROGRAM = ("brasyn_dist.train",)


@pytest.fixture(scope="module")
def options(work: Path) -> tuple[str, ...]:
    return (*RECIPE, f"data.shards={small_shard_set(work / 'shards')}", f"runs_dir={work / 'runs'}")


@pytest.fixture(scope="module")
def undisturbed(work: Path, options: tuple[str, ...]) -> Path:
    log = work / "undisturbed.log"
    assert run(command((*options, "name=undisturbed"), 2, program=PROGRAM), log) == 0, log.read_text()
    return work / "runs/undisturbed"


def test_a_resumed_run_is_bit_identical(work: Path, options: tuple[str, ...], undisturbed: Path) -> None:
    shutil.copytree(undisturbed, work / "runs/resumed")
    for step in (STEPS, STEPS - 1):  # as if the run had been killed after step 6
        shutil.rmtree(work / f"runs/resumed/checkpoints/step-{step:08d}", ignore_errors=True)
    log = work / "resumed.log"
    assert run(command((*options, "name=resumed"), 2, program=PROGRAM), log) == 0, log.read_text()
    assert "continues at step 6" in log.read_text()
    assert final_state(work / "runs/resumed", STEPS, 5) == final_state(undisturbed, STEPS, 5)


def test_one_process_has_the_same_losses(work: Path, options: tuple[str, ...], undisturbed: Path) -> None:
    log = work / "one.log"
    assert run(command((*options, "name=one"), 1, "python", program=PROGRAM), log) == 0, log.read_text()
    assert losses(work / "runs/one") == pytest.approx(losses(undisturbed), rel=1e-3)
    assert not list((work / "runs/one").rglob("discriminator*"))


def test_the_export_completes_cases(work: Path, undisturbed: Path) -> None:
    """With neighbouring slices, and with mirrored slices as an option that changes the result."""
    cases = small_cases(work / "shards-cases") / "train_gli"
    made = {}
    for name, more in (("plain", []), ("mirrored", ["--tta"])):
        arguments = ["--weights", str(undisturbed), "--input", str(cases), "--output", str(work / name)]
        assert infer([*arguments, "--modality", "t2f", *more]) in (0, None)
        made[name] = {file.name: file.read_bytes() for file in (work / name).glob("*.nii.gz")}
    assert len(made["plain"]) == len(list(cases.iterdir())) and made["plain"] != made["mirrored"]
