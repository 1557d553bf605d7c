"""Fusion of what the encoders found: any subset of modalities in, features of one shape out.

Encoded slices are *rows*; which rows a sample takes is a matrix of zeros and ones, so that one row may serve several target
variants and both passes of an update, and a missing modality needs none:

    row features (N, C, h, w) --mix (B, N)--> sums over each sample's available modalities (B, C, h, w)

One matrix product replaces the loop over samples and modalities, at under 1 % of the generator's operations.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brasyn_dist.config import GeneratorConfig
from brasyn_dist.models.layers import Parts


class Encoded(NamedTuple):
    """What one encoder makes of N rows: features of stages 1 to the last (the bottleneck), and the bottleneck's gate."""

    stages: tuple[Tensor, ...]
    """(N, C_i, h_i, w_i)."""
    gate: Tensor
    """(N, C, 1, 1) in (0, 1)."""


class Source(NamedTuple):
    """Encoded rows and the matrix (B, N) of zeros and ones that says which of them each sample takes."""

    mix_BN: Tensor
    rows: Encoded


class Fusion(nn.Module):
    """Skips and bottleneck of each sample from its early-fusion encoder and its available modalities' encoders.

    The early encoder takes part only where several modalities are available (method, section 3).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.channel_zero_only = config.attention == "published"
        self.projection = nn.Conv2d(2 * config.width, config.width, 1)

    def forward(
        self, early: Encoded, sources: Sequence[Source], available_BM: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Skips (B, C_i, h_i, w_i) of stages 1 to the last, and the fused bottleneck (B, C, h, w)."""
        dtype = early.stages[-1].dtype
        # Small integers, exact in every float format: dividing by them rounds once.
        count = available_BM.sum(1).to(dtype)[:, None, None, None]
        several = (count > 1).to(dtype)
        skips = [
            torch.addcdiv(stage * several, mix(sources, [rows.stages[i] for _, rows in sources]), count)
            for i, stage in enumerate(early.stages)
        ]
        return skips, self._bottleneck(early, sources, several)

    def _bottleneck(self, early: Encoded, sources: Sequence[Source], several: Tensor) -> Tensor:
        """1x1 convolution of [S, H]: the attention-weighted sum and the softmax-weighted mean."""
        features = [rows.stages[-1] for _, rows in sources]
        gates = [rows.gate for _, rows in sources]
        # In published weights channel 0's value for all channels: an indexing slip that they were trained with.
        attentions = [gate[:, :1] for gate in gates] if self.channel_zero_only else gates
        own = early.stages[-1] * several
        total = mix(sources, [a * f for a, f in zip(attentions, features)])
        if self.channel_zero_only:
            # The slip is in the modality encoders' gates where several are available, and nowhere else.
            alone = mix(sources, [g * f for g, f in zip(gates, features)])
            total = torch.where(several > 0, total, alone)
        # Gates lie in (0, 1): their exponentials need no shift by the maximum.
        weighted = mix(sources, [torch.exp(a) * f for a, f in zip(attentions, features)])
        mean = weighted / mix(sources, [torch.exp(a) for a in attentions])
        return self.projection(torch.cat([total + early.gate * own, mean + own], 1))


def mix(sources: Sequence[Source], features: Sequence[Tensor]) -> Tensor:
    """Sum over the sources of their mixed rows, `features` having one tensor of rows for each source."""
    return reduce(torch.add, (mix_rows(source.mix_BN, x) for source, x in zip(sources, features)))


def mix_rows(mix_BN: Tensor, x_NCHW: Tensor) -> Tensor:
    """(B, C, H, W): for each sample the sum of the rows that `mix_BN` picks. Keeps the memory layout, copies nothing."""
    channels_last = not x_NCHW.is_contiguous() and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    x = x_NCHW.permute(0, 2, 3, 1) if channels_last else x_NCHW
    # The matrix takes part in no gradient, so autograd keeps it alone: the rows are free after the product.
    mixed = torch.mm(mix_BN.to(x.dtype), x.flatten(1)).unflatten(1, x.shape[1:])
    return mixed.permute(0, 3, 1, 2) if channels_last else mixed


def join_parts(stages: Sequence[Parts], gate: Parts) -> Encoded:
    """Rows of all networks below each other."""
    return Encoded(tuple(map(join_rows, stages)), join_rows(gate))


def join_rows(parts: Parts) -> Tensor:
    # A single part stays as it is: `cat` would copy it.
    return parts[0] if len(parts) == 1 else torch.cat(parts)
