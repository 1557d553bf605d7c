"""A shard set, made once for all tests of this folder that only read it."""

from pathlib import Path

import pytest

from brasyn_dist.data.sharding.write_shards import make_shards
from tests.data.case_files import write_case
from tests.data.shard_runs import OPTIONS, SEEDS, UNLABELLED


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory) -> list[Path]:
    """Six cases of five patients in two cohorts, one without segmentation."""
    root = tmp_path_factory.mktemp("cohorts")
    for name, seed in SEEDS.items():
        folder = root / ("train_gli" if "GLI" in name else "train_met")
        write_case(folder, name, seed, segmentation=name != UNLABELLED)
    return [root / "train_gli", root / "train_met"]


@pytest.fixture(scope="session")
def made(cohorts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "shards"
    make_shards(cohorts, out, OPTIONS)
    return out
