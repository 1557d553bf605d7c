"""From a configuration to a trainer: data, networks, the checkpoint to continue from, telemetry."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brasyn_dist.common.processes import starting_up
from brasyn_dist.common.typed_yaml import to_dict
from brasyn_dist.config import RunConfig
from brasyn_dist.distributed.process_group import Distributed, resolve_runtime, zero_of_launch
from brasyn_dist.errors import BrasynError, CheckpointError, ConfigError
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.report.training_report import record_data
from brasyn_dist.training import run_dir as run_folder
from brasyn_dist.training.checkpoint import Checkpoint, newest_intact, open_checkpoint, step_folders
from brasyn_dist.training.compilation import compile_mode, memory_format
from brasyn_dist.training.failure_messages import explaining
from brasyn_dist.training.loggers import Telemetry
from brasyn_dist.training.schedule import total_steps
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.task import Task
from brasyn_dist.training.trainer import Trainer
from brasyn_dist.training.training_data import TrainingData, open_data
from brasyn_dist.training.validation import SliceValidator


def run(task: Task) -> int:
    """Train, or continue training, until the end or a request to stop. Returns the exit status (training/stop_request.py)."""
    with starting_up():
        zero = zero_of_launch(task.config.runtime)
        runtime = resolve_runtime(task.config.runtime, zero)
        distributed = Distributed(runtime, zero)
    task = task.with_runtime(runtime)
    config = task.config
    try:
        training = config.training
        try:
            distributed.check(training.global_batch_size, training.micro_batch_size, training.ema_decay > 0)
        except ConfigError:
            distributed.barrier()  # all refuse; whoever is still connecting must not meet a rank that has gone
            raise
        lock = lock_run(config.run_dir, distributed)
        # The status gets the words that `explaining` finds.
        with (
            run_folder.noting_failure(config.run_dir, distributed.is_main),
            explaining(config.run_dir, distributed),
        ):
            with starting_up():
                trainer = build_trainer(task, distributed)
            code = trainer.fit()
        if lock is not None:
            lock.release()
        return code
    finally:
        distributed.close()


def lock_run(run_dir: Path, distributed: Distributed) -> run_folder.RunLock | None:
    """Rank 0 takes the run folder; every rank learns if it could not."""
    lock, error = None, None
    if distributed.is_main:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = run_folder.RunLock(run_dir)
        except (BrasynError, OSError) as problem:
            error = BrasynError(f"{run_dir} cannot be used: {problem}")
    distributed.main_first(error=error)
    return lock


def build_trainer(task: Task, distributed: Distributed) -> Trainer:
    """Everything that `Trainer` needs, at the step from which the run goes on."""
    config = task.config
    data = open_data(config, distributed)
    task.check(data)
    identity = run_folder.run_identity(config, data.training.fingerprint, task.identity())
    steps = total_steps(config.training, data.samples)
    began_to_look = time.monotonic()
    checkpoint = choose_checkpoint(config, identity, distributed)
    resume_seconds = time.monotonic() - began_to_look
    state = task.build_state(distributed)
    if checkpoint is not None:
        began_to_load = time.monotonic()
        state.load(checkpoint)
        distributed.scaler_state = checkpoint.state["loss_scale"]
        resume_seconds += time.monotonic() - began_to_load
    if distributed.is_main:
        run_folder.record(config.run_dir, config, distributed.world, device_name(distributed), task.sources())
        held_out = len(data.validation or ())
        record_data(config.run_dir, data.index, data.samples, held_out, data.training.fingerprint)
        run_folder.write_status(config.run_dir, "running", state.step, steps)
    telemetry = Telemetry(
        config.telemetry,
        config.run_dir,
        distributed.is_main,
        steps,
        state.step if checkpoint else (0 if config.checkpoint.resume == "auto" else None),
        to_dict(config),
    )
    for line in start_table(task, distributed, data, state, steps, checkpoint):
        telemetry.say(line)
    if checkpoint is not None:
        telemetry.resumed(state.step, resume_seconds)
    normaliser = Normaliser(data.statistics, distributed.device, mode=config.data.normalisation)
    step = task.build_step(distributed, state, normaliser)
    validator = build_validator(task, distributed, data, normaliser)

    def export(network: nn.Module, at_step: int) -> None:
        task.export(network, config.run_dir / run_folder.EXPORT, data, at_step)

    return Trainer(config, distributed, data, state, step, validator, export, telemetry, identity, steps)


def adam(config: RunConfig, network: nn.Module, rate: float) -> torch.optim.Adam:
    options = config.optimizer
    fused = next(network.parameters()).device.type == "cuda"
    return torch.optim.Adam(network.parameters(), lr=rate, betas=options.betas, eps=options.eps, fused=fused)


def choose_checkpoint(
    config: RunConfig, identity: dict[str, Any], distributed: Distributed
) -> Checkpoint | None:
    """The checkpoint to continue from; rank 0 verifies and chooses for all. Raises CheckpointError as documented."""
    found: Checkpoint | None = None
    error: Exception | None = None
    if distributed.is_main:
        try:
            found = find_checkpoint(config, identity)
        except BrasynError as problem:
            error = problem
    return distributed.main_first(found, error)


def find_checkpoint(config: RunConfig, identity: dict[str, Any]) -> Checkpoint | None:
    root, resume = config.run_dir / run_folder.CHECKPOINTS, config.checkpoint.resume
    if resume == "never":
        if step_folders(root):
            raise CheckpointError(
                f"{root} has checkpoints and checkpoint.resume=never: choose another name=, or remove the folder"
            )
        return None
    if resume == "auto":
        found, passed_over = newest_intact(root)
        for reason in passed_over:
            print(f"warning: passed over a damaged checkpoint: {reason}", flush=True)
        if found is None and passed_over:
            raise CheckpointError(
                f"{root}: none of {len(passed_over)} checkpoints is intact; to start anew, remove the folder"
            )
    else:
        found = open_checkpoint(Path(resume))
    if found is not None:
        run_folder.check_identity(found.state["identity"], identity, found.folder)
        for change in run_folder.changed_options(found.state["options"], config):
            print(f"warning: option changed since {found.folder.name}: {change}", flush=True)
    return found


def build_validator(
    task: Task, distributed: Distributed, data: TrainingData, normaliser: Normaliser
) -> SliceValidator | None:
    options = task.config.validation
    if options.every_steps == 0 or options.slices == 0 or data.validation is None:
        return None
    return task.validator(
        data.validation,
        options.slices,
        options.batch_size,
        options.panels,
        normaliser,
        distributed,
        task.config.image_shape,
    )


def device_name(distributed: Distributed) -> str:
    if distributed.device.type == "cuda":
        return torch.cuda.get_device_name(distributed.device)
    return "CPU"


def device_settings(config: RunConfig, device: torch.device) -> str:
    """What `Distributed` has set on this process' device, and threads."""
    threads = f"{torch.get_num_threads()} threads for tensors, {config.data.threads} for data"
    if device.type != "cuda":
        return threads
    on = {True: "on", False: "off"}
    tf32, benchmark = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    return f"TF32 {on[tf32]}, cuDNN benchmark {on[benchmark]}, {threads}"


def start_table(
    task: Task,
    distributed: Distributed,
    data: TrainingData,
    state: TrainState,
    steps: int,
    checkpoint: Checkpoint | None,
) -> list[str]:
    """What a person wants to know before the first step, as `name  value` lines."""
    config, device = task.config, distributed.device
    training = config.training
    facts = {
        "run": f"{config.run_dir}"
        + (f", continues at step {state.step}" if checkpoint else ", from the start"),
        "processes": f"{distributed.world} x {device_name(distributed)}, {distributed.strategy}",
        "data": f"{data.samples} slices for training, {len(data.validation or ())} held out ({', '.join(config.data.views)})",
        "length": f"{steps} steps, {training.updates_per_batch} a global batch of {training.global_batch_size} slices",
        **task.facts(state, distributed),
        "execution": f"precision {config.runtime.precision}, compile {compile_mode(config, device)}, "
        f"{str(memory_format(config, device)).removeprefix('torch.')}, "
        f"{device_settings(config, device)}, recompute {config.runtime.recompute}",
        "communication": distributed.communication,
        "validation": "off"
        if data.validation is None or not config.validation.every_steps
        else f"every {config.validation.every_steps} steps",
    }
    return [f"{name:<14}{value}" for name, value in facts.items()]
