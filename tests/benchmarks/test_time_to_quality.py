"""Time to quality: what the table compares, and that every training runs at a toy size; figures are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.time_to_quality import NETWORKS, table
from tests.conftest import REPOSITORY
from tests.small import small_shard_set


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seconds": s, "slices": 10 * s, "operations": 1e12 * s, "error": e} for s, e in points]


def test_the_table_compares_with_the_best_of_each():
    found = {
        "thesis, plain": curve((10, 0.5), (20, 0.2), (30, 0.3)),
        "recommended": curve((4, 0.4), (8, 0.2), (30, 0.1)),
        "textbook": curve((10, 0.3), (30, 0.05)),
    }
    lines = table(found).splitlines()
    assert lines[2] == "| thesis, plain | 300 | 30 | 30 | 0.3000 | 0.2000 | 20 | 8 | 0.40 |"
    assert lines[4] == "| textbook | 300 | 30 | 30 | 0.0500 | 0.0500 | 30 | never |  |"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_trains(tmp_path: Path, name: str):
    if name == "textbook":
        pytest.importorskip("monai")
    sizes = ["generator.image_size=48"]
    sizes += ["augmentation.crop=null"] if name == "recommended" else []
    sizes += ["discriminator.image_size=48"] if name.startswith("thesis") else []
    command = [
        sys.executable, REPOSITORY / "benchmarks/time_to_quality.py", small_shard_set(tmp_path / "shards"), "--out", tmp_path / "out",
        "--seconds", "2", "--points", "2", "--held-out", "2", "--networks", name, "--set", *sizes,
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=REPOSITORY)
    lines = [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]
    assert lines[-1]["slices"] > 0 and lines[-1]["operations"] > 0 and 0 < lines[-1]["error"] < 10
    assert (tmp_path / "out/curves.png").stat().st_size > 1000 and f"| {name} |" in (
        tmp_path / "out/table.md"
    ).read_text()
