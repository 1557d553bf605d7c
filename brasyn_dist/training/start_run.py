"""From a configuration to a trainer: data, networks, the checkpoint to continue from, loggers."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brasyn_dist.common.files import check_folder, os_error_text
from brasyn_dist.common.processes import starting_up
from brasyn_dist.config import RunConfig, to_dict
from brasyn_dist.distributed.process_group import Distributed, is_lost_peer, resolve_runtime, zero_of_launch
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.errors import BrasynError, CheckpointError, ConfigError, out_of_memory
from brasyn_dist.training import run_dir as run_folder
from brasyn_dist.training.checkpoint import Checkpoint, newest_intact, open_checkpoint, step_folders
from brasyn_dist.training.loggers import RunLogger, check_trackers
from brasyn_dist.training.network_setup import compile_mode, memory_format
from brasyn_dist.training.schedule import total_steps
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.task import Task
from brasyn_dist.training.trainer import Trainer
from brasyn_dist.training.training_data import TrainingData
from brasyn_dist.training.window_check import describe_brain_outside

log = logging.getLogger(__name__)


class MachineError(BrasynError):
    """A failure of another process, the network or the file system."""


def run(task: Task) -> int:
    """Train from the newest checkpoint to the end or to a stop request.

    Returns:
        Exit status: FINISHED (training/stop_request.py) or STOPPED (common/processes.py).

    Raises:
        BrasynError: See its subclasses; all ranks raise one.
    """
    check_trackers(task.config.telemetry)
    with starting_up():
        zero = zero_of_launch(task.config.runtime)
        runtime = resolve_runtime(task.config.runtime, zero)
        group = Distributed(runtime, zero)
    config = replace(task.config, runtime=runtime)
    task = type(task)(config)
    try:
        training = config.training
        try:
            group.check(training.global_batch_size, training.micro_batch_size, training.ema_decay > 0)
        except ConfigError:
            group.barrier()  # all ranks raise it; a rank that is still connecting needs the others until then
            raise
        lock = lock_run(config.run_dir, group)
        # Outside: status.json gets the messages of `machine_errors`.
        with run_folder.noting_failure(config.run_dir, group.is_main), machine_errors(config.run_dir, group):
            with starting_up():
                trainer = build_trainer(task, group)
            code = trainer.train()
        if lock is not None:
            lock.release()
        return code
    finally:
        group.close()


def check(task: Task) -> None:
    """Refuse what `run` would refuse at its start, in one process and without a trace in the run folder.

    Checked are the trackers, the run folder, the shard set, the checkpoint to continue from and the weights
    to start from; the last two not while the result of another run is missing.

    Raises:
        BrasynError: See its subclasses.
        OSError: The run folder cannot be written.
    """
    config = task.config
    check_trackers(config.telemetry)
    check_run_folder(config.run_dir)
    group = SingleProcess(config.runtime)
    whole = replace(config, runtime=replace(config.runtime, rank_shares=()))
    data = replace(task, config=whole).open_data(group)
    if task.missing() is not None:
        return
    task.check(data)
    identity = run_folder.run_identity(config, data.training.fingerprint, task.identity())
    if find_checkpoint(task, identity) is None and config.checkpoint.init_from is not None:
        task.build_state(group, data.modality_set)


@contextmanager
def machine_errors(run_dir: Path, group: Distributed) -> Iterator[None]:
    """Context that turns errors of communication and of the run folder into MachineError."""
    intact = "Complete checkpoints are untouched: after the cause is removed, the same command continues"
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"rank {group.rank}: {run_dir}: {error}. Free space, or make the folder writable. {intact}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if problem := out_of_memory(error):
            raise MachineError(
                f"rank {group.rank}: {problem}. Reduce training.micro_batch_size (same result), or set "
                "runtime.recompute=activations or runtime.precision=bf16; `brasyn train --dry-run` says what "
                f"fits. {intact}"
            ) from error
        if isinstance(error, MemoryError) or not is_lost_peer(error):
            raise
        minutes = group.runtime.collective_timeout_minutes
        raise MachineError(
            f"rank {group.rank}: no answer from another rank; it has failed, or did not answer for "
            f"{minutes:g} minutes (runtime.collective_timeout_minutes). Its own message, above or in "
            f"{run_dir}/logs/rank-*.log, says why. {intact}. [{str(error).splitlines()[0]}]"
        ) from error


def check_run_folder(run_dir: Path) -> None:
    """Raise OSError if the run folder or a folder in it cannot be written, or is a file."""
    for part in ("", run_folder.CHECKPOINTS, run_folder.EXPORT, run_folder.PANELS):
        check_folder(run_dir / part)


def lock_run(run_dir: Path, group: Distributed) -> run_folder.RunLock | None:
    """Rank 0 takes the run folder. Every rank raises BrasynError if it could not."""
    locks: list[run_folder.RunLock] = []

    def take() -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            check_run_folder(run_dir)
            locks.append(run_folder.RunLock(run_dir))
        except (BrasynError, OSError) as problem:
            text = os_error_text(problem) if isinstance(problem, OSError) else problem
            raise BrasynError(f"{run_dir} cannot be used: {text}") from None

    group.on_main(take)
    return locks[0] if locks else None


def build_trainer(task: Task, group: Distributed) -> Trainer:
    """The trainer, at the step from which the run continues."""
    config = task.config
    data = task.open_data(group)
    task.check(data)
    # Shards behind a URL would have to be fetched first.
    local = group.is_main and Path(config.data.shards).is_dir() and data.unit == "slices"
    if local and (warning := describe_brain_outside(data.training, config.image_shape)):
        log.warning("%s", warning)
    identity = run_folder.run_identity(config, data.training.fingerprint, task.identity())
    steps = total_steps(config.training, data.samples)
    begin = time.monotonic()
    checkpoint: Checkpoint | None = group.on_main(lambda: find_checkpoint(task, identity))
    resume_seconds = time.monotonic() - begin
    state = task.build_state(group, data.modality_set)
    if checkpoint is not None:
        begin = time.monotonic()
        state.load(checkpoint)
        group.scaler_state = checkpoint.state["loss_scale"]
        resume_seconds += time.monotonic() - begin
    if group.is_main:
        run_folder.record(config.run_dir, config, group.world, device_name(group), task.sources())
        data.record()
        run_folder.write_status(config.run_dir, "running", state.step, steps)
    resumed_step = state.step if checkpoint else (0 if config.checkpoint.resume == "auto" else None)
    logger = RunLogger(config.telemetry, config.run_dir, group.is_main, steps, resumed_step, to_dict(config))
    for name, value in start_table(task, group, data, state, steps, checkpoint).items():
        logger.info(f"{name:<14}{value}")
    if checkpoint is not None:
        logger.resumed(state.step, resume_seconds)
    normaliser = data.preprocessing.normaliser(group.device)
    step = task.build_step(group, state, normaliser)
    validator = task.build_validator(group, data, normaliser) if validates(config, data) else None

    def export(network: nn.Module, at_step: int) -> None:
        task.export(network, config.run_dir / run_folder.EXPORT, data, at_step)

    return Trainer(config, group, data, state, step, validator, export, logger, identity, steps)


def validates(config: RunConfig, data: TrainingData) -> bool:
    """0 validation steps or slices switch validation off."""
    return bool(config.validation.every_steps and config.validation.slices and data.validation is not None)


def find_checkpoint(task: Task, identity: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to continue from, verified. Raises CheckpointError."""
    config = task.config
    root, resume = config.run_dir / run_folder.CHECKPOINTS, config.checkpoint.resume
    if resume == "never":
        if step_folders(root):
            raise CheckpointError(
                f"{root} has checkpoints and checkpoint.resume=never: choose another name=, or remove the "
                f"folder"
            )
        return None
    if resume == "auto":
        found, problems = newest_intact(root)
        for problem in problems:
            log.warning("passed over a damaged checkpoint: %s", problem)
        if found is None and problems:
            raise CheckpointError(
                f"{root}: none of {len(problems)} checkpoints is intact; to start again from step 0, "
                f"remove the folder"
            )
    else:
        found = open_checkpoint(Path(resume))
    if found is not None:
        default = type(task)(type(config).before_options())
        defaults = run_folder.run_identity(default.config, "", default.identity())
        run_folder.check_identity(found.state["identity"], identity, defaults, found.folder)
        for change in run_folder.changed_options(found.state["options"], config):
            log.warning("option changed since %s: %s", found.folder.name, change)
    return found


def device_name(group: Distributed) -> str:
    """Name of this process' device."""
    return torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU"


def device_settings(config: RunConfig, device: torch.device) -> str:
    """Settings of torch on this device, and numbers of threads."""
    threads = f"{torch.get_num_threads()} threads for tensors, {config.data.threads} for data"
    if device.type != "cuda":
        return threads
    on = {True: "on", False: "off"}
    tf32, benchmark = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    return f"TF32 {on[tf32]}, cuDNN benchmark {on[benchmark]}, {threads}"


def start_table(
    task: Task,
    group: Distributed,
    data: TrainingData,
    state: TrainState,
    steps: int,
    checkpoint: Checkpoint | None,
) -> dict[str, str]:
    """The run in a few lines (name -> value), before the first step."""
    config, device = task.config, group.device
    training, runtime = config.training, config.runtime
    start = f"continues at step {state.step}" if checkpoint else "from the start"
    return {
        "run": f"{config.run_dir}, {start}",
        "processes": f"{group.world} x {device_name(group)}, {group.strategy}",
        "data": data.describe(),
        "length": f"{steps} steps, {training.updates_per_batch} per global batch of "
        f"{training.global_batch_size} {data.unit}",
        **task.describe(state, group),
        "execution": f"precision {runtime.precision}, compile {compile_mode(config, device)}, "
        f"{str(memory_format(config, device)).removeprefix('torch.')}, "
        f"{device_settings(config, device)}, recompute {runtime.recompute}",
        "communication": group.communication,
        "validation": f"every {config.validation.every_steps} steps" if validates(config, data) else "off",
    }
