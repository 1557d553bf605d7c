"""What launchers and Slurm tell a process in its environment: which of the node's devices is its own, who belongs to its job.

Nothing here talks to other processes. torchrun, accelerate and deepspeed set LOCAL_RANK, LOCAL_WORLD_SIZE and WORLD_SIZE; `srun`
sets SLURM_LOCALID, SLURM_STEP_NUM_TASKS and the like.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from brasyn_dist.common.processes import machine, started

JOB = "BRASYN_JOB"
"""Environment variable with a name for processes that belong together, for schedulers that are not known here."""


@dataclass(frozen=True)
class Place:
    """This process among those of its node and job."""

    local_rank: int = 0
    local_world: int = 1
    """Processes of the job on this node."""
    job: str | None = None
    """The same for all processes of a job, another for every job; None if nothing tells that there are others."""
    processors: int | None = None
    """For this process alone, where Slurm says so."""

    @property
    def threads(self) -> int | None:
        """This process' part of the node's processors; None: the library's own choice, as it has them all."""
        if self.local_world == 1:
            return None
        return self.processors or max(1, len(os.sched_getaffinity(0)) // self.local_world)


def place_of(environment: Mapping[str, str] = os.environ) -> Place:
    job = job_of(environment)
    if "LOCAL_RANK" in environment:
        return Place(int(environment["LOCAL_RANK"]), int(environment.get("LOCAL_WORLD_SIZE", 1)), job)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # Such as 4(x2),3: the largest, since the parts of a node need not be exact.
        tasks = re.findall(r"\d+(?=\(|,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        processors = environment.get("SLURM_CPUS_PER_TASK")
        local_rank = int(environment.get("SLURM_LOCALID", 0))
        return Place(local_rank, max(map(int, tasks)), job, int(processors) if processors else None)
    return Place(job=job)


def job_of(environment: Mapping[str, str]) -> str | None:
    """A name that tells this start from all others. A requeued Slurm job keeps its own: it goes on."""
    launched = "LOCAL_RANK" in environment
    if JOB in environment:
        return environment[JOB]
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"slurm-array-{environment['SLURM_ARRAY_JOB_ID']}"
    if launched and environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE"):
        return f"launcher-{machine()}-{os.getppid()}-{started(os.getppid())}"
    if launched or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
        if all(name in environment for name in names):
            return "slurm-" + ".".join(environment[name] for name in names)
    return None
