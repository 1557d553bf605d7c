"""All benchmarks run at small sizes and print their measurements; the figures are not tested."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import bench_train
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path):
    """`run_all.sh` at small sizes, also the series of batch sizes and the profile, which otherwise need a GPU."""
    environment = {**os.environ, "SMALL": "1", "OMP_NUM_THREADS": "1"}
    command = [str(REPOSITORY / "benchmarks/run_all.sh"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    rows = {(r["variant"], r["updates_per_batch"]): r for r in read(tmp_path / "train/train.json")}
    plain, fast = rows["plain", 4], rows["fast", 4]
    assert plain["cpu_seconds_per_batch"] > 0 and plain["peak_memory_gib"] > 0
    # Four instead of eight modality encodings of the slices of an update, of 134 GFLOP each pass.
    assert 0.7 < fast["operations"] / plain["operations"] < 0.8
    table = (tmp_path / "train/train.md").read_text().splitlines()
    assert table[-4].startswith("| plain | 4 | 4 |") and table[-3].startswith("| fast | 4 | 4 |")
    assert (tmp_path / "train/train.png").stat().st_size > 1000

    ladder = [(r["variant"], r["batch"]) for r in read(tmp_path / "ladder/train.json")]
    assert sorted(ladder) == [("fast", 4), ("fast", 8), ("plain", 4), ("plain", 8)]
    assert "aten::convolution_backward" in (tmp_path / "profile/profile-fast.txt").read_text()
    for name in ("infer", "stream", "shard", "checkpoint"):
        assert read(tmp_path / f"{name}.json")


def read(path: Path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("most, climbed", [(None, [4, 8, 16, 32]), (20, [4, 8, 16]), (4, [4])])
def test_the_ladder_ends_where_memory_does_or_where_it_is_told_to(monkeypatch, most, climbed):
    def run_worker(options, row, segmenter):
        return {"failed": "out of memory"} if row["batch"] > 20 else {}

    monkeypatch.setattr(bench_train, "run_worker", run_worker)
    arguments = ["--batches", "4", "--ladder", *([] if most is None else [str(most)])]
    rows = bench_train.climb(bench_train.parser().parse_args(arguments), "plain", 4, None)
    assert [r["batch"] for r in rows] == climbed
    assert ("failed" in rows[-1]) == (most is None)


def test_a_batch_that_a_cpu_has_no_memory_for_is_not_begun(monkeypatch):
    monkeypatch.setattr(bench_train, "available_bytes", lambda: 2**20)
    options = bench_train.parser().parse_args(["--width", "8", "--image-size", "48"])
    row = bench_train.run_worker(options, {"variant": "plain", "batch": 8, "updates_per_batch": 4}, None)
    assert row["failed"].startswith("not run: needs 0.1 GiB, 0.0 are free")
