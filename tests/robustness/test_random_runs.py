"""Kind 2, property-based: a random configuration trains one step, or is refused in a line that names an option."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from brasyn_dist.cli.train import main
from brasyn_dist.config import Config, all_options
from tests.distributed.launch import SMALL
from tests.small import small_shard_set

UNET = (
    "generator.kind=unet", "generator.widths=[16, 32]", "generator.units=1", "generator.full_channels=16",
    "generator.condition=8", "generator.image_size=48", "objective.cycle=0", "objective.feature=0",
    "objective.adversarial=0", "objective.classification=0", "runtime.threads=1", "validation.slices=2",
    "telemetry.report=false",
)  # fmt: skip
VALUES: dict[str, list[object]] = {
    "data.views": [["axial"], ["axial", "coronal"], []],
    "data.cohorts": [[], ["train_gli"], ["elsewhere"]],
    "augmentation.crop": [None, [16, 16], [32, 40], [40, 32], [48, 48], [64, 64]],
    "generator.image_size": [16, 32, 48, [48, 32], [64, 48], 40],
    "discriminator.image_size": [16, 32, 48, [48, 32], 40],
    "generator.channel_multipliers": [[1], [1, 2], [1, 2, 4, 8, 10], [1, 1, 1, 1, 1, 1]],
    "generator.widths": [[16, 16], [16, 32, 48], [16] * 7],
    "optimizer.betas": [[0.9, 0.999], [0, 0]],
    "runtime.rank_shares": [[], [1], [1, 2]],
    "runtime.compile": [None, "off"],
    "telemetry.wandb": ["off", "offline"],
    "telemetry.tensorboard": [False],
}
LEFT_OUT = {"task", "name", "runs_dir", "data.shards", "data.quarantine", "data.cache_dir", "checkpoint.resume",
            "checkpoint.init_from", "objective.segmenter", "training.max_steps", "telemetry.wandb_project",
            "telemetry.wandb_entity", "generator.kind", "runtime.collective_timeout_minutes", "runtime.hang_minutes",
            "telemetry.report"}  # fmt: skip
EXAMPLES = int(os.environ.get("BRASYN_EXAMPLES", "12"))
"""More examples, and other ones each time, with this variable."""


def values(key: str, allowed: str) -> st.SearchStrategy[object]:
    """Values of an option, most of them valid."""
    if key in VALUES:
        return st.sampled_from(VALUES[key])
    words = allowed.removesuffix(", or null").split(" or ")
    if allowed.startswith("bool"):
        found: list[object] = [True, False]
    elif allowed.startswith("int"):
        found = [0, 1, 2, 3, 4, 8, 16]
    elif allowed.startswith("float"):
        found = [0, 1e-3, 0.5, 0.999, 1, 2]
    else:
        found = [*words, "other"]
    return st.sampled_from([*found, None] if "null" in allowed else found)


OPTIONS = {key: values(key, option.allowed) for key, option in all_options(Config) if key not in LEFT_OUT}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shard_set(tmp_path_factory.mktemp("random") / "shards")


@pytest.mark.slow
@given(st.data())
@settings(
    max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
    derandomize="BRASYN_EXAMPLES" not in os.environ, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_it_trains_one_step_or_names_an_option(shards: Path, tmp_path_factory, capsys, data: st.DataObject):
    base = data.draw(st.sampled_from([SMALL, UNET]))
    keys = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=4, unique=True))
    chosen = [f"{key}={json.dumps(data.draw(OPTIONS[key], label=key))}" for key in keys]
    runs = tmp_path_factory.mktemp("runs")
    words = [
        f"data.shards={shards}",
        f"runs_dir={runs}",
        "training.max_steps=1",
        "training.global_batch_size=4",
    ]
    capsys.readouterr()
    status = main([*base, *words, *chosen])
    error = capsys.readouterr().err.strip()
    if status == 0:
        assert json.loads((runs / "run/status.json").read_text())["status"] == "finished", chosen
        assert list((runs / "run/export").glob("model.safetensors"))
    else:
        last = error.splitlines()[-1]
        assert last.startswith("error: ") and any(key in last for key in keys), f"{chosen}: {error}"
