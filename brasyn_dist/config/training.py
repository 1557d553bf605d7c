"""Options of the training loop: optimiser, length, checkpoints, validation, telemetry."""

from typing import Annotated, Literal

from pydantic import Field

from brasyn_dist.config.schema import (
    FALSE_IS_OFF,
    Above0,
    BatchSize,
    Count,
    Index,
    PathText,
    Share,
    Weight,
    dataclass,
)


@dataclass(frozen=True)
class AdamConfig:
    """Adam and its learning rate, a function of the optimiser step (training/schedule.py)."""

    base_rate: Weight = 5e-4
    """Learning rate at a global batch of `reference_batch` (text of the thesis 5e-4; published runs 5e-5)."""
    reference_batch: Count = 64
    """The learning rate is multiplied by global_batch_size / reference_batch."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    eps: Above0 = 1e-8
    """Adam's denominator offset."""
    weight_decay: Weight = 0.0
    """Weight decay."""
    weight_decay_form: Literal["decoupled", "l2"] = "decoupled"
    """`decoupled`: the weights shrink (AdamW). `l2`: a penalty in the gradient (Adam, as in the thesis)."""
    warmup_steps: Index = 100
    """Optimiser steps over which the learning rate increases linearly."""
    decay: Literal["cosine", "polynomial"] = "cosine"
    """Decrease of the learning rate to 0 after the warm-up: a cosine, or (1 - progress) to the power 0.9."""
    clip_norm: Weight = 0.1
    """Maximum gradient norm of each network; 0: no clipping."""


@dataclass(frozen=True)
class OptimizerConfig(AdamConfig):
    """Adam for both networks of a GAN."""

    discriminator_ratio: Weight = 0.1
    """Learning rate of the discriminator as a fraction of the generator's."""


@dataclass(frozen=True)
class LengthConfig:
    """Length of the training and sizes of batches."""

    global_batch_size: BatchSize = 64
    """Slices of a global batch over all processes; independent of the number of processes."""
    micro_batch_size: BatchSize | None = None
    """Maximum slices that a process runs at once; gradients are accumulated exactly. null: no limit."""
    epochs: Above0 = 10.0
    """Passes over the selected slices."""
    samples: Count | None = None
    """Slices of the run in total, for a run as long as one on another selection; null: from `epochs`."""
    max_steps: Count | None = None
    """Optimiser steps of the run, where the learning rate becomes 0; null: from `samples` or `epochs`."""
    ema_decay: Share = 0.999
    """Decay of the exponential moving average of weights, used for validation and export; 0: off."""

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps that use the same global batch."""
        return 1


@dataclass(frozen=True)
class TrainingConfig(LengthConfig):
    """Length of the training, sizes of batches and variant of the GAN update."""

    updates_per_batch: Count = 4
    """Number of modalities: one update for each target modality. 1: all targets in one loss and one
    update."""
    fast_passes: bool = True
    """Encode each real slice once for both passes of an update (exact); false: each pass encodes its
    slices."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving of checkpoints, and where a run starts from."""

    every_steps: Index = 1000
    """Optimiser steps between checkpoints; 0: never by steps."""
    every_minutes: Weight = 15.0
    """Minutes after which a checkpoint is saved in any case; 0: never by time."""
    keep: Annotated[int, Field(ge=2, le=2**31 - 1)] = 2
    """Newest complete checkpoints that are kept beside the best one. The newest may be damaged, so at
    least 2."""
    resume: PathText = "auto"
    """`auto`: from the newest intact checkpoint of the run folder; `never`: refuse if there is one; or a
    path."""
    init_from: PathText | None = None
    """Export, run folder or checkpoint with the initial weights of a new run (fine-tuning). A run folder and
    a checkpoint also give the discriminator's; RUN/export gives only the generator's."""


@dataclass(frozen=True)
class ValidationConfig:
    """Validation on fixed held-out slices with the averaged network."""

    every_steps: Index = 1000
    """Optimiser steps between validations; 0: never."""
    slices: Index = 64
    """Held-out slices, the same every time; each is synthesised for every target modality. 0: none."""
    batch_size: BatchSize = 8
    """Slices of one validation batch."""
    panels: Index = 2
    """Slices shown as image panels for each target modality."""


@dataclass(frozen=True)
class TelemetryConfig:
    """Reports beside the console and metrics.jsonl."""

    log_every: Index = 10
    """Optimiser steps after which metrics are written to metrics.jsonl and the trackers; 0: only at
    validations, checkpoints and the end."""
    wandb: Annotated[Literal["off", "offline", "online"], FALSE_IS_OFF] = "off"
    """Weights & Biases; needs the extra `wandb`."""
    wandb_project: str = "brasyn_dist"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases entity; null: the account's default."""
    tensorboard: bool = False
    """Write TensorBoard event files; needs the extra `tensorboard`."""
    report: bool = True
    """Write report.html in the run folder when the run is finished."""
    trace_batches: bool = False
    """Write samples, targets and masks of every step and rank to trace-<world>-<rank>.jsonl, to compare
    runs."""
