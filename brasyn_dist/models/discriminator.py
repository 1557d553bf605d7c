"""The discriminator: a PatchGAN with a second head for the modality (docs/explanation/method.md, section 4).

slice --> 4x4 convolutions, strides 2 2 2 1 --+--> 4x4 convolution: real or synthetic, for each patch
                                              +--> convolution over the whole map: modality logits
"""

import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS, image_shape
from brasyn_dist.config import DiscriminatorConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.layers import seeded_initialisation

SLOPE = 0.2


def feature_size(side: int) -> int:
    """Side of the feature map of both heads: halved three times, minus 1 for the last 4x4 convolution."""
    return side // 8 - 1


class DiscriminatorBlock(nn.Module):
    """4x4 convolution without bias, GroupNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to half of both sides."""
        return F.leaky_relu(self.norm(self.convolution(x)), SLOPE)


class Discriminator(nn.Module):
    """Classifies patches of a slice as real or synthetic, and the modality of the slice."""

    def __init__(self, config: DiscriminatorConfig, modality_set: ModalitySet = BRATS) -> None:
        super().__init__()
        self.config = config
        base, groups = config.base_channels, config.norm_groups
        self.stem = nn.Conv2d(1, base, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(base << i, base << (i + 1), stride, groups)
            for i, stride in enumerate((2, 2, 1))
        )
        self.patch_head = nn.Conv2d(base * 8, 1, 4, padding=1, bias=False)
        height, width = map(feature_size, image_shape(config.image_size))
        self.class_head = nn.Conv2d(base * 8, len(modality_set), (height, width), bias=False)

    def forward(self, image_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Classify slices (B, 1, H, W) of the configured size.

        Returns:
            Patch logits (B, 1, h, w), positive for real, and modality logits (B, M).
        """
        hidden = F.leaky_relu(self.stem(image_B1HW), SLOPE)
        for block in self.blocks:
            hidden = block(hidden)
        return self.patch_head(hidden), self.class_head(hidden).flatten(1)


def build_discriminator(
    config: DiscriminatorConfig, seed: int, modality_set: ModalitySet = BRATS
) -> Discriminator:
    """A discriminator whose initial weights are a function of the arguments only."""
    with seeded_initialisation(seed, "discriminator"):
        return Discriminator(config, modality_set)
