"""Kind 3: environment variables do what their users expect, are refused by name, or change nothing."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from brasyn_dist.common.launch_environment import check_environment, launch_context
from brasyn_dist.errors import ConfigError
from tests.distributed.warm import WarmRun
from tests.small import small_shard_set

HARMLESS = {
    "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no", "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001", "ACCELERATE_SPLIT_BATCHES": "true", "ACCELERATE_CPU_AFFINITY": "true",
    "ACCELERATE_DEBUG_MODE": "true", "ACCELERATE_NUM_PROCESSES": "4", "ACCELERATE_ALLOW_CP_STANDALONE": "true",
    "ACCELERATE_DYNAMO_MODE": "max-autotune", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "XLA_USE_BF16": "1",
    "TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1", "PYTORCH_JIT": "0", "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "0", "TORCHINDUCTOR_USE_FAST_MATH": "1",
    "OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "3", "PYTHONHASHSEED": "5", "DS_ACCELERATOR": "cuda",
    "CUDA_VISIBLE_DEVICES": "7", "PJRT_DEVICE": "CPU",
    "WANDB_MODE": "online", "WANDB_DISABLED": "true", "WANDB_PROJECT": "x", "WANDB_RUN_ID": "abc", "WANDB_DIR": "w",
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "2", "SLURM_RESTART_COUNT": "2",
    "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "9", "SLURM_GPUS_ON_NODE": "3",
    "SLURM_MEM_PER_CPU": "100", "LC_ALL": "POSIX",
}  # fmt: skip
"""Set together; if the test fails, set them one by one."""
REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_LOG_LEVEL": "loud", "ACCELERATE_TORCH_DEVICE": "meta", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_MIXED_PRECISION": "bf16",
}  # fmt: skip
Train = Callable[..., tuple[int, str, str, list[str]]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    work = tmp_path_factory.mktemp("environment")
    shards = small_shard_set(work / "shards")

    def run(name: str, environment: dict[str, str], processes: int = 1) -> tuple[int, str, str, list[str]]:
        """Status, hash of metrics and weights, output, names of the files beside the run."""
        folder: Path = work / name
        folder.mkdir()
        options = (
            f"runs_dir={folder}",
            f"data.shards={shards}",
            "training.max_steps=2",
            "telemetry.log_every=1",
        )
        status = WarmRun(options, folder / "log", processes, environment=environment).wait(300)
        digest = hashlib.sha256()
        for path in (folder / "run" / "metrics.jsonl", folder / "run" / "export" / "model.safetensors"):
            digest.update(path.read_bytes() if path.exists() else b"")
        return (
            status,
            digest.hexdigest(),
            (folder / "log").read_text(),
            sorted(p.name for p in folder.iterdir()),
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_known_variables_change_no_byte(processes: int, train: Train):
    plain = train(f"plain-{processes}", {}, processes)
    changed = train(f"changed-{processes}", HARMLESS, processes)
    assert plain[0] == changed[0] == 0, changed[2]
    assert plain[1] == changed[1]
    assert plain[3] == changed[3], "the variables put files elsewhere"


@pytest.mark.parametrize("name", REFUSED)
def test_variables_that_change_the_mathematics_are_refused(name: str):
    with pytest.raises(ConfigError, match=f"{name}={REFUSED[name]}: .*(unset|set)"):
        check_environment("no", {name: REFUSED[name]})


def test_equal_settings_of_launcher_and_run_are_accepted():
    check_environment("bf16", {"ACCELERATE_MIXED_PRECISION": "bf16"})
    check_environment("no", {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {"ACCELERATE_LOG_LEVEL": "loud"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"LOCAL_RANK": "0"},
     {"PMI_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"SLURM_STEP_NUM_TASKS": "4"}],
    ids=str,
)  # fmt: skip
def test_a_training_is_refused_in_one_line(environment: dict[str, str], train: Train):
    status, _, output, _ = train(f"refused-{next(iter(environment))}", environment)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in output
    assert next(iter(environment)) in lines[0]


@pytest.mark.parametrize(
    "name", ["LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_CPUS_PER_TASK", "SLURM_LOCALID"]
)
def test_numbers_of_launchers_are_checked(name: str):
    environment = {"SLURM_STEP_NUM_TASKS": "2", name: "many"}
    with pytest.raises(ConfigError, match=f"{name}='many': expected a whole number"):
        launch_context(environment)


def test_empty_variables_are_absent_ones():
    assert launch_context({"SLURM_STEP_NUM_TASKS": "", "SLURM_CPUS_PER_TASK": ""}).local_world_size == 1
    assert "PATH" in os.environ
