"""Training on other modalities than BraTS' four: networks, validation, panels, export."""

from pathlib import Path

import pytest

from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.registry import Generator
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.training.loggers import read_lines
from tests.data.test_modality_sets import FIVE, TWO, write_cases
from tests.distributed.faults import train

SMALL = (
    "training.max_steps=2", "training.global_batch_size=4", "validation.every_steps=2", "validation.slices=2",
    "telemetry.report=false", "runtime.threads=1", "data.min_tumour_fraction=0",
)  # fmt: skip


def shards_of(folder: Path, modality_set: ModalitySet) -> Path:
    cases = write_cases(folder / "cases", modality_set, 4)
    options = ShardOptions(validation_fraction=0.34, minimum_foreground=1, modality_set=modality_set)
    make_shards([cases], folder / "shards", options)
    return folder / "shards"


@pytest.mark.parametrize("updates", [2, 1])
def test_generator(tmp_path: Path, updates: int):
    shards, log = shards_of(tmp_path, TWO), tmp_path / "log"
    options = (
        *SMALL,
        f"data.shards={shards}",
        f"runs_dir={tmp_path}",
        f"training.updates_per_batch={updates}",
    )
    assert train(options, log, processes=1) == 0, log.read_text()
    validation = read_lines(tmp_path / "run/metrics.jsonl")[-1]
    assert {"mae", "pd/mae", "t2/mae"} <= validation.keys()
    assert {p.name for p in (tmp_path / "run/panels").iterdir()} == {
        "step-00000002-pd.png",
        "step-00000002-t2.png",
    }
    assert Generator.from_pretrained(tmp_path / "run").modality_set == TWO


def test_updates_that_do_not_fit_the_modalities_are_refused(tmp_path: Path):
    shards, log = shards_of(tmp_path, TWO), tmp_path / "log"
    assert train((*SMALL, f"data.shards={shards}", f"runs_dir={tmp_path}"), log, processes=1) == 1
    assert "has 2 modalities; use 2 (one update for each target modality) or 1" in log.read_text()


def test_segmenter(tmp_path: Path):
    shards, log = shards_of(tmp_path, FIVE), tmp_path / "log"
    options = (*SMALL, "task=segmenter", "segmenter.image_size=48", "segmenter.widths=[8,16]")
    # The options of a generator that `train` adds do not fit this task.
    assert train((*options, f"data.shards={shards}", f"runs_dir={tmp_path}"), log, 1, small=()) == 0, (
        log.read_text()
    )
    validation = read_lines(tmp_path / "run/metrics.jsonl")[-1]
    assert {"dice", "dice/lesion", "dice/whole", "tversky"} <= validation.keys()
    assert Segmenter.from_pretrained(tmp_path / "run").modality_set == FIVE
