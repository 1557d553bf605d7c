"""From a configuration to a trainer: data, networks, the checkpoint to continue from, telemetry."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from brasyn_dist.config import Config, to_dict
from brasyn_dist.data.normalise import Normaliser
from brasyn_dist.distributed import Distributed
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.export import load_generator_weights
from brasyn_dist.models.generator import build_generator, default_execution
from brasyn_dist.models.passes import SynthesisPasses
from brasyn_dist.processes import starting_up
from brasyn_dist.telemetry import Telemetry
from brasyn_dist.training import run_folder
from brasyn_dist.training.average import average_of
from brasyn_dist.training.checkpoint import Checkpoint, newest_intact, open_checkpoint, step_folders
from brasyn_dist.training.data import TrainingData, open_data
from brasyn_dist.training.execution import compile_in_place, compile_mode, memory_format
from brasyn_dist.training.explain import explaining
from brasyn_dist.training.loop import Trainer
from brasyn_dist.training.schedule import scaled_rate, total_steps
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.step import GanStep
from brasyn_dist.training.validation import Validator


def run(config: Config) -> int:
    """Train, or continue training, until the end or a request to stop. Returns the exit status (training/stop.py)."""
    with starting_up():
        distributed = Distributed(config.runtime)
    try:
        lock = lock_run(config.run_dir, distributed)
        with explaining(config.run_dir, distributed):
            with starting_up():
                trainer = build_trainer(config, distributed)
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


def build_trainer(config: Config, distributed: Distributed) -> Trainer:
    """Everything that `Trainer` needs, at the step from which the run goes on."""
    data = open_data(config, distributed)
    identity = run_folder.run_identity(config, data.training.fingerprint)
    steps = total_steps(config.training, data.samples)
    checkpoint = choose_checkpoint(config, identity, distributed)
    state = build_state(config, distributed)
    if checkpoint is not None:
        state.load(checkpoint)
        distributed.scaler_state = checkpoint.state["loss_scale"]
    if distributed.is_main:
        run_folder.record(config.run_dir, config, distributed.world, device_name(distributed))
        run_folder.write_status(config.run_dir, "running", state.step, steps)
    telemetry = Telemetry(
        config.telemetry,
        config.run_dir,
        distributed.is_main,
        steps,
        state.step if checkpoint else (0 if config.checkpoint.resume == "auto" else None),
        to_dict(config),
    )
    for line in start_table(config, distributed, data, state, steps, checkpoint):
        telemetry.say(line)
    normaliser = Normaliser(data.statistics, distributed.device)
    step = GanStep(config, distributed, state.generator, state.discriminator, normaliser)
    validator = build_validator(config, distributed, data, normaliser)
    return Trainer(config, distributed, data, state, step, validator, telemetry, identity, steps)


def build_state(config: Config, distributed: Distributed) -> TrainState:
    """Both networks with their optimisers, at step 0: weights are a function of the seed (or of `init_from`)."""
    runtime, device = config.runtime, distributed.device
    execution = runtime.encoder_execution or default_execution(device)
    generator = build_generator(config.generator, config.seed, execution)
    if config.checkpoint.init_from is not None:
        load_generator_weights(generator, Path(config.checkpoint.init_from))
    discriminator = build_discriminator(config.discriminator, config.seed)
    for network in (generator, discriminator):
        network.to(device, memory_format=memory_format(config, device))  # type: ignore[call-overload]
    average = average_of(generator) if config.training.ema_decay > 0 else None
    needs_cycle = config.objective.cycle > 0 or config.objective.feature > 0
    passes = SynthesisPasses(generator, fast=config.training.fast_passes, cycle=needs_cycle)
    compile_in_place(config, device, passes, discriminator)
    rate = scaled_rate(config.optimizer, config.training.global_batch_size)
    return TrainState(
        distributed.prepare(passes, adam(config, generator, rate), generator),
        distributed.prepare(
            discriminator,
            adam(config, discriminator, rate * config.optimizer.discriminator_ratio),
            discriminator,
        ),
        average,
    )


def adam(config: Config, network: nn.Module, rate: float) -> torch.optim.Adam:
    options = config.optimizer
    fused = next(network.parameters()).device.type == "cuda"
    return torch.optim.Adam(network.parameters(), lr=rate, betas=options.betas, eps=options.eps, fused=fused)


def choose_checkpoint(
    config: Config, identity: dict[str, Any], distributed: Distributed
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


def find_checkpoint(config: Config, identity: dict[str, Any]) -> Checkpoint | None:
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
    config: Config, distributed: Distributed, data: TrainingData, normaliser: Normaliser
) -> Validator | None:
    options = config.validation
    if options.every_steps == 0 or options.slices == 0 or data.validation is None:
        return None
    return Validator(
        data.validation,
        options.slices,
        options.batch_size,
        options.panels,
        normaliser,
        distributed,
        config.generator.image_size,
    )


def device_name(distributed: Distributed) -> str:
    if distributed.device.type == "cuda":
        return torch.cuda.get_device_name(distributed.device)
    return f"CPU, {torch.get_num_threads()} threads a process"


def start_table(
    config: Config,
    distributed: Distributed,
    data: TrainingData,
    state: TrainState,
    steps: int,
    checkpoint: Checkpoint | None,
) -> list[str]:
    """What a person wants to know before the first step, as `name  value` lines."""
    device = distributed.device
    training = config.training
    execution = config.runtime.encoder_execution or default_execution(device)
    facts = {
        "run": f"{config.run_dir}"
        + (f", continues at step {state.step}" if checkpoint else ", from the start"),
        "processes": f"{distributed.world} x {device_name(distributed)}",
        "data": f"{data.samples} slices for training, {len(data.validation or ())} held out ({', '.join(config.data.views)})",
        "length": f"{steps} steps, {training.updates_per_batch} a global batch of {training.global_batch_size} slices",
        "generator": f"{count_parameters(state.generator.module):,} parameters, encoders {execution}",
        "discriminator": f"{count_parameters(state.discriminator.module):,} parameters",
        "execution": f"precision {config.runtime.precision}, compile {compile_mode(config, device)}, "
        f"{str(memory_format(config, device)).removeprefix('torch.')}, "
        f"TF32 {'on' if device.type == 'cuda' and config.runtime.tf32 else 'off'}",
        "validation": "off"
        if data.validation is None or not config.validation.every_steps
        else f"every {config.validation.every_steps} steps",
    }
    return [f"{name:<14}{value}" for name, value in facts.items()]


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
