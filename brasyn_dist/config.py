"""Every option, as dataclasses: defaults <- YAML <- key=value. Unknown keys are errors; the merged result is saved with the run.

A YAML file may start with `base: other.yaml` (relative to itself) and then holds only what differs.
`null` (None) means "choose by device or by data"; the choice is printed at the start of a run.
"""

import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from brasyn_dist.brats import IMAGE_SIZE, VIEWS, ImageSize, image_shape
from brasyn_dist.common.typed_yaml import from_dict, read_yaml, set_by_path
from brasyn_dist.errors import ConfigError

T = TypeVar("T")
Recompute = Literal["nothing", "activations"]

NormalisationMode = Literal["zscore", "slice", "case"]


@dataclass(frozen=True)
class DataConfig:
    """Which slices a run trains on."""

    shards: str = "shards"
    """Folder, URL prefix, or `pipe:` command with `{}` for the file name, of a shard set (see data/format/tar_shards.py)."""
    views: tuple[str, ...] = ("axial",)
    """Slices of these views are used: axial, sagittal, coronal."""
    cohorts: tuple[str, ...] = ()
    """Only these cohorts; empty: all that the shard set holds."""
    quarantine: tuple[str, ...] = ()
    """Sample keys to leave out (damaged ones); part of the data fingerprint."""
    min_tumour_fraction: float = 0.0
    """Only slices of which tumour covers at least this share (method: 0.001 for the segmenter); 0: all."""
    normalisation: NormalisationMode = "zscore"
    """`zscore`: with the data set's statistics. `slice`: each slice to [-1, 1], as HF-GAN does. `case`: each volume by its
    median, which takes away the scanner's scale (preprocessing/normalisation.py)."""
    cache_dir: str | None = None
    """Node-local folder for shards that are fetched from a URL; default: a folder below the system's temporary one."""
    cache_gib: float = 200.0
    """Size limit of that cache."""
    threads: int = 2
    """Threads per process that read and decode."""
    prefetch: int = 4
    """Batches per process that are read ahead of the one in use."""

    def __post_init__(self) -> None:
        unknown = set(self.views) - set(VIEWS)
        if unknown or not self.views:
            raise ConfigError(f"data.views: {sorted(unknown) or 'empty'}; choose from {', '.join(VIEWS)}")
        if self.threads < 1 or self.prefetch < 1:
            raise ConfigError("data.threads and data.prefetch must be at least 1")
        if not 0 <= self.min_tumour_fraction < 1:
            raise ConfigError("data.min_tumour_fraction must be in [0, 1)")


@dataclass(frozen=True)
class SampleOrderConfig:
    """The order of samples: pure functions of the seed and the batch number (see data/loading/sampler.py)."""

    seed: int = 0
    """Seeds order, targets and masks."""
    block_shards: int | None = None
    """Mix only within blocks of this many shards, for storage that needs locality; None: over the whole set."""

    def __post_init__(self) -> None:
        if self.block_shards is not None and self.block_shards < 1:
            raise ConfigError("order.block_shards must be at least 1, or null for the whole set")


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training slices, functions of the seed and the batch number (see data/loading/augmentation.py). The thesis has none."""

    mirror: float = 0.0
    """Probability that left and right are exchanged (axial and coronal slices; sagittal ones stay as they are)."""
    intensity: float = 0.0
    """All modalities of a slice are multiplied by one factor, log-uniform in [exp(-intensity), exp(intensity)]."""
    contrast: float = 0.0
    """Each modality of a slice is multiplied by a factor of its own besides, log-uniform in [exp(-contrast), exp(contrast)]."""

    def __post_init__(self) -> None:
        if not 0 <= self.mirror <= 1:
            raise ConfigError("augmentation.mirror is a probability, from 0 to 1")
        if self.intensity < 0 or self.contrast < 0:
            raise ConfigError("augmentation.intensity and augmentation.contrast must be at least 0")


@dataclass(frozen=True)
class OrderConfig(SampleOrderConfig):
    """The order of samples, and what a generator is given of each."""

    availability: Literal["three", "any"] = "three"
    """`three`: all modalities but the target are given. `any`: one to three (half of the samples exactly one)."""


def check_image_size(section: str, size: ImageSize, multiple: int) -> None:
    if any(side < multiple or side % multiple for side in image_shape(size)):
        raise ConfigError(f"{section}.image_size {size} must be a multiple of {multiple}")


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of the generator (method: HF-GAN stage 1, revised). Saved as config.json beside exported weights."""

    image_size: ImageSize = IMAGE_SIZE
    """Side of the square input in pixels, or [rows, columns]; multiples of 16. Larger slices are cut to their middle: skull-stripped
    brains of BraTS' atlas fit into [160, 208] axially, 58 % of the pixels. The position embedding has a token for 16 x 16 pixels."""
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8, 10)
    convolutions_per_block: int = 1
    """GroupNorm-SiLU-convolution once (published weights) or twice (the thesis' text) per residual block."""
    norm_groups: int = 8
    transformer_layers: int = 4
    heads: int = 16
    mlp_activation: Literal["gelu", "silu"] = "gelu"
    view_embedding: bool = False
    """Add an embedding of the view (axial, sagittal, coronal) to every token: one model for several views."""
    attention: Literal["described", "published"] = "described"
    """`published`: gate by the attention of channel 0 alone, as published weights were trained; conversion sets it."""

    def __post_init__(self) -> None:
        scale = 2 ** (len(self.channel_multipliers) - 1)
        check_image_size("generator", self.image_size, scale)
        if self.base_channels % self.norm_groups:
            raise ConfigError(
                f"generator.base_channels {self.base_channels} must be a multiple of norm_groups {self.norm_groups}"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"generator: {self.heads} heads do not divide the token width {self.width} "
                "(base_channels x last multiplier)"
            )
        if self.convolutions_per_block not in (1, 2):
            raise ConfigError("generator.convolutions_per_block must be 1 or 2")

    @property
    def width(self) -> int:
        """Channels at the bottleneck and width of the transformer's tokens."""
        return self.base_channels * self.channel_multipliers[-1]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the PatchGAN discriminator with modality head."""

    image_size: ImageSize = IMAGE_SIZE
    """The generator's."""
    base_channels: int = 64
    norm_groups: int = 8

    def __post_init__(self) -> None:
        if self.base_channels % self.norm_groups:
            raise ConfigError(
                f"discriminator.base_channels {self.base_channels} must be a multiple of norm_groups {self.norm_groups}"
            )


@dataclass(frozen=True)
class SegmenterConfig:
    """Shape of the segmenter, a U-Net (method, section 4). Saved as config.json beside exported weights."""

    image_size: ImageSize = IMAGE_SIZE
    """Side of the square input in pixels, or [rows, columns]; multiples of 2^(stages - 1). Larger slices are cut to their middle."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each stage, from the full image inwards; each stage halves the image of the one before."""
    norm_groups: int = 8

    def __post_init__(self) -> None:
        scale = 2 ** (len(self.widths) - 1)
        if len(self.widths) < 2:
            raise ConfigError("segmenter.widths needs at least two stages")
        check_image_size("segmenter", self.image_size, scale)
        if any(width % self.norm_groups for width in self.widths):
            raise ConfigError(
                f"segmenter.widths {list(self.widths)} must be multiples of norm_groups {self.norm_groups}"
            )


@dataclass(frozen=True)
class TverskyConfig:
    """The focal Tversky loss (losses/tversky.py; method, section 5)."""

    false_negative: float = 0.3
    false_positive: float = 0.7
    exponent: float = 1.33
    smoothing: float = 1.0
    """Pixels added to both sides of each class' fraction. The method's 1e-6 goes with sums over a batch, in which every
    class occurs; in a slice that lacks a class it would leave nothing to learn from."""

    def __post_init__(self) -> None:
        if min(self.false_negative, self.false_positive, self.smoothing) <= 0 or self.exponent < 1:
            raise ConfigError(
                "tversky: false_negative, false_positive and smoothing must exceed 0, and exponent be at least 1 (below, "
                "the gradient of a perfect prediction is infinite)"
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the generator's objective (method, section 5); 0 switches a term off."""

    reconstruction: float = 10.0
    adversarial: float = 0.25
    classification: float = 0.25
    feature: float = 1.0
    cycle: float = 1.0
    ssim: float = 5.0
    ssim_regions: Literal["dual", "whole"] = "dual"
    """`dual`: healthy tissue and tumour as two terms; `whole`: the brain as one."""
    discriminator: float = 0.25
    """Weight of the discriminator's own cross-entropies."""
    mask_background: bool = False
    """Take reconstruction and cycle errors over foreground pixels of the target only."""
    tversky: float = 0.0
    """Weight of a frozen segmenter's focal Tversky loss on the completed slices (method: 5); 0: no segmenter."""
    segmenter: str | None = None
    """Run or export folder of that segmenter (brasyn_dist.train_segmenter); its hash becomes part of the run's identity."""

    def __post_init__(self) -> None:
        if self.tversky and self.segmenter is None:
            raise ConfigError(
                "objective.tversky needs a segmenter: set objective.segmenter to its run folder, or tversky=0"
            )


@dataclass(frozen=True)
class AdamConfig:
    """Adam and its rate, a function of the optimiser step alone (training/schedule.py)."""

    base_rate: float = 5e-4
    """Learning rate at a global batch of `reference_batch` (thesis 5e-4; its published runs used 5e-5)."""
    reference_batch: int = 64
    """The rate is scaled by global_batch_size / reference_batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_steps: int = 100
    clip_norm: float = 0.1
    """Largest norm of the gradient of each network; 0: no clipping."""


@dataclass(frozen=True)
class OptimizerConfig(AdamConfig):
    """Adam for both networks of a GAN."""

    discriminator_ratio: float = 0.1
    """The discriminator's rate, as a share of the generator's."""


@dataclass(frozen=True)
class LengthConfig:
    """How long, and how large."""

    global_batch_size: int = 64
    """Slices of one global batch, over all processes; independent of how many there are."""
    micro_batch_size: int | None = None
    """Largest number of slices that one process runs at a time; the rest is accumulated, exactly. None: all at once."""
    epochs: float = 10.0
    """Passes over the selected slices."""
    max_steps: int | None = None
    """Optimiser steps of the whole run; overrides `epochs`. The learning rate's cosine ends here."""
    ema_decay: float = 0.999
    """Exponential moving average of the network's weights, used for validation and export; 0: off."""

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps that a global batch is used for."""
        return 1

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise ConfigError("training.global_batch_size must be at least 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError("training.micro_batch_size must be at least 1, or null")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("training.ema_decay must be in [0, 1)")


@dataclass(frozen=True)
class TrainingConfig(LengthConfig):
    """How long, how large, and which reading of the update."""

    updates_per_batch: Literal[4, 1] = 4
    """4: one update for each target modality. 1: all four targets in one loss and one update."""
    fast_passes: bool = True
    """Encode each real slice once for both passes of an update (exact); False: each pass encodes all its slices."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, what to keep, whence to continue."""

    every_steps: int = 1000
    every_minutes: float = 15.0
    """Save also when this many minutes have passed since the last save; 0: never by time."""
    keep: int = 2
    """Newest complete checkpoints that are kept, beside the best one."""
    resume: str = "auto"
    """`auto`: continue from the newest intact checkpoint of the run folder; `never`: refuse if there is one; or a path."""
    init_from: str | None = None
    """Export, run folder or checkpoint whose generator (or segmenter) weights a new run starts from (fine-tuning)."""

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise ConfigError("checkpoint.keep must be at least 2: a damaged checkpoint needs one before it")


@dataclass(frozen=True)
class ValidationConfig:
    """Fixed held-out slices, scored with the averaged network."""

    every_steps: int = 1000
    """0: never."""
    slices: int = 64
    """Held-out slices (the same every time), each synthesised for every target modality."""
    batch_size: int = 8
    panels: int = 2
    """Slices shown as image panels per target modality."""


@dataclass(frozen=True)
class TelemetryConfig:
    """What is reported where; console and metrics.jsonl always are."""

    log_every: int = 10
    """Optimiser steps between two lines of metrics.jsonl and the trackers."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "brasyn_dist"
    wandb_entity: str | None = None
    tensorboard: bool = False
    report: bool = True
    """Draw report.html in the run's folder when it is finished."""
    trace_batches: bool = False
    """Write every rank's samples, targets and masks of every step to trace-<world>-<rank>.jsonl, to compare runs."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How the same mathematics is executed; None: by device."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast; SSIM stays in float32. fp16 needs CUDA."""
    compile: Literal["off", "default", "max-autotune", "aot_eager"] | None = None
    """torch.compile of both networks. `aot_eager` captures the graphs and generates no code: a quick check that they can be."""
    channels_last: bool | None = None
    encoder_execution: Literal["grouped", "separate"] | None = None
    """The four modality encoders as one grouped or as four dense convolution networks; same weights, same result."""
    recompute: Recompute = "nothing"
    """`activations`: the backward computes again what lies between two convolutions (norms, SiLU, padding, doubling) instead
    of keeping it: 45 % less memory a slice, the same numbers to the last bit, no convolution is repeated."""
    threads: int | None = None
    """Threads for tensor operations of each process; None: on CPUs the cores shared out among the node's processes."""
    tf32: bool = True
    """Let CUDA round the factors of float32 products to 10 bits: several times as fast; other devices take no notice."""
    cudnn_benchmark: bool = True
    """Let cuDNN try its algorithms for every new shape and keep the fastest (shapes are fixed here)."""
    gradient_as_bucket_view: bool = True
    static_graph: bool = False
    """Tell DistributedDataParallel that every update has the same graph (true without micro-batches): it then looks once."""
    gradient_exchange: Literal["fp32", "bf16"] = "fp32"
    """Number format in which ranks exchange gradients; bf16 halves the bytes, keeps 8 bits, needs CUDA."""
    collective_timeout_minutes: float = 30.0
    """A rank that waits longer than this for another one ends, and the run with it."""
    hang_minutes: float | None = None
    """A rank that gets nowhere for so long writes its Python stacks to logs/; None: half of the collective timeout."""
    time_communication: bool = True
    """Measure how long ranks wait for the exchange of gradients (a hook in DistributedDataParallel; same arithmetic). Not measured with
    gradient_exchange=bf16, nor under DeepSpeed."""
    rank_shares: tuple[float, ...] = ()
    """Share of the global batch for each rank, in any unit: [2, 1] gives rank 0 two thirds. Empty: equal shares."""

    def __post_init__(self) -> None:
        if min(self.rank_shares, default=1.0) <= 0:
            raise ConfigError(
                "runtime.rank_shares must be above 0: a rank without slices only holds the others up"
            )


@dataclass(frozen=True)
class RunConfig:
    """What all training runs have, whatever they train."""

    name: str = "run"
    """Name of the run; its folder is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    seed: int = 0
    """Seeds the initial weights."""
    data: DataConfig = field(default_factory=DataConfig)
    order: SampleOrderConfig = field(default_factory=SampleOrderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    training: LengthConfig = field(default_factory=LengthConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the slices that the networks see, in pixels."""
        raise NotImplementedError


@dataclass(frozen=True)
class Config(RunConfig):
    """One training run of a generator."""

    order: OrderConfig = field(default_factory=OrderConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tversky: TverskyConfig = field(default_factory=TverskyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if image_shape(self.generator.image_size) != image_shape(self.discriminator.image_size):
            raise ConfigError(
                f"generator.image_size {self.generator.image_size} and discriminator.image_size "
                f"{self.discriminator.image_size} must be equal"
            )
        if self.runtime.static_graph and self.training.micro_batch_size is not None:
            raise ConfigError(
                "runtime.static_graph does not go with training.micro_batch_size: not every micro-batch exchanges gradients"
            )
        if len(self.data.views) > 1 and not self.generator.view_embedding:
            raise ConfigError(
                f"data.views has {len(self.data.views)} views but generator.view_embedding is false: the model could "
                "not tell them apart; set generator.view_embedding=true or train one model a view"
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        return image_shape(self.generator.image_size)


@dataclass(frozen=True)
class SegmenterRunConfig(RunConfig):
    """One training run of a segmenter."""

    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    tversky: TverskyConfig = field(default_factory=TverskyConfig)

    def __post_init__(self) -> None:
        if self.runtime.encoder_execution is not None:
            raise ConfigError("runtime.encoder_execution is of the generator; leave it out for a segmenter")

    @property
    def image_shape(self) -> tuple[int, int]:
        return image_shape(self.segmenter.image_size)


@typing.overload
def load_config(path: str | Path | None, overrides: typing.Sequence[str] = ()) -> Config: ...
@typing.overload
def load_config(path: str | Path | None, overrides: typing.Sequence[str], kind: type[T]) -> T: ...
def load_config(
    path: str | Path | None, overrides: typing.Sequence[str] = (), kind: type[Any] = Config
) -> Any:
    """Defaults of `kind`, updated by the YAML file (and its bases), updated by `section.key=value` overrides (values are YAML)."""
    values: dict[str, Any] = read_yaml(Path(path)) if path is not None else {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"{item!r}: overrides are written section.key=value")
        set_by_path(values, key, yaml.safe_load(text))
    return from_dict(kind, values, where=str(path) if path else "command line")
