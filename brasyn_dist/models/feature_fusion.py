"""Fusion of encoded slices: features of one shape from any subset of the modalities.

Encoded slices are rows of a tensor. A matrix of zeros and ones selects the rows of each sample, so that one
row can be used by several target variants and by both passes of an update, and a missing modality has no row:

    row features (N, C, h, w) --mix (B, N)--> sums over each sample's available modalities (B, C, h, w)

One matrix product replaces the loop over samples and modalities, at less than 1 % of the generator's
operations.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brasyn_dist.config import GeneratorConfig


class Encoded(NamedTuple):
    """Output of an encoder for N slices."""

    stages: tuple[Tensor, ...]
    """Features (N, C_i, h_i, w_i) of the stages that the decoder uses; the last is the bottleneck."""
    gate: Tensor
    """Channel attention of the bottleneck (N, C, 1, 1) in (0, 1)."""


class EncodedRows(NamedTuple):
    """Encoded rows and the matrix (B, N) of zeros and ones that selects the rows of each sample."""

    mix_BN: Tensor
    rows: Encoded


class FeatureFusion(nn.Module):
    """Fuses the encoded slices of each sample: the early-fusion encoder and its available modalities.

    With `early_fusion: published`, the early encoder is used only if several modalities are available
    (docs/explanation/method.md, section 3).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.channel_zero_only = config.attention == "published"
        self.always_early = config.early_fusion == "described"
        self.projection = nn.Conv2d(2 * config.width, config.width, 1)

    def forward(
        self, early: Encoded, sources: Sequence[EncodedRows], available_BM: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Fuse the encoded slices of B samples.

        Args:
            early: Encoding of all modalities of each sample together, B rows.
            sources: Encoded single slices.
            available_BM: (B, M) bool.

        Returns:
            Skips (B, C_i, h_i, w_i) of the encoded stages, and the fused bottleneck (B, C, h, w).
        """
        dtype = early.stages[-1].dtype
        # Small integers are exact in every float format, so a division by them rounds once.
        count = available_BM.sum(1).to(dtype)[:, None, None, None]
        several = (count > 1).to(dtype)
        early_weight = torch.ones_like(several) if self.always_early else several
        skips = [
            torch.addcdiv(stage * early_weight, mix(sources, [rows.stages[i] for _, rows in sources]), count)
            for i, stage in enumerate(early.stages)
        ]
        return skips, self._bottleneck(early, sources, several, early_weight)

    def _bottleneck(
        self, early: Encoded, sources: Sequence[EncodedRows], several: Tensor, early_weight: Tensor
    ) -> Tensor:
        """1x1 convolution of [S, H]: the attention-weighted sum and the softmax-weighted mean."""
        features = [rows.stages[-1] for _, rows in sources]
        gates = [rows.gate for _, rows in sources]
        # The published weights were trained with an indexing error: channel 0's attention is used for all
        # channels.
        attentions = [gate[:, :1] for gate in gates] if self.channel_zero_only else gates
        own = early.stages[-1] * early_weight
        total = mix(sources, [a * f for a, f in zip(attentions, features)])
        if self.channel_zero_only:
            # The error concerns only the gates of the modality encoders, and only samples with several
            # modalities.
            single = mix(sources, [g * f for g, f in zip(gates, features)])
            total = torch.where(several > 0, total, single)
        # Gates lie in (0, 1): their exponentials need no shift by the maximum.
        weighted = mix(sources, [torch.exp(a) * f for a, f in zip(attentions, features)])
        mean = weighted / mix(sources, [torch.exp(a) for a in attentions])
        return self.projection(torch.cat([total + early.gate * own, mean + own], 1))


def mix(sources: Sequence[EncodedRows], features: Sequence[Tensor]) -> Tensor:
    """Sum over the sources of their mixed rows. `features` has one tensor of rows for each source."""
    return reduce(torch.add, (mix_rows(source.mix_BN, x) for source, x in zip(sources, features)))


def mix_rows(mix_BN: Tensor, x_NCHW: Tensor) -> Tensor:
    """Sum of each sample's rows, (B, C, H, W). Preserves the memory layout without a copy."""
    channels_last = not x_NCHW.is_contiguous() and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    x = x_NCHW.permute(0, 2, 3, 1) if channels_last else x_NCHW
    # The matrix needs no gradient, so autograd keeps only the matrix and frees the rows after the product.
    mixed = torch.mm(mix_BN.to(x.dtype), x.flatten(1)).unflatten(1, x.shape[1:])
    return mixed.permute(0, 3, 1, 2) if channels_last else mixed


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Concatenation along dimension 0, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
