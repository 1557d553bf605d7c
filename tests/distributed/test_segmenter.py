"""The segmenter's runs of real processes: killed, moved, and as the frozen part of a generator's objective."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from brasyn_dist.common.files import sha256_of
from tests.distributed.faults import output, train
from tests.distributed.launch import (
    SMALL_SEGMENTER,
    command,
    final_state,
    kill,
    logged_step,
    run,
    saved_step,
    wait_until,
)
from tests.distributed.warm import WarmRun
from tests.small import small_shard_set

pytestmark = pytest.mark.slow

STEPS = 24
SEGMENTER = ("task=segmenter", *SMALL_SEGMENTER)
VIEWS = "data.views=[axial,sagittal,coronal]"


@pytest.fixture(scope="module")
def shared_options(work: Path) -> tuple[str, ...]:
    shards = small_shard_set(work / "shards", views=("axial", "sagittal", "coronal"))
    return (f"data.shards={shards}", f"runs_dir={work / 'runs'}", "telemetry.trace_batches=true")


@pytest.fixture(scope="module")
def options(shared_options: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *shared_options, VIEWS, "data.min_tumour_fraction=0.001", f"training.max_steps={STEPS}",
        "checkpoint.every_steps=3", "validation.every_steps=8", "telemetry.log_every=1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(work: Path, options: tuple[str, ...]) -> Path:
    """A run of two processes from beginning to end."""
    log = work / "undisturbed.log"
    assert train((*options, "name=undisturbed"), log, small=SEGMENTER) == 0, log.read_text()[-4000:]
    return work / "runs/undisturbed"


def outcome(run_dir: Path) -> dict[str, bytes]:
    return final_state(run_dir, STEPS, files_at_least=5)


def test_killed_twice_it_ends_bit_identical(work: Path, options: tuple[str, ...], undisturbed: Path):
    run_dir, log = work / "runs/killed", work / "killed.log"
    arguments = (*options, "name=killed")
    for goal in (5, 14):
        process = WarmRun(arguments, log, small=SEGMENTER)
        alive = wait_until(process, lambda goal=goal: logged_step(run_dir) >= goal, log)
        kill(process)
        assert alive and 0 < saved_step(run_dir) < STEPS, log.read_text()[-4000:]
    assert train(arguments, log, small=SEGMENTER) == 0, log.read_text()[-4000:]
    assert "continues at step" in log.read_text()
    expected, actual = outcome(undisturbed), outcome(run_dir)
    assert {"segmenter.safetensors", "segmenter_adam.safetensors", "average.safetensors"} <= set(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []


def test_another_number_of_processes_sees_the_same_slices(
    work: Path, options: tuple[str, ...], undisturbed: Path
):
    """The first run goes through the old command of segmenters."""
    log = work / "single.log"
    arguments = command(
        (*options, "name=single"), 1, "python", ("brasyn_dist.train_segmenter", *SMALL_SEGMENTER)
    )
    assert run(arguments, log) == 0, log.read_text()[-4000:]
    losses = []
    for run_dir in (undisturbed, work / "runs/single"):
        lines = list(map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()))
        losses.append([line["tversky"] for line in lines if line["kind"] == "train"])
        assert {"dice", "dice/NETC", "dice/WT"} <= set(next(x for x in lines if x["kind"] == "validation"))
    assert len(losses[0]) == STEPS and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert sum(losses[0][-6:]) < 0.95 * sum(losses[0][:6])
    assert list((undisturbed / "panels").glob("step-*-segmentation.png"))


def test_frozen_it_joins_the_generators_objective(
    work: Path, shared_options: tuple[str, ...], undisturbed: Path
):
    """Two processes; weights in no checkpoint, hash recorded, other weights refused, bit-identical after a stop by steps."""
    segmenter = work / "runs/undisturbed"
    options = (
        *shared_options, "training.max_steps=5", "checkpoint.every_steps=2", "validation.every_steps=0",
        "objective.tversky=5", f"objective.segmenter={segmenter}", "telemetry.log_every=1",
    )  # fmt: skip
    log, run_dir = work / "with.log", work / "runs/with"
    before = sha256_of(segmenter / "export/model.safetensors")
    assert train((*options, "name=with"), log) == 0, log.read_text()[-4000:]
    assert sha256_of(segmenter / "export/model.safetensors") == before and before in log.read_text()
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < x["tversky"] < 1 for x in lines if x["kind"] == "train")
    assert json.loads((run_dir / "environment.json").read_text())["sources"] == {
        "segmenter": {"path": str(segmenter), "sha256": before}
    }
    names = {p.name for p in run_dir.glob("checkpoints/*/*")}
    assert not [n for n in names if "segment" in n]
    stored = run_dir / "checkpoints/step-00000005/generator.safetensors"
    assert not [k for k in load_file(stored) if "segment" in k]
    # The same run with other weights at that path, or without: refused. (Copied, so that other tests are not disturbed.)
    other = work / "runs/other"
    text = output((*options, "name=with", "objective.tversky=0"), work / "without.log")
    assert f"segmenter_sha256: checkpoint '{before}', configuration None" in text
    shutil.copytree(segmenter, other)
    config = json.loads((other / "export/config.json").read_text())
    config["statistics"]["modalities"]["t1c"]["mean"] += 1
    (other / "export/config.json").write_text(json.dumps(config))
    wanted = (*options, "name=new", f"objective.segmenter={other}")
    assert "other statistics" in output(wanted, work / "other.log", processes=1)
