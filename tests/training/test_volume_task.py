"""Tasks on volumes: micro-batches, compilation, what is learned, cost, and runs on phantoms from shards to exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brasyn_dist.cli.train import main
from brasyn_dist.config import RunConfig, load_config
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import ConfigError
from brasyn_dist.models.export import export_network, load_network
from brasyn_dist.training.cost_model import cost_report, measure
from brasyn_dist.training.training_data import DATA_FILE
from tests.distributed.launch import REPOSITORY
from tests.training.volumes import TASKS, Update, small_config, volume_shards

every_task = pytest.mark.parametrize("task", TASKS)
RUN = ("training.max_steps=2", "validation.every_steps=2", "validation.slices=3", "telemetry.report=false")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_shards(tmp_path_factory.mktemp("volumes"))


def options_of(task: str, shards: Path, root: Path) -> list[str]:
    return [*TASKS[task], *RUN, f"data.shards={shards}", f"runs_dir={root}", f"name={task}"]


@every_task
def test_the_gradient_does_not_depend_on_micro_batches(task: str) -> None:
    whole = Update(small_config(task), torch.float64).gradients()
    parts = Update(small_config(task, "training.micro_batch_size=3"), torch.float64).gradients()
    for name, wanted in (whole[0] | whole[1]).items():
        difference = ((parts[0] | parts[1])[name] - wanted).abs().max()
        assert difference < 1e-10 * max(1.0, float(wanted.abs().max())), name
    assert any(gradient.abs().max() > 0 for gradient in whole[1].values())


@every_task
def test_updates_reduce_the_loss(task: str) -> None:
    update = Update(small_config(task, "data.normalisation=case", "augmentation.mirror=0"))
    losses = [float(update()["reconstruction"]) for _ in range(20)]
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize(("task", "recompute"), [("volume", "nothing"), ("refiner", "activations")])
def test_network_and_objective_are_compiled_once(task: str, recompute: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    update = Update(
        small_config(
            task, "runtime.compile=aot_eager", f"runtime.recompute={recompute}", "runtime.channels_last=true"
        )
    )
    update()
    with torch._dynamo.config.patch(error_on_recompile=True):
        update()
    assert not torch._dynamo.utils.counters["graph_break"]


@every_task
def test_a_run_from_shards_to_an_export(task: str, shards: Path, tmp_path: Path) -> None:
    assert main(["data.normalisation=case", *options_of(task, shards, tmp_path)]) == 0
    run = tmp_path / task
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if line["kind"] == "validation")
    assert {"mae", "psnr", "ssim_healthy", "t2f/mae"} <= set(scores) and (run / "panels").is_dir()
    network = load_network(run)
    assert network.kind == task and network.preprocessing.patch == (16, 12, 8)
    assert network.preprocessing.intensity_scale is not None and network.preprocessing.views == ()
    assert json.loads((run / DATA_FILE).read_text())["cases"] == {"training": 2, "held_out": 1}
    export_network(run, tmp_path / "card", "hub", "ORG/NAME")
    card = (tmp_path / "card/README.md").read_text()
    for fact in (
        "2 cases for training, 1 held out.",
        "Patches of 16 x 12 x 8 voxels.",
        "on held-out patches",
    ):
        assert fact in card


def test_stage_1_volumes_are_normalised_by_their_own_medians(shards: Path, tmp_path: Path) -> None:
    """They are the real ones times 2, so that a refiner at its start has almost no error."""
    assert main(["data.normalisation=case", *options_of("refiner", shards, tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "refiner/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["reconstruction"] < 1e-3


def test_a_refiner_needs_stage_1_volumes(shards: Path, tmp_path: Path) -> None:
    options = ShardOptions(views=(), chunks=16, validation_fraction=0)
    make_shards([shards.parent / "cases/train_gli"], tmp_path / "shards", options)
    assert main(options_of("refiner", tmp_path / "shards", tmp_path)) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("augmentation.crop=[16,16]", "patches.size"),
        ("data.normalisation=slice", "no slices"),
        ("data.min_tumour_fraction=0.1", "patches.tumour_share"),
        ("patches.size=[16,16,4]", "at least 6"),
        ("runtime.encoder_execution=grouped", "option of task generator"),
        ("objective.adversarial=1", "option of task generator"),
    ],
)
def test_options_that_do_not_fit_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["task=volume", option], RunConfig)


@every_task
def test_dry_run(task: str, shards: Path, tmp_path: Path) -> None:
    text = cost_report(load_config(None, options_of(task, shards, tmp_path), RunConfig))
    assert "GFLOP per patch" in text and "2 training cases (patches of 16 x 12 x 8 voxels)" in text
    assert "patches at a time on each GPU" in text and not (tmp_path / task).exists()


def test_operations_follow_from_the_shape() -> None:
    """Forward, and backward to inputs and weights: three times the forward, but for the gradient of the input."""
    config = small_config("refiner", "refiner.channels=16", "refiner.layers=2", "refiner.smoothing=2")
    voxels, c = 16 * 12 * 8, 16
    encoder = 27 * (c + c * c)
    pointwise = 3 * c * c + 2 * (2 * c * c)
    forward = 2 * voxels * (5 * encoder + 4 * pointwise + 27 * (2 * c * c + c))
    assert measure(config).operations_per_slice == pytest.approx(3 * forward, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("volume", "patches.size=[64,64,32]", "volume.widths=[32,64]"),
        ("refiner", "patches.size=[64,64,32]", "refiner.channels=8"),
        ("refiner", "patches.size=[64,64,32]", "refiner.channels=8", "runtime.recompute=activations"),
    ],
    ids=lambda o: f"{o[0]}-{o[-1]}",
)
def test_counted_memory_is_that_of_a_real_process(options: tuple[str, ...]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.training.memory_worker", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
    counted = measure(small_config(options[0], *options[1:])).peak_bytes(4)
    assert counted == pytest.approx(int(done.stdout), rel=0.15)
