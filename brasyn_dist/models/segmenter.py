"""The segmenter: a 2-D U-Net similar to nnU-Net (docs/explanation/method.md, section 4).

    M slices + view + tumour type as one-hot planes
        --> stage 0 ------------------------------ + --> stage 0 --> 1x1 convolution --> logits of the classes
              `-- stride 2 --> stage 1 ------ + --> stage 1 --^
                                 `-- stride 2 --> ... last --^      (^: 1x1 convolution, doubling)

A stage is two times (3x3 convolution, GroupNorm, SiLU). With GroupNorm, unlike batch norm, the result of a
slice depends only on that slice. So the gradient of a global batch does not depend on how it is split, and
training and evaluation agree.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS, TUMOUR_TYPES, VIEWS
from brasyn_dist.config import SegmenterConfig
from brasyn_dist.errors import ConfigError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.layers import seeded_initialisation
from brasyn_dist.models.pretrained import SEGMENTER, PretrainedNetwork


class SegmenterStage(nn.Module):
    """Two times convolution, GroupNorm, SiLU; the first convolution has the `stride`."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, outputs, 3, s, padding=1, bias=False) for a, s in ((inputs, stride), (outputs, 1))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, outputs) for _ in self.convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.silu(norm(convolution(x)))
        return x


class Segmenter(PretrainedNetwork):
    """Segments tumour labels in slices of all modalities."""

    kind, config_class = SEGMENTER, SegmenterConfig
    config: SegmenterConfig

    def __init__(self, config: SegmenterConfig, modality_set: ModalitySet = BRATS) -> None:
        super().__init__(config, modality_set)
        if not modality_set.labels:
            raise ConfigError(
                f"modality set {modality_set.name} has no labels: a segmenter needs at least one"
            )
        inputs = len(modality_set) + len(VIEWS) + len(TUMOUR_TYPES)
        self.classes = 1 + max(modality_set.labels)
        """Background and the canonical labels, whose values are the class numbers."""
        widths, groups = config.widths, config.norm_groups
        self.encoder = nn.ModuleList(
            SegmenterStage(a, b, groups, stride=1 if i == 0 else 2)
            for i, (a, b) in enumerate(zip((inputs, *widths), widths))
        )
        # From the bottleneck outwards: reduce the width to that of the next stage, double, concatenate the
        # skip.
        inwards = widths[::-1]
        self.narrowings = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(inwards))
        self.decoder = nn.ModuleList(SegmenterStage(2 * b, b, groups) for b in inwards[1:])
        self.output = nn.Conv2d(widths[0], self.classes, 1)

    def forward(self, x_BMHW: Tensor, view_B: Tensor, type_B: Tensor) -> Tensor:
        """Segment slices.

        Args:
            x_BMHW: Normalised slices of all modalities.
            view_B: Numbers in VIEWS, int64.
            type_B: Numbers in TUMOUR_TYPES, int64; UNKNOWN_TYPE gives a one-hot of zeros.

        Returns:
            Logits (B, 1 + labels, H, W) of background and the canonical labels.
        """
        return self.decode(self.encode(x_BMHW, view_B, type_B))

    def encode(self, x_BMHW: Tensor, view_B: Tensor, type_B: Tensor) -> list[Tensor]:
        """Features (B, C_i, h_i, w_i) of each stage of the encoder. Arguments: see `forward`."""
        condition_BN = torch.cat([one_hot(view_B, len(VIEWS)), one_hot(type_B, len(TUMOUR_TYPES))], 1)
        planes = condition_BN.to(x_BMHW.dtype)[:, :, None, None].expand(-1, -1, *x_BMHW.shape[2:])
        hidden = torch.cat([x_BMHW, planes], 1)
        skips = []
        for stage in self.encoder:
            hidden = stage(hidden)
            skips.append(hidden)
        return skips

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits from the features of the encoder."""
        hidden = features[-1]
        for narrowing, stage, skip in zip(self.narrowings, self.decoder, features[-2::-1]):
            # The 1x1 convolution before doubling gives the same result for a quarter of the operations.
            doubled = F.interpolate(narrowing(hidden), scale_factor=2, mode="nearest")
            hidden = stage(torch.cat([doubled, skip], 1))
        return self.output(hidden)


class Guidance(nn.Module):
    """What a frozen segmenter makes of completed slices, for the guidance terms of the objective.

    One module, so that it is compiled as one graph.
    """

    def __init__(self, segmenter: Segmenter, logits: bool, features: bool) -> None:
        super().__init__()
        self.segmenter, self.logits, self.features = segmenter, logits, features

    def forward(
        self, synthetic_BMHW: Tensor, real_BMHW: Tensor, view_B: Tensor, type_B: Tensor
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Segment slices of all modalities, of which one is synthetic, and compare with the real ones.

        Returns:
            Logits (B, classes, H, W), and the encoder's features of the synthetic and of the real slices.
            What the objective does not need is None or empty. Only the synthetic slices have gradients.
        """
        features = self.segmenter.encode(synthetic_BMHW, view_B, type_B)
        logits_BCHW = self.segmenter.decode(features) if self.logits else None
        if not self.features:
            return logits_BCHW, [], []
        with torch.no_grad():
            real = self.segmenter.encode(real_BMHW, view_B, type_B)
        return logits_BCHW, features, real


def one_hot(number_B: Tensor, count: int) -> Tensor:
    """(B, count) bool; all False for a number outside 0 .. count - 1."""
    return number_B[:, None] == torch.arange(count, device=number_B.device)


def build_segmenter(config: SegmenterConfig, seed: int, modality_set: ModalitySet = BRATS) -> Segmenter:
    """A segmenter whose initial weights are a function of the arguments only."""
    with seeded_initialisation(seed, "segmenter"):
        return Segmenter(config, modality_set)
