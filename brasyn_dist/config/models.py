"""Options of the networks' shapes; saved as config.json with exported weights."""

from typing import Annotated, Literal

from pydantic import Field

from brasyn_dist.brats import IMAGE_SIZE, ImageSize, image_shape
from brasyn_dist.config.schema import Few, Size, dataclass
from brasyn_dist.errors import ConfigError

Width = Annotated[int, Field(ge=16, le=2**16, multiple_of=16)]
SIZE_STEP = 16
"""Sides of slices are multiples of it."""
LARGEST_SIDE = 4096
Recompute = Literal["nothing", "activations"]


def check_image_size(name: str, size: ImageSize, multiple: int, reason: str = "") -> None:
    """Raise ConfigError unless both sides are positive multiples of `multiple`, with the reason for it."""
    if any(not multiple <= side <= LARGEST_SIDE or side % multiple for side in image_shape(size)):
        raise ConfigError(f"{name} {size} must be a multiple of {multiple}{reason}, at most {LARGEST_SIDE}")


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of the thesis' generator (HF-GAN stage 1, revised; docs/explanation/method.md, section 3)."""

    kind: Literal["hfgan"] = "hfgan"
    """Network of the thesis, with adversarial training."""
    image_size: ImageSize = IMAGE_SIZE
    """Side of the square input in pixels, or [rows, columns]; multiples of 16. Larger slices are
    center-cropped: skull-stripped brains in BraTS' atlas fit into [160, 208] axially, 58 % of the pixels.
    The position embedding has one token for 16 x 16 pixels."""
    base_channels: Size = 64
    """Channels at full resolution."""
    channel_multipliers: Annotated[tuple[Size, ...], Field(min_length=1)] = (1, 2, 4, 8, 10)
    """Channels of each resolution as multiples of base_channels; each step halves the image."""
    convolutions_per_block: Literal[1, 2] = 1
    """Convolutions of each residual block: 1 (published weights) or 2 (text of the thesis)."""
    residual_block: Literal["described", "published"] = "published"
    """Order of the layers in residual blocks. `described`: GroupNorm, convolution, SiLU. `published`:
    GroupNorm, SiLU, convolution."""
    decoder: Literal["described", "published"] = "described"
    """`described`: five stages, each with a skip. `published`: four, the full-size skip is not used; `brasyn
    convert` sets it."""
    early_fusion: Literal["described", "published"] = "published"
    """Features of the early-fusion encoder for samples with exactly one available modality. `described`: used
    with weight one, as for all others. `published`: left out."""
    position_embedding: Literal["learned", "sinusoidal"] = "learned"
    """Position embedding of the bottleneck's tokens: learned (published weights) or sinusoidal (text of the
    thesis)."""
    norm_groups: Size = 8
    """Groups of each GroupNorm."""
    transformer_layers: Annotated[int, Field(ge=0, le=1024)] = 4
    """Layers of the transformer at the bottleneck."""
    heads: Size = 16
    """Attention heads of each transformer layer."""
    mlp_activation: Literal["gelu", "silu"] = "gelu"
    """Activation function of the transformer's MLP."""
    view_embedding: bool = False
    """Add an embedding of the view (axial, sagittal, coronal) to every token: one model for several views."""
    attention: Literal["described", "published", "none"] = "described"
    """`published`: the gate uses the attention of channel 0 only, as in the published weights; `brasyn
    convert` sets it. `none`: all gates are 1; the same parameters are a residual 1x1 network on each
    encoder's bottleneck instead (ablation at an equal number of parameters)."""
    segmentation_head: bool = False
    """Add a segmentation head to the bottleneck, for objective.auxiliary_segmentation; inference does not use
    it."""

    def __post_init__(self) -> None:
        scale = 2 ** (len(self.channel_multipliers) - 1)
        stages = f" ({len(self.channel_multipliers)} generator.channel_multipliers)"
        check_image_size("generator.image_size", self.image_size, scale, stages)
        if self.base_channels % self.norm_groups:
            raise ConfigError(
                f"generator.base_channels {self.base_channels} must be a multiple of "
                f"generator.norm_groups {self.norm_groups}"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"generator.heads {self.heads} does not divide the token width {self.width} "
                "(generator.base_channels x the last of generator.channel_multipliers)"
            )

    @property
    def width(self) -> int:
        """Channels at the bottleneck and width of the transformer's tokens."""
        return self.base_channels * self.channel_multipliers[-1]


BEFORE_OPTIONS = {"decoder": "published"}
"""Options of this generator in exports and checkpoints that are older than the option."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the recommended generator, a conditional U-Net (models/conditional_unet.py)."""

    kind: Literal["unet"] = "unet"
    """Conditional U-Net, recommended."""
    image_size: ImageSize = IMAGE_SIZE
    """Side of the square input in pixels, or [rows, columns]; multiples of 16. Larger slices are
    center-cropped."""
    widths: Annotated[tuple[Width, ...], Field(min_length=2)] = (96, 192, 384, 512, 512)
    """Channels at 1/2, 1/4, ... of the resolution, multiples of 16."""
    units: Few = 2
    """Convolutions in each stage of the encoder and of the decoder."""
    full_channels: Width = 48
    """Channels of the full-resolution path, a multiple of 16."""
    condition: Size = 256
    """Length of the condition vector."""
    context: Annotated[int, Field(ge=0, le=64)] = 0
    """Neighbouring slices on each side that are inputs, too (2.5-D)."""
    segmentation_head: bool = False
    """Add a segmentation head to the bottleneck, for objective.auxiliary_segmentation; inference does not use
    it."""

    def __post_init__(self) -> None:
        check_image_size("generator.image_size", self.image_size, SIZE_STEP)


AnyGeneratorConfig = GeneratorConfig | UNetConfig


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the PatchGAN discriminator with modality head."""

    image_size: ImageSize = IMAGE_SIZE
    """Image size of the generator."""
    base_channels: Size = 64
    """Channels of the first layer."""
    norm_groups: Size = 8
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        check_image_size("discriminator.image_size", self.image_size, 1)
        if self.base_channels % self.norm_groups:
            raise ConfigError(
                f"discriminator.base_channels {self.base_channels} must be a multiple of "
                f"discriminator.norm_groups {self.norm_groups}"
            )


@dataclass(frozen=True)
class SegmenterConfig:
    """Shape of the segmenter, a U-Net (docs/explanation/method.md, section 4)."""

    image_size: ImageSize = IMAGE_SIZE
    """Side of the square input in pixels, or [rows, columns]; multiples of 2^(stages - 1). Larger slices
    are center-cropped."""
    widths: Annotated[tuple[Size, ...], Field(min_length=2)] = (32, 64, 128, 256)
    """Channels of each stage, from full resolution to the bottleneck; each stage halves the image. At least
    two stages."""
    norm_groups: Size = 8
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        stages = f" ({len(self.widths)} segmenter.widths)"
        check_image_size("segmenter.image_size", self.image_size, 2 ** (len(self.widths) - 1), stages)
        if any(width % self.norm_groups for width in self.widths):
            raise ConfigError(
                f"segmenter.widths {list(self.widths)} must be multiples of "
                f"segmenter.norm_groups {self.norm_groups}"
            )


@dataclass(frozen=True)
class VolumeUNetConfig:
    """Shape of the 3-D U-Net (models/volume_unet.py)."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 128, 256)
    """Channels at 1/2, 1/4, ... of the resolution, multiples of 16."""
    units: Few = 2
    """Convolutions in each stage of the encoder and of the decoder."""
    full_channels: Width = 16
    """Channels of the full-resolution path, a multiple of 16."""
    condition: Size = 128
    """Length of the condition vector."""


@dataclass(frozen=True)
class RefinerConfig:
    """Shape of the refiner, HF-GAN's second stage (models/refiner.py)."""

    encoders: Literal["shared", "separate"] = "shared"
    """`separate`: an encoder and an attention for each modality, as described. `shared`: one for all, with an
    embedding of the modality."""
    channels: Size = 16
    """Channels of all features."""
    layers: Few = 2
    """3x3x3 convolutions of each encoder."""
    smoothing: Few = 2
    """3x3x3 convolutions after the attention, without the last one."""
