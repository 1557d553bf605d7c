"""The benchmark of the training step runs, small, and says what it measured; figures are not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--count"]], ids=["times", "counts"])
def test_rows_table_and_plot(tmp_path: Path, more: list[str]):
    command = [
        sys.executable, str(REPOSITORY / "benchmarks/bench_train.py"), "--out", str(tmp_path), "--width", "8",
        "--image-size", "48", "--batches", "4", "--readings", "4", "--variants", "plain", "fast", "--repeats", "1",
        "--warmup", "0", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, fast = json.loads((tmp_path / "train.json").read_text())
    assert (plain["variant"], fast["variant"]) == ("plain", "fast")
    assert plain["cpu_seconds_per_batch"] > 0 and plain["peak_memory_gib"] > 0
    if more:
        # Four instead of eight modality encodings of the slices of an update, of 134 GFLOP each pass.
        assert 0.7 < fast["operations"] / plain["operations"] < 0.8
    table = (tmp_path / "train.md").read_text().splitlines()
    assert table[-2].startswith("| plain | 4 | 4 |") and table[-1].startswith("| fast | 4 | 4 |")
    assert (tmp_path / "train.png").stat().st_size > 1000
