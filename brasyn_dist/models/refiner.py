"""HF-GAN's second stage: refines a synthesised volume with the available ones by element-wise attention.

    synthesised patch --> encoder --> h (+ target embedding)
    available patch m --> encoder --> f_m (+ modality embedding)

    for each available m, one after the other:
        h = h + exp(-|Q(h) - K(f_m)|) * V(f_m)            at each voxel and channel
        h = h + 1x1x1 convolution, SiLU, 1x1x1 convolution of h

    synthesised patch + 3x3x3 convolutions of h --> refined patch

An encoder is `layers` units of 3x3x3 convolution, normalisation and SiLU. `encoders=separate` is the network
as it is described: one encoder for the synthesised volume, and one encoder and attention for each modality.
`encoders=shared` has one of each for all, which an embedding of the modality distinguishes.

Normalisation is over the channels of each voxel. So an output voxel depends on no voxel outside its receptive
field, and patches that overlap by it give the same volume as one patch of the whole volume.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import RefinerConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.conditional_unet import zero
from brasyn_dist.models.layers import Block
from brasyn_dist.models.pretrained import REFINER
from brasyn_dist.models.volume_network import VolumeNetwork
from brasyn_dist.preprocessing.normalisation import mask_missing

EPSILON = 1e-6
EXPANSION = 2
"""Width of the feed-forward network as a multiple of the channels."""


class ChannelNorm(nn.Module):
    """Divides the channels of each voxel by their root mean square; one weight for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to the same shape."""
        square_B1XYZ = x_BCXYZ.square().mean(1, keepdim=True)
        return x_BCXYZ * torch.rsqrt(square_B1XYZ + EPSILON) * self.weight[:, None, None, None]


def units(inputs: int, channels: int, count: int) -> nn.Sequential:
    """`count` units of 3x3x3 convolution, normalisation and SiLU."""
    layers: list[nn.Module] = []
    for number in range(count):
        convolution = nn.Conv3d(inputs if number == 0 else channels, channels, 3, padding=1)
        layers += [convolution, ChannelNorm(channels), nn.SiLU()]
    return nn.Sequential(*layers)


class ElementwiseAttention(nn.Module):
    """Cross-attention of each voxel to the same voxel of another volume, and a feed-forward network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = ChannelNorm(channels), ChannelNorm(channels)
        self.query, self.key, self.value = (nn.Conv3d(channels, channels, 1) for _ in range(3))
        self.feed_forward_norm = ChannelNorm(channels)
        self.expand = nn.Conv3d(channels, EXPANSION * channels, 1)
        self.project = nn.Conv3d(EXPANSION * channels, channels, 1)

    def forward(self, h_BCXYZ: Tensor, f_BCXYZ: Tensor) -> Tensor:
        """New features `h` from the features `f` of an available modality; all (B, C, X, Y, Z)."""
        other = self.key_norm(f_BCXYZ)
        similarity = torch.exp(-(self.query(self.query_norm(h_BCXYZ)) - self.key(other)).abs())
        h_BCXYZ = h_BCXYZ + similarity * self.value(other)
        return h_BCXYZ + self.project(F.silu(self.expand(self.feed_forward_norm(h_BCXYZ))))


class Refiner(VolumeNetwork, Block):
    """Corrects a synthesised volume."""

    kind, config_class = REFINER, RefinerConfig
    config: RefinerConfig
    needs_stage1 = True

    def __init__(self, config: RefinerConfig, modality_set: ModalitySet = BRATS) -> None:
        super().__init__(config, modality_set)
        channels, count = config.channels, len(modality_set)
        shared = config.encoders == "shared"
        self.encoders = nn.ModuleList(
            units(1, channels, config.layers) for _ in range(1 if shared else count + 1)
        )
        """Of each modality, and last of the synthesised volume; or one for all."""
        self.attentions = nn.ModuleList(ElementwiseAttention(channels) for _ in range(1 if shared else count))
        self.target_embedding = nn.Embedding(count, channels)
        self.modality_embedding = nn.Embedding(count, channels)
        self.smoothing = units(channels, channels, config.smoothing)
        self.output = nn.Conv3d(channels, 1, 3, padding=1)
        zero(self.output)

    @property
    def receptive_radius(self) -> int:
        """Voxels on each side of a voxel that it depends on."""
        return self.config.layers + self.config.smoothing + 1

    def forward(
        self,
        x_BMXYZ: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        stage1_B1XYZ: Tensor | None = None,
    ) -> Tensor:
        """See `VolumeNetwork.forward`."""
        if stage1_B1XYZ is None:
            raise ValueError("the refiner needs the volume of a first stage")
        x_BMXYZ = mask_missing(x_BMXYZ, available_BM)
        target_BC111 = self.target_embedding(target_B)[:, :, None, None, None]
        h_BCXYZ = self.checkpointed(self._encode_stage1, stage1_B1XYZ, target_BC111)
        for modality in range(len(self.modality_set)):
            taken_B = available_BM[:, modality]
            if not torch.is_grad_enabled() and not taken_B.any():
                continue  # in training, every parameter has a gradient in every process
            attend = functools.partial(self._attend, modality)
            h_BCXYZ = self.checkpointed(attend, h_BCXYZ, x_BMXYZ[:, modality : modality + 1], taken_B)
        return stage1_B1XYZ + self.output(self.smoothing(h_BCXYZ))

    def _encode_stage1(self, x_B1XYZ: Tensor, embedding_BC111: Tensor) -> Tensor:
        return self.encoders[-1](x_B1XYZ) + embedding_BC111

    def _attend(self, modality: int, h_BCXYZ: Tensor, x_B1XYZ: Tensor, taken_B: Tensor) -> Tensor:
        """`h` after this modality, for the samples in which it is available."""
        own = modality if len(self.attentions) > 1 else 0
        number_1 = torch.full((1,), modality, device=x_B1XYZ.device)
        features = self.encoders[own](x_B1XYZ) + self.modality_embedding(number_1)[:, :, None, None, None]
        attended = self.attentions[own](h_BCXYZ, features)
        return torch.where(taken_B[:, None, None, None, None], attended, h_BCXYZ)
