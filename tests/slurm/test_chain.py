"""shard -> train -> infer (a job array) -> evaluate: each job waits for the one before, one submission."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster, Job
from tests.small import small_cases

pytestmark = pytest.mark.slow

CASES = 6


def test_chain_from_cases_to_scores(cluster: Cluster, config: str):
    work = cluster.work
    small_cases(work / "cohorts", cases=CASES)
    complete = work / "complete"
    complete.mkdir()
    for case in (work / "cohorts").glob("*/*"):
        (complete / case.name).symlink_to(case)
    printed = cluster.run(
        sys.executable, str(REPOSITORY / "slurm/submit.py"), config, "name=chain", "training.max_steps=4",
        "--cohorts", "cohorts/train_gli", "cohorts/train_met", "--shards", "chain-shards",
        "--cases", "complete",
        "--references", "complete", "--sbatch=--cpus-per-task=1", "--sbatch-train=--gpus-per-node=0",
        "--sbatch-infer=--gpus-per-node=0 --array=0-1", "--infer-options=--modality t1n",
        "--shard-options=--minimum-foreground 200 --validation-fraction 0.34 --views axial",
    )  # fmt: skip
    numbers = dict(line.split() for line in printed.splitlines())
    assert list(numbers) == ["shard", "train", "infer", "evaluate"]
    jobs = {name: Job(cluster, number) for name, number in numbers.items()}
    jobs["evaluate"].completed()
    starts = {name: job.facts()["StartTime"] for name, job in jobs.items()}
    ends = {name: job.facts()["EndTime"] for name, job in jobs.items()}
    assert ends["shard"] <= starts["train"] and ends["train"] <= starts["infer"] < starts["evaluate"]
    assert Job(cluster, f"{numbers['infer']}_1").facts()["JobState"] == "COMPLETED"
    assert json.loads((work / "runs/chain/status.json").read_text())["status"] == "finished"
    # Both tasks of the array have the same command; together they did each case once.
    lines = [
        m
        for task in (0, 1)
        for m in re.findall(
            r"^\d+/\d+ (BraTS\S+): .* s \(", Job(cluster, f"{numbers['infer']}_{task}").log, flags=re.M
        )
    ]
    assert sorted(lines) == sorted(case.name for case in complete.iterdir())
    volumes = sorted(p.name for p in (work / "completed").glob("*.nii.gz"))
    assert volumes == sorted(f"{case.name}-t1n.nii.gz" for case in complete.iterdir())
    summary = json.loads((work / "evaluation/summary.json").read_text())
    assert summary["problems"] == [] and (work / "evaluation/report.html").exists()


def test_failure_removes_the_jobs_that_wait_for_it(cluster: Cluster, config: str):
    printed = cluster.run(
        sys.executable, str(REPOSITORY / "slurm/submit.py"), config, "--cohorts", "no-such-cohort",
        "--shards", "none",
        "--sbatch=--cpus-per-task=1", "--sbatch-train=--gpus-per-node=0",
    )  # fmt: skip
    numbers = dict(line.split() for line in printed.splitlines())
    shard, train = Job(cluster, numbers["shard"]), Job(cluster, numbers["train"])
    shard.wait_for("FAILED")
    assert "no-such-cohort" in shard.log
    train.wait_for("CANCELLED")


def test_configuration_is_checked_before_anything_is_submitted(tmp_path: Path):
    import subprocess

    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"training": {"steps": 3}}))
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "slurm/submit.py"), "bad.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "training.steps" in done.stderr and "Traceback" not in done.stderr
