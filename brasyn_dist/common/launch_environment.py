"""Launch environment: the variables that torchrun, accelerate, deepspeed and Slurm set for this process.

torchrun, accelerate and deepspeed set LOCAL_RANK, LOCAL_WORLD_SIZE and WORLD_SIZE. `srun` sets SLURM_LOCALID
and SLURM_STEP_NUM_TASKS. This module does not communicate with other processes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from brasyn_dist.common.processes import available_processors, machine, started
from brasyn_dist.errors import ConfigError

REFUSED = {
    "ACCELERATE_USE_FSDP": (
        "true",
        "FSDP is not supported; shard by launch/deepspeed_zero2.yaml, or unset it",
    ),
    "ACCELERATE_USE_MEGATRON_LM": ("true", "Megatron-LM is not supported; unset it"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("true", "parallelism configurations are not supported; unset it"),
    "ACCELERATE_USE_SAGEMAKER": ("true", "SageMaker is not supported; unset it"),
    "ACCELERATE_DYNAMO_BACKEND": ("(?!no$).+", "runtime.compile compiles the networks; set it to no"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "(?!1$).+",
        "training.micro_batch_size accumulates gradients; set it to 1",
    ),
    "ACCELERATE_MIXED_PRECISION": (
        "(?!no$).+",
        "runtime.precision={} sets the precision; give it, or set the variable to no",
    ),
    "ACCELERATE_FP8_BACKEND": (".+", "fp8 is not supported; unset it"),
    "ACCELERATE_LOG_LEVEL": (
        r"(?!(debug|info|warning|error|critical)$).+",
        "expected debug, info, warning, error or critical; unset it",
    ),
    "ACCELERATE_TORCH_DEVICE": (r"(?!cpu$|cuda(:\d+)?$).+", "expected cpu or cuda; unset it"),
}
"""Variables of Accelerate that would change the mathematics, or seem to: refused values and the remedy."""
NUMERICAL = re.compile(
    "ATEN_CPU_CAPABILITY|CUBLAS_|CUDNN_|DNNL_|DS_ACCELERATOR|MKL_|NVIDIA_TF32_OVERRIDE|OMP_NUM_THREADS|"
    "ONEDNN_|PYTORCH_(CUDA_)?ALLOC|TORCHDYNAMO_|TORCHINDUCTOR_|TORCH_(ALLOW_TF32|COMPILE|CUDNN)_"
)
"""Variables that choose other kernels, and so other roundings; environment.json lists them."""
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
        local_world_size = number(environment, "LOCAL_WORLD_SIZE", 1)
        return LaunchContext(number(environment, "LOCAL_RANK", 0), local_world_size, job)
    if number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        # Such as 4(x2),3. Nodes may have different numbers of tasks: the largest one is taken.
        tasks = re.findall(r"\d+(?=\(|,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        processors = number(environment, "SLURM_CPUS_PER_TASK", 0)
        local_rank = number(environment, "SLURM_LOCALID", 0)
        return LaunchContext(local_rank, max(map(int, tasks)), job, processors or None)
    return LaunchContext(job=job)


def check_environment(precision: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables by which Accelerate would compute something else than the configuration says.

    Args:
        precision: runtime.precision; a launcher may ask for the same.
        environment: Environment variables.

    Raises:
        ConfigError: Names the variable, its value and what to do.
    """
    for name, (refused, remedy) in REFUSED.items():
        value = environment.get(name, "").lower()
        if re.fullmatch(refused, value) and (name, value) != ("ACCELERATE_MIXED_PRECISION", precision):
            raise ConfigError(f"{name}={environment[name]}: {remedy.format(value)}")
    tasks = number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if tasks > 1 and "RANK" not in environment:
        raise ConfigError(
            f"SLURM_STEP_NUM_TASKS={tasks}: srun started processes that do not know of each other; let it "
            "start one accelerate launch or torchrun on each node (as slurm/train.sbatch), or unset it"
        )


def number(environment: Mapping[str, str], name: str, default: int) -> int:
    """Whole number in a variable. Raises ConfigError if the variable has another content."""
    text = environment.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"{name}={text!r}: expected a whole number; unset it") from None


def job_name(environment: Mapping[str, str]) -> str | None:
    """A name of the job, None if there is none. It differs between starts; a requeued Slurm job keeps it."""
    launched = "LOCAL_RANK" in environment
    if JOB_VARIABLE in environment:
        return environment[JOB_VARIABLE]
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"slurm-array-{environment['SLURM_ARRAY_JOB_ID']}"
    if launched and environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE"):
        return f"launcher-{machine()}-{os.getppid()}-{started(os.getppid())}"
    if launched or number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
        if all(name in environment for name in names):
            return "slurm-" + ".".join(environment[name] for name in names)
    return None
