"""`brasyn study --slurm` on a real Slurm: each stage starts after those that it needs, and the table is written."""

import sys
from itertools import pairwise

import pytest

from tests.distributed.launch import SMALL
from tests.slurm.cluster import Cluster, Job
from tests.small import small_cases

pytestmark = pytest.mark.slow

FILES = {
    "r1": "name: r1",
    "r2": "name: r2\ncheckpoint: {init_from: runs/r1}\nobjective: {tversky: 1, segmenter: runs/segmenter}",
    "segmenter": "task: segmenter\nname: segmenter\nsegmenter: {image_size: 48, widths: [8, 16]}",
}
LENGTH = ("training.max_steps=4", "training.global_batch_size=4", "validation.slices=2")


def test_jobs_run_in_the_order_of_their_needs(cluster: Cluster):
    work = cluster.work / "study"
    small_cases(work / "data", cases=6)
    (work / "configs").mkdir()
    for name, text in FILES.items():
        (work / "configs" / f"{name}.yaml").write_text(text)
    printed = cluster.run(
        sys.executable, "-m", "brasyn_dist", "study", str(work / "configs"), "--data", str(work / "data"),
        "--out", str(work / "out"), "--slurm", "--sbatch=--cpus-per-task=1", "--sbatch-train=--gpus-per-node=0",
        "--sbatch-infer=--gpus-per-node=0", "--evaluate-options=--no-baselines", "--only", "r2",
        "--shard-options=--minimum-foreground 200 --samples-per-shard 20 --views axial",
        *SMALL, *LENGTH,
    )  # fmt: skip
    numbers = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if line[-1:].isdigit())
    jobs = {name.strip(): Job(cluster, number) for name, number in numbers.items()}
    order = ["shard", "train r1", "train segmenter", "train r2", "infer r2", "evaluation r2", "table"]
    assert [name for name in jobs if name in order] == order
    jobs["table"].completed()
    times = {name: jobs[name].facts() for name in order}
    for before, after in (
        *pairwise(order[3:]),
        ("train r1", "train r2"),
        ("train segmenter", "train r2"),
    ):
        assert times[before]["EndTime"] <= times[after]["StartTime"], (before, after)
    header, *rows = (work / "out/table/table.csv").read_text().splitlines()
    assert header == "metric,validation set,class,r2"
    assert any(row.startswith("Dice %,ALL,ET,") for row in rows)
