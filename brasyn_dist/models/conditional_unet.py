"""The recommended generator: one conditional U-Net for any available modalities, any target and any view.

    available slices --+-- space to depth --> stages at 1/2, 1/4, 1/8, ... --> depth to space --+
       + brain mask    |                                                                        |
                       +-- 3x3 convolution at full resolution ------------------------------- (+) --> output
                       |                                                                        |
                       +-- mean of the available slices ------------------------------------- (+) --> slice

    availability, target, view --> condition vector --> scale and shift after every normalisation

The inputs are the available slices, their foreground as a brain mask, and neighbouring slices if there is a
context. Without the mask, fluid that is almost as dark as the background in T1 and FLAIR is taken for
background, and stays dark in T2w.

Only three convolutions run at full resolution, which is where a U-Net spends most of its operations. The
output is a correction of the mean of the available slices. Scale and shift by a condition vector: FiLM (Perez
et al., 2018, arXiv 1709.07871). They start at zero, so that training starts from an unconditional network.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS, VIEWS
from brasyn_dist.config import UNetConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.layers import Block
from brasyn_dist.models.registry import Generator, SegmentationHead
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE, foreground, mask_missing

PATCH = 2
"""Side of the pixel blocks that are moved to channels."""


class ConvolutionUnit(Block):
    """Convolution of 3 pixels a side, GroupNorm, scale and shift by the condition, SiLU."""

    def __init__(self, inputs: int, outputs: int, condition: int, dimensions: int = 2) -> None:
        super().__init__()
        kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.convolution = kind(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(max(4, outputs // 16), outputs)
        self.modulation = nn.Linear(condition, 2 * outputs)
        zero(self.modulation)

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        """Features (B, outputs, H, W), in 3-D (B, outputs, X, Y, Z), for a condition (B, E)."""
        modulation = self.modulation(condition_BE)
        scale, shift = modulation.unflatten(1, (-1, *[1] * (x_BCHW.ndim - 2))).chunk(2, dim=1)

        def activate(x: Tensor) -> Tensor:
            return F.silu(self.norm(x) * (1 + scale) + shift)

        return self.checkpointed(activate, self.convolution(x_BCHW))


class UNetStage(nn.Module):
    """`units` convolution units at one resolution."""

    def __init__(self, inputs: int, outputs: int, condition: int, units: int, dimensions: int = 2) -> None:
        super().__init__()
        sizes = [inputs, *[outputs] * units]
        self.units = nn.ModuleList(
            ConvolutionUnit(a, b, condition, dimensions) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        """Features (B, outputs, H, W) for a condition (B, E)."""
        for unit in self.units:
            x_BCHW = unit(x_BCHW, condition_BE)
        return x_BCHW


class ConditionalUNet(Generator):
    """U-Net at half resolution with a full-resolution output path, conditioned at every level."""

    config_class = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig, modality_set: ModalitySet = BRATS) -> None:
        super().__init__(config, modality_set)
        self.context = config.context
        widths, full, length = config.widths, config.full_channels, config.condition
        inputs = len(modality_set) * (2 * config.context + 1) + 1
        self.condition = nn.Sequential(
            nn.Linear(2 * len(modality_set) + len(VIEWS), length),
            nn.SiLU(),
            nn.Linear(length, length),
            nn.SiLU(),
        )
        outwards = [PATCH**2 * inputs, *widths]
        self.encoder = nn.ModuleList(
            UNetStage(a, b, length, config.units) for a, b in itertools.pairwise(outwards)
        )
        inwards = list(itertools.pairwise(widths[::-1]))
        self.narrowings = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in inwards)
        self.decoder = nn.ModuleList(UNetStage(2 * b, b, length, config.units) for _, b in inwards)
        self.expansion = nn.Conv2d(widths[0], PATCH**2 * full, 1)
        self.full_skip = nn.Conv2d(inputs, full, 3, padding=1)
        self.full_unit = ConvolutionUnit(full, full, length)
        self.output = nn.Conv2d(full, 1, 3, padding=1)
        zero(self.output)
        if config.segmentation_head:
            scale = PATCH * 2 ** (len(widths) - 1)
            self.segmentation_head = SegmentationHead(
                widths[-1], max(4, widths[-1] // 16), scale, modality_set
            )

    def forward(
        self,
        x_BMHW: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Generator.forward`. Missing slices may hold any values."""
        height, width = x_BMHW.shape[2:]
        multiple = PATCH * 2 ** (len(self.encoder) - 1)
        padding = (0, -width % multiple, 0, -height % multiple)
        centre_BMHW = mask_missing(F.pad(x_BMHW, padding, value=BACKGROUND_VALUE), available_BM)
        brain_B1HW = foreground(centre_BMHW).any(1, keepdim=True).to(x_BMHW.dtype)
        inputs = [centre_BMHW, brain_B1HW]
        if context_BNMHW is not None:
            neighbours = F.pad(context_BNMHW, padding, value=BACKGROUND_VALUE)
            missing_B1M11 = ~available_BM[:, None, :, None, None]
            inputs.append(neighbours.masked_fill(missing_B1M11, BACKGROUND_VALUE).flatten(1, 2))
        inputs_BCHW = torch.cat(inputs, dim=1)
        condition_BE = self.condition_vector(available_BM, target_B, view_B, x_BMHW.dtype)
        features, bottleneck = self._half_resolution(inputs_BCHW, condition_BE)
        full = F.silu(F.pixel_shuffle(self.expansion(features), PATCH) + self.full_skip(inputs_BCHW))
        image_B1HW = self.output(self.full_unit(full, condition_BE)) + mean_of_available(
            centre_BMHW, available_BM
        )
        return image_B1HW[:, :, :height, :width], bottleneck

    def _half_resolution(self, x_BCHW: Tensor, condition_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, widths[0], H / 2, W / 2), and those at the lowest resolution."""
        hidden = F.pixel_unshuffle(x_BCHW, PATCH)
        skips: list[Tensor] = []
        for stage in self.encoder:
            hidden = stage(F.avg_pool2d(hidden, 2) if skips else hidden, condition_BE)
            skips.append(hidden)
        for narrowing, stage, skip in zip(self.narrowings, self.decoder, skips[-2::-1]):
            doubled = F.interpolate(narrowing(hidden), scale_factor=2, mode="nearest")
            hidden = stage(torch.cat([doubled, skip], dim=1), condition_BE)
        return hidden, skips[-1]

    def condition_vector(
        self, available_BM: Tensor, target_B: Tensor, view_B: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """(B, E) from availability, target and view; without a view, its part is 0."""
        device = target_B.device
        target_BM = target_B[:, None] == torch.arange(len(self.modality_set), device=device)
        number_B = torch.full_like(target_B, -1) if view_B is None else view_B
        view_BV = number_B[:, None] == torch.arange(len(VIEWS), device=device)
        return self.condition(torch.cat([available_BM, target_BM, view_BV], dim=1).to(dtype))


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def mean_of_available(x_BMHW: Tensor, available_BM: Tensor) -> Tensor:
    """(B, 1, H, W) mean of the available slices, or (B, 1, X, Y, Z) of volumes; each has at least one."""
    weight_BM = available_BM.to(x_BMHW.dtype) / available_BM.sum(1, keepdim=True)
    return (x_BMHW * weight_BM.unflatten(1, (-1, *[1] * (x_BMHW.ndim - 2)))).sum(1, keepdim=True)
