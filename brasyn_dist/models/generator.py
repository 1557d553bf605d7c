"""The generator: HF-GAN's first stage, revised (method, section 3).

    four slices, some missing --> early-fusion encoder -------+
                  each slice  --> its modality's encoder -----+--> fusion --> skips ----------------------+
                                                                       |                                  v
                                                                  bottleneck --> modality infuser --> decoder --> target slice

`forward` is the whole. The parts are methods of their own: models/passes.py encodes each slice once for several passes.
"""

import itertools
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.feature_fusion import Encoded, Fusion, Source, join_parts
from brasyn_dist.models.infuser import ModalityInfuser
from brasyn_dist.models.layers import (
    ChannelGate,
    Convolution,
    Encoder,
    Layer,
    Normalisation,
    Parts,
    ResidualBlock,
    Upsampling,
    activated,
    seeded_initialisation,
)
from brasyn_dist.models.pretrained import GENERATOR, PretrainedNetwork
from brasyn_dist.preprocessing.normalisation import mask_missing

EncoderExecution = Literal["grouped", "separate"]


def default_execution(device: torch.device) -> EncoderExecution:
    """How to run the four modality encoders on `device`: as four dense convolution networks, for now everywhere.

    On CPUs one grouped network takes 20 to 30 % longer, forward and backward at full width. On GPUs training with grouped
    convolutions is a known slow path; not measured yet.
    """
    return "separate"


class Decoder(Layer):
    """From the bottleneck to the slice: four stages (concatenate skip, residual block, doubling), then the output layers."""

    def __init__(self, widths: tuple[int, ...], groups: int, convolutions: int) -> None:
        super().__init__()
        inwards = widths[::-1]
        self.blocks = nn.ModuleList(
            ResidualBlock(2 * a, b, groups, convolutions) for a, b in itertools.pairwise(inwards)
        )
        self.upsamplings = nn.ModuleList(Upsampling(width) for width in inwards[1:])
        self.final_block = ResidualBlock(widths[0], widths[0], groups, convolutions)
        self.final_norm = Normalisation(groups, widths[0])
        self.output = Convolution(widths[0], 1, 1)

    def forward(self, x_BCHW: Tensor, skips: list[Tensor]) -> Tensor:  # type: ignore[override]
        """`skips` from the largest image (stage 1) to the smallest; returns (B, 1, H, W)."""
        parts: Parts = (x_BCHW,)
        for block, upsampling, skip in zip(self.blocks, self.upsamplings, reversed(skips)):
            parts = upsampling(block((torch.cat([parts[0], skip], 1),)))
        (hidden,) = self.final_block(parts)
        (norm,), (output,) = self.final_norm.networks(1), self.output.networks(1)
        return self.run(partial(activated, norm, output), hidden)


class Generator(PretrainedNetwork):
    """Synthesises one missing modality of a slice from those available.

    `encoder_execution` says how the four modality encoders are computed, not what: weights and results are the same.
    """

    kind, config_class = GENERATOR, GeneratorConfig
    config: GeneratorConfig

    def __init__(
        self,
        config: GeneratorConfig,
        encoder_execution: EncoderExecution = "separate",
        modality_set: ModalitySet = BRATS,
    ) -> None:
        super().__init__(config, modality_set)
        self.encoder_execution = encoder_execution
        widths = tuple(config.base_channels * m for m in config.channel_multipliers)
        count, groups, convolutions = len(modality_set), config.norm_groups, config.convolutions_per_block
        self.early_encoder = Encoder(count, widths, groups, convolutions)
        self.early_gate = ChannelGate(config.width)
        self.modality_encoders = Encoder(1, widths, groups, convolutions, copies=count)
        self.modality_gates = ChannelGate(config.width, copies=count)
        self.fusion = Fusion(config)
        self.infuser = ModalityInfuser(config)
        self.decoder = Decoder(widths, groups, convolutions)

    def forward(
        self, x_BMHW: Tensor, available_BM: Tensor, target_B: Tensor, view_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Slices (B, 4, H, W) with -1 in missing ones, availability (B, 4) bool, target modality and view (B,) int64.

        At least one modality of each sample must be available: means over none are NaN.

        Returns the target modality's slices (B, 1, H, W), normalised, and the fused bottleneck (B, C, H / 16, W / 16).
        """
        mix_BN = torch.diag_embed(available_BM.T).transpose(0, 1).flatten(1)
        source = Source(mix_BN, self.encode_modalities(x_BMHW[:, :, None].unbind(1)))
        return self.complete(self.encode_early(x_BMHW), [source], available_BM, target_B, view_B)

    def synthesise(
        self, x_BMHW: Tensor, available: tuple[int, ...], target: int, view: int | None = None
    ) -> Tensor:
        """`forward` where one set of modalities is available in all samples: runs the encoders of those alone.

        Missing slices need not be masked. Returns the images (B, 1, H, W).
        """
        size, device = x_BMHW.shape[0], x_BMHW.device
        given_M = torch.tensor([m in available for m in range(len(self.modality_set))], device=device)
        available_BM = given_M.expand(size, -1)
        target_B = torch.full((size,), target, device=device)
        view_B = None if view is None else torch.full((size,), view, device=device)
        inputs_BMHW = mask_missing(x_BMHW, available_BM)
        slices = tuple(
            inputs_BMHW[: size if m in available else 0, m, None] for m in range(len(self.modality_set))
        )
        mix_BN = torch.eye(size, device=device).repeat(1, len(available))
        source = Source(mix_BN, self.encode_modalities(slices))
        return self.complete(self.encode_early(inputs_BMHW), [source], available_BM, target_B, view_B)[0]

    def encode_early(self, x_BMHW: Tensor) -> Encoded:
        """All four slices of each sample, stacked, missing ones -1."""
        stages = self.early_encoder((x_BMHW,))
        return join_parts(stages, self.early_gate(stages[-1]))

    def encode_modalities(self, slices: Parts) -> Encoded:
        """Slices (R_m, 1, H, W) of each modality, any number of them, to R_0 + ... + R_3 rows in this order."""
        counts = [len(x) for x in slices]
        # One grouped network cannot leave out a modality that nobody needs.
        if self.encoder_execution == "separate" or 0 in counts:
            stages = self.modality_encoders(slices)
            return join_parts(stages, self.modality_gates(stages[-1]))
        together = torch.cat([F.pad(x, (0, 0) * 3 + (0, max(counts) - len(x))) for x in slices], 1)
        stages = self.modality_encoders((together,))
        gates = self.modality_gates(stages[-1])
        return join_parts([split_rows(x, counts) for (x,) in stages], split_rows(gates[0], counts))

    def complete(
        self,
        early: Encoded,
        sources: list[Source],
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """From encoded slices to (image (B, 1, H, W), fused bottleneck)."""
        skips, bottleneck_BCHW = self.fusion(early, sources, available_BM)
        tokens_BCHW = self.infuser(bottleneck_BCHW, target_B, view_B)
        return self.decoder(tokens_BCHW, skips), bottleneck_BCHW


def split_rows(x: Tensor, counts: list[int]) -> Parts:
    """Grouped features (R, 4C, h, w) to the first `counts[m]` rows of each network (R_m, C, h, w)."""
    return tuple(part[:count] for part, count in zip(x.chunk(len(counts), 1), counts))


def build_generator(
    config: GeneratorConfig,
    seed: int,
    encoder_execution: EncoderExecution = "separate",
    modality_set: ModalitySet = BRATS,
) -> Generator:
    """A generator whose initial weights are a function of (config, seed) alone."""
    with seeded_initialisation(seed, "generator"):
        return Generator(config, encoder_execution, modality_set)
