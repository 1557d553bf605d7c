"""The generator of the thesis: HF-GAN's first stage, revised (docs/explanation/method.md, section 3).

    M slices, some missing --> early-fusion encoder ----+
                each slice --> its modality's encoder --+--> fusion --> skips -------------+
                                                                |                          v
                                                            bottleneck --> infuser --> decoder --> slice

`forward` computes all of it. models/cycle_synthesis.py calls the parts, to encode each slice once for both
passes.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from brasyn_dist.brats import BRATS
from brasyn_dist.config import BEFORE_OPTIONS, GeneratorConfig
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.feature_fusion import Encoded, EncodedRows, FeatureFusion, join_rows
from brasyn_dist.models.infuser import ModalityInfuser
from brasyn_dist.models.layers import (
    Block,
    ChannelGate,
    Convolution,
    Encoder,
    GroupNorm,
    ResidualBlock,
    Upsampling,
    norm_silu_convolution,
    unstack,
)
from brasyn_dist.models.registry import Generator, SegmentationHead
from brasyn_dist.preprocessing.normalisation import mask_missing

EncoderExecution = Literal["grouped", "separate"]

_FUNCTIONAL_CALL = threading.Lock()
"""functional_call replaces a module's parameters while it runs, so only one thread may be in it."""


class Decoder(Block):
    """Stages of (concatenate skip, residual block, doubling), a residual block at full size, output layers.

    With `full_size_skip`, the last residual block has the skip of stage 0, too.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        groups: int,
        block: Callable[..., ResidualBlock],
        full_size_skip: bool,
    ) -> None:
        super().__init__()
        self.full_size_skip = full_size_skip
        inwards = widths[::-1]
        self.blocks = nn.ModuleList(block(2 * a, b) for a, b in itertools.pairwise(inwards))
        self.upsamplings = nn.ModuleList(Upsampling(width) for width in inwards[1:])
        self.final_block = block(widths[0] * (2 if full_size_skip else 1), widths[0])
        self.final_norm = GroupNorm(groups, widths[0])
        self.output = Convolution(widths[0], 1, 1)

    def forward(self, x_BCHW: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Slices (B, 1, H, W) from the bottleneck and the skips of the encoded stages."""
        hidden = x_BCHW
        for block, upsampling, skip in zip(self.blocks, self.upsamplings, reversed(skips)):
            hidden = upsampling(block(torch.cat([hidden, skip], 1)))
        if self.full_size_skip:
            hidden = torch.cat([hidden, skips[0]], 1)
        output = partial(norm_silu_convolution, self.final_norm.bound(), self.output.bound())
        return self.checkpointed(output, self.final_block(hidden))


def gated(stages: Sequence[Tensor], gate: Tensor, pixelwise: bool) -> Encoded:
    """Encoded slices with their gate; `pixelwise` adds the gate network's output to the bottleneck."""
    if not pixelwise:
        return Encoded(tuple(stages), gate)
    return Encoded((*stages[:-1], stages[-1] + gate), torch.ones_like(gate[:, :, :1, :1]))


class HFGANGenerator(Generator):
    """Synthesises one missing modality of a slice from the available ones.

    The parameters of the M modality encoders are stacked (models/layers.py). `encoder_execution` decides how
    they are computed: as M dense networks (`separate`) or as one network of grouped convolutions (`grouped`).
    Parameters, their names and the results are the same. On CPUs `grouped` takes 20 to 30 % longer, forward
    and backward at full width. On GPUs training with grouped convolutions is a known slow path; not measured.
    """

    config_class = GeneratorConfig
    config: GeneratorConfig
    before_options = BEFORE_OPTIONS

    def __init__(
        self,
        config: GeneratorConfig,
        encoder_execution: EncoderExecution = "separate",
        modality_set: ModalitySet = BRATS,
    ) -> None:
        super().__init__(config, modality_set)
        self.encoder_execution = encoder_execution
        widths = tuple(config.base_channels * m for m in config.channel_multipliers)
        count, full_size = len(modality_set), config.decoder == "described"
        block = partial(
            ResidualBlock,
            groups=config.norm_groups,
            convolutions=config.convolutions_per_block,
            activate_last=config.residual_block == "described",
        )
        pixelwise = config.attention == "none"
        self.early_encoder = Encoder(count, widths, block, full_size=full_size)
        self.early_gate = ChannelGate(config.width, pixelwise=pixelwise)
        self.modality_encoders = Encoder(1, widths, block, stacked=count, full_size=full_size)
        self.modality_gates = ChannelGate(config.width, stacked=count, pixelwise=pixelwise)
        self.fusion = FeatureFusion(config)
        self.infuser = ModalityInfuser(config)
        self.decoder = Decoder(widths, config.norm_groups, block, full_size)
        if config.segmentation_head:
            scale = 2 ** (len(widths) - 1)
            self.segmentation_head = SegmentationHead(config.width, config.norm_groups, scale, modality_set)

    def forward(
        self,
        x_BMHW: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Generator.forward`. Only a generator with a view embedding uses the views."""
        mix_BN = torch.diag_embed(available_BM.T).transpose(0, 1).flatten(1)
        source = EncodedRows(mix_BN, self.encode_modalities(x_BMHW[:, :, None].unbind(1)))
        return self.complete(self.encode_early(x_BMHW), [source], available_BM, target_B, view_B)

    def synthesise(
        self,
        x_BMHW: Tensor,
        available: Sequence[int],
        target: int,
        view: int | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> Tensor:
        """See `Generator.synthesise`. Computes only the encoders of the available modalities."""
        size, device, modalities = x_BMHW.shape[0], x_BMHW.device, range(len(self.modality_set))
        available_BM = torch.tensor([m in available for m in modalities], device=device).expand(size, -1)
        target_B = torch.full((size,), target, device=device)
        view_B = None if view is None else torch.full((size,), view, device=device)
        inputs_BMHW = mask_missing(x_BMHW, available_BM)
        slices = [inputs_BMHW[: size if m in available else 0, m, None] for m in modalities]
        mix_BN = torch.eye(size, device=device).repeat(1, len(available))
        source = EncodedRows(mix_BN, self.encode_modalities(slices))
        return self.complete(self.encode_early(inputs_BMHW), [source], available_BM, target_B, view_B)[0]

    def encode_early(self, x_BMHW: Tensor) -> Encoded:
        """Encode the slices of each sample together, missing ones -1."""
        stages = self.early_encoder(x_BMHW)
        return gated(stages, self.early_gate(stages[-1]), self.early_gate.pixelwise)

    def encode_modalities(self, slices: Sequence[Tensor]) -> Encoded:
        """Encode single slices.

        Args:
            slices: For each modality m, R_m slices (R_m, 1, H, W). The encoder of an empty one is not
                computed.

        Returns:
            R_0 + R_1 + ... rows, in this order.
        """
        counts = [x.shape[0] for x in slices]
        # The grouped network cannot omit a modality.
        if self.encoder_execution == "grouped" and 0 not in counts:
            return self._encode_grouped(slices, counts)
        with nullcontext() if torch.compiler.is_compiling() else _FUNCTIONAL_CALL:
            return self._encode_separately(slices)

    def _encode_separately(self, slices: Sequence[Tensor]) -> Encoded:
        encoder_weights, gate_weights = (
            unstack(network, len(slices)) for network in (self.modality_encoders, self.modality_gates)
        )
        parts = []
        for x, of_encoder, of_gate in zip(slices, encoder_weights, gate_weights):
            if x.shape[0]:
                stages = functional_call(self.modality_encoders, of_encoder, x, tie_weights=False)
                gate = functional_call(self.modality_gates, of_gate, stages[-1], tie_weights=False)
                parts.append(gated(stages, gate, self.modality_gates.pixelwise))
        return Encoded(
            tuple(map(join_rows, zip(*(part.stages for part in parts)))), join_rows([p.gate for p in parts])
        )

    def _encode_grouped(self, slices: Sequence[Tensor], counts: list[int]) -> Encoded:
        side_by_side = torch.cat([F.pad(x, (0, 0) * 3 + (0, max(counts) - x.shape[0])) for x in slices], 1)
        stages = self.modality_encoders(side_by_side)
        encoded = gated(stages, self.modality_gates(stages[-1]), self.modality_gates.pixelwise)

        def rows(x: Tensor) -> Tensor:
            """(R, M C, h, w) to the first R_m rows of each network, (R_0 + R_1 + ..., C, h, w)."""
            return torch.cat([part[:count] for part, count in zip(x.chunk(len(counts), 1), counts)])

        return Encoded(tuple(map(rows, encoded.stages)), rows(encoded.gate))

    def complete(
        self,
        early: Encoded,
        sources: Sequence[EncodedRows],
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` from encoded slices."""
        skips, bottleneck_BCHW = self.fusion(early, sources, available_BM)
        tokens_BCHW = self.infuser(bottleneck_BCHW, target_B, view_B)
        return self.decoder(tokens_BCHW, skips), bottleneck_BCHW
