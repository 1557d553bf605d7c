"""slurm/common.sh: repeatable work under preemption, requeue and failure."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster, Job

pytestmark = pytest.mark.slow

SCRIPT = """#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
ROOT={root}
source "$ROOT/slurm/common.sh"
STOP_PATIENCE=3
run_repeatable srun --ntasks=1 bash -c '{work}'
"""


def submit(cluster: Cluster, name: str, work: str, *options: str) -> Job:
    path = cluster.work / f"{name}.sh"
    path.write_text(SCRIPT.format(root=REPOSITORY, work=work))
    return cluster.submit(*options, str(path))


def begun_twice(cluster: Cluster, name: str, first: str) -> str:
    """Shell: the first time note that and do `first`, the second time end well."""
    mark = cluster.work / f"{name}.begun"
    return f"[ -e {mark} ] && exit 0; touch {mark}; {first}"


def test_warned_preempted_or_deaf_it_is_requeued_and_goes_on(cluster: Cluster):
    work = {
        "willing": "sleep 600",  # ends by SIGTERM
        "deaf": 'trap "" TERM; for i in $(seq 600); do sleep 1; done',  # does not: STOP_PATIENCE
        "chosen": "trap 'exit 75' TERM; for i in $(seq 600); do sleep 1; done".replace("'", '"'),
    }
    jobs = {name: submit(cluster, name, begun_twice(cluster, name, first)) for name, first in work.items()}
    for name, job in jobs.items():
        job.wait((cluster.work / f"{name}.begun").exists, "begun")
        cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    for name, job in jobs.items():
        job.completed()
        assert job.restarts == 1 and "asked to make room" in job.log
        assert ("has not ended within 3 s" in job.log) == (name == "deaf")


def test_a_task_of_an_array_is_requeued_alone(cluster: Cluster):
    """One of the tasks has the number of the array."""
    mark, go = cluster.work / "array", cluster.work / "go"
    name = f"{mark}.$SLURM_ARRAY_TASK_ID"
    job = submit(
        cluster,
        "array",
        f"[ -e {name} ] && exit 0; touch {name}; while [ ! -e {go} ]; do sleep 0.2; done",
        "--array=0-1",
    )
    tasks = [Job(cluster, f"{job.number}_{number}") for number in (0, 1)]
    for number, task in enumerate(tasks):
        task.wait(Path(f"{mark}.{number}").exists, "begun")
    (namesake,) = [task for task in tasks if task.facts()["JobId"] == job.number]
    (other,) = [task for task in tasks if task is not namesake]
    cluster.run("scancel", "--signal=USR1", "--batch", namesake.number)
    namesake.wait(lambda: namesake.restarts == 1, "requeued")
    go.touch()
    namesake.completed()
    other.completed()
    assert other.restarts == 0 and namesake.restarts == 1


def test_terminated_without_a_warning_it_is_requeued(cluster: Cluster):
    """Preemption: Slurm signals the step, not the batch script."""
    job = submit(cluster, "preempted", begun_twice(cluster, "preempted", "sleep 600"))
    job.wait((cluster.work / "preempted.begun").exists, "begun")
    cluster.run("scancel", "--signal=TERM", job.number)
    job.completed()
    assert job.restarts == 1 and "asked to make room" not in job.log


def test_a_failure_is_a_failure(cluster: Cluster):
    job = submit(cluster, "fails", "exit 3")
    job.wait_for("FAILED")
    assert job.facts()["ExitCode"] == "3:0" and job.restarts == 0


def test_requeued_too_often_it_gives_up(cluster: Cluster, tmp_path: Path):
    job = submit(cluster, "again", "kill -TERM $$", "--export=ALL,MAX_RESTARTS=1")
    job.wait_for("FAILED")
    assert job.restarts == 1 and "MAX_RESTARTS" in job.log
