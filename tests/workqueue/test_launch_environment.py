"""Launch environment: position on the node, threads, and the name of the job."""

import os

import pytest

from brasyn_dist.common.launch_environment import LaunchContext, job_name, launch_context

TORCHRUN = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "WORLD_SIZE": "2"}
NODES = {**TORCHRUN, "RANK": "3", "WORLD_SIZE": "4"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "2"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "1,4"}
ARRAY = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "local_rank", "local_world_size"),
    [({}, 0, 1), (TORCHRUN, 1, 2), (NODES, 1, 2), (STEP, 2, 4), (ARRAY, 0, 1), ({"LOCAL_RANK": "0"}, 0, 1)],
)
def test_position(environment: dict[str, str], local_rank: int, local_world_size: int) -> None:
    context = launch_context(environment)
    assert (context.local_rank, context.local_world_size) == (local_rank, local_world_size)
    assert (context.threads is None) == (local_world_size == 1)


def test_tasks_per_node_in_slurms_short_form() -> None:
    assert launch_context({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x12),3"}).local_world_size == 4
    assert launch_context({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x16)"}).local_world_size == 2


def test_threads_are_shared_out() -> None:
    processors = len(os.sched_getaffinity(0))
    assert LaunchContext(0, 2).threads == max(1, processors // 2)
    assert LaunchContext(0, 1000).threads == 1
    assert launch_context({**STEP, "SLURM_CPUS_PER_TASK": "12"}).threads == 12


def test_jobs() -> None:
    assert job_name({}) is None and job_name({"SLURM_JOB_ID": "7", "SLURM_LOCALID": "0"}) is None
    assert job_name(ARRAY) == job_name({**ARRAY, "SLURM_JOB_ID": "10"}) == "slurm-array-8"
    assert job_name(STEP) == "slurm-7.0"
    assert job_name({**STEP, **NODES}) == "slurm-7.0"
    assert job_name({**ARRAY, "BRASYN_JOB": "mine"}) == "mine"
    # In an interactive step two commands are two jobs, though Slurm's numbers are the same.
    assert str(os.getppid()) in (job_name({**STEP, "SLURM_STEP_NUM_TASKS": "1", **TORCHRUN}) or "")
    assert job_name({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert job_name(NODES) is None  # two nodes without Slurm: nothing tells this start from the last
