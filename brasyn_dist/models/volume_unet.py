"""A compact 3-D U-Net: one network for any available modalities and any target.

    available patches --+-- 2x2x2 convolution, stride 2 --> stages at 1/2, 1/4, ... --> doubling --+
       + brain mask     |                                                                          |
                        +-- 3x3x3 convolution at full resolution ------------------------------- (+)
                        |                                                                          |
                        |                                                         3x3x3 convolutions
                        |                                                                          |
                        +-- mean of the available patches -------------------------------------- (+) --> patch

    availability, target --> condition vector --> scale and shift after every normalisation

The structure of models/conditional_unet.py in three dimensions: most operations run at half resolution, and
the output is a correction of the mean of the available modalities. GroupNorm takes its statistics over the
patch, so inference uses windows of the size that the network was trained on.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import VolumeUNetConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.conditional_unet import ConvolutionUnit, UNetStage, mean_of_available, zero
from brasyn_dist.models.pretrained import VOLUME
from brasyn_dist.models.volume_network import VolumeNetwork
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE, foreground, mask_missing


class VolumeUNet(VolumeNetwork):
    """U-Net at half resolution with a full-resolution output path, conditioned at every level."""

    kind, config_class = VOLUME, VolumeUNetConfig
    config: VolumeUNetConfig

    def __init__(self, config: VolumeUNetConfig, modality_set: ModalitySet = BRATS) -> None:
        super().__init__(config, modality_set)
        widths, full, length = config.widths, config.full_channels, config.condition
        inputs = len(modality_set) + 1
        self.condition = nn.Sequential(
            nn.Linear(2 * len(modality_set), length), nn.SiLU(), nn.Linear(length, length), nn.SiLU()
        )
        self.reduction = nn.Conv3d(inputs, widths[0], 2, stride=2)
        outwards = [widths[0], *widths]
        self.encoder = nn.ModuleList(
            UNetStage(a, b, length, config.units, 3) for a, b in itertools.pairwise(outwards)
        )
        inwards = list(itertools.pairwise(widths[::-1]))
        self.narrowings = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in inwards)
        self.decoder = nn.ModuleList(UNetStage(2 * b, b, length, config.units, 3) for _, b in inwards)
        self.expansion = nn.Conv3d(widths[0], full, 1)
        self.full_skip = nn.Conv3d(inputs, full, 3, padding=1)
        self.full_unit = ConvolutionUnit(full, full, length, 3)
        self.output = nn.Conv3d(full, 1, 3, padding=1)
        zero(self.output)

    def forward(
        self,
        x_BMXYZ: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        stage1_B1XYZ: Tensor | None = None,
    ) -> Tensor:
        """See `VolumeNetwork.forward`."""
        multiple = 2 ** len(self.encoder)
        padding = [n for side in reversed(x_BMXYZ.shape[2:]) for n in (0, -side % multiple)]
        padded_BMXYZ = mask_missing(F.pad(x_BMXYZ, padding, value=BACKGROUND_VALUE), available_BM)
        brain_B1XYZ = foreground(padded_BMXYZ).any(1, keepdim=True).to(x_BMXYZ.dtype)
        inputs_BCXYZ = torch.cat([padded_BMXYZ, brain_B1XYZ], dim=1)
        target_BM = target_B[:, None] == torch.arange(len(self.modality_set), device=target_B.device)
        condition_BE = self.condition(torch.cat([available_BM, target_BM], dim=1).to(x_BMXYZ.dtype))
        features = doubled(self.expansion(self._half_resolution(inputs_BCXYZ, condition_BE)))
        full = F.silu(features + self.full_skip(inputs_BCXYZ))
        image_B1XYZ = self.output(self.full_unit(full, condition_BE))
        image_B1XYZ = image_B1XYZ + mean_of_available(padded_BMXYZ, available_BM)
        x, y, z = x_BMXYZ.shape[2:]
        return image_B1XYZ[:, :, :x, :y, :z]

    def _half_resolution(self, x_BCXYZ: Tensor, condition_BE: Tensor) -> Tensor:
        """Features (B, widths[0], X / 2, Y / 2, Z / 2)."""
        hidden = self.reduction(x_BCXYZ)
        skips: list[Tensor] = []
        for stage in self.encoder:
            hidden = stage(F.avg_pool3d(hidden, 2) if skips else hidden, condition_BE)
            skips.append(hidden)
        for narrowing, stage, skip in zip(self.narrowings, self.decoder, skips[-2::-1]):
            hidden = stage(torch.cat([doubled(narrowing(hidden)), skip], dim=1), condition_BE)
        return hidden


def doubled(x_BCXYZ: Tensor) -> Tensor:
    """Twice the resolution, by trilinear interpolation."""
    return F.interpolate(x_BCXYZ, scale_factor=2, mode="trilinear")
