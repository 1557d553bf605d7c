"""What environments tell: devices, threads, and who belongs together."""

import os

import pytest

from brasyn_dist.common.launch_environment import Place, job_of, place_of

TORCHRUN = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "WORLD_SIZE": "2"}
NODES = {**TORCHRUN, "RANK": "3", "WORLD_SIZE": "4"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "2"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "1,4"}
ARRAY = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "local_rank", "local_world"),
    [({}, 0, 1), (TORCHRUN, 1, 2), (NODES, 1, 2), (STEP, 2, 4), (ARRAY, 0, 1), ({"LOCAL_RANK": "0"}, 0, 1)],
)
def test_place(environment: dict[str, str], local_rank: int, local_world: int) -> None:
    place = place_of(environment)
    assert (place.local_rank, place.local_world) == (local_rank, local_world)
    assert (place.threads is None) == (local_world == 1)


def test_tasks_per_node_in_slurms_short_form() -> None:
    assert place_of({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x12),3"}).local_world == 4
    assert place_of({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x16)"}).local_world == 2


def test_threads_are_shared_out() -> None:
    processors = len(os.sched_getaffinity(0))
    assert Place(0, 2).threads == max(1, processors // 2)
    assert Place(0, 1000).threads == 1
    assert place_of({**STEP, "SLURM_CPUS_PER_TASK": "12"}).threads == 12


def test_jobs() -> None:
    assert job_of({}) is None and job_of({"SLURM_JOB_ID": "7", "SLURM_LOCALID": "0"}) is None
    assert job_of(ARRAY) == job_of({**ARRAY, "SLURM_JOB_ID": "10"}) == "slurm-array-8"
    assert job_of(STEP) == "slurm-7.0"
    assert job_of({**STEP, **NODES}) == "slurm-7.0"
    assert job_of({**ARRAY, "BRASYN_JOB": "mine"}) == "mine"
    # In an interactive step two commands are two jobs, though Slurm's numbers are the same.
    assert str(os.getppid()) in (job_of({**STEP, "SLURM_STEP_NUM_TASKS": "1", **TORCHRUN}) or "")
    assert job_of({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert job_of(NODES) is None  # two nodes without Slurm: nothing tells this start from the last
