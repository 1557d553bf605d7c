"""Launch environment: the variables that torchrun, accelerate, deepspeed and Slurm set for this process.

torchrun, accelerate and deepspeed set LOCAL_RANK, LOCAL_WORLD_SIZE and WORLD_SIZE. `srun` sets SLURM_LOCALID
and SLURM_STEP_NUM_TASKS. This module does not communicate with other processes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from brasyn_dist.common.processes import available_processors, machine, started

JOB_VARIABLE = "BRASYN_JOB"
"""Environment variable with the name of the job, for schedulers that are not known here."""


@dataclass(frozen=True)
class LaunchContext:
    """Position of this process among the processes of its node and job."""

    local_rank: int = 0
    local_world_size: int = 1
    """Number of processes of the job on this node."""
    job: str | None = None
    """Equal in all processes of a job, different for every job; None if there is no job."""
    processors: int | None = None
    """Processors of this process, where Slurm sets their number."""

    @property
    def threads(self) -> int | None:
        """This process' share of the node's processors; None (the library's default) if it has them all."""
        if self.local_world_size == 1:
            return None
        return self.processors or max(1, available_processors() // self.local_world_size)


def launch_context(environment: Mapping[str, str] = os.environ) -> LaunchContext:
    """The context that the environment variables describe."""
    job = job_name(environment)
    if "LOCAL_RANK" in environment:
        local_world_size = int(environment.get("LOCAL_WORLD_SIZE", 1))
        return LaunchContext(int(environment["LOCAL_RANK"]), local_world_size, job)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # Such as 4(x2),3. Nodes may have different numbers of tasks: the largest one is taken.
        tasks = re.findall(r"\d+(?=\(|,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        processors = environment.get("SLURM_CPUS_PER_TASK")
        local_rank = int(environment.get("SLURM_LOCALID", 0))
        return LaunchContext(local_rank, max(map(int, tasks)), job, int(processors) if processors else None)
    return LaunchContext(job=job)


def job_name(environment: Mapping[str, str]) -> str | None:
    """A name of the job, None if there is none. It differs between starts; a requeued Slurm job keeps it."""
    launched = "LOCAL_RANK" in environment
    if JOB_VARIABLE in environment:
        return environment[JOB_VARIABLE]
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"slurm-array-{environment['SLURM_ARRAY_JOB_ID']}"
    if launched and environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE"):
        return f"launcher-{machine()}-{os.getppid()}-{started(os.getppid())}"
    if launched or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
        if all(name in environment for name in names):
            return "slurm-" + ".".join(environment[name] for name in names)
    return None
