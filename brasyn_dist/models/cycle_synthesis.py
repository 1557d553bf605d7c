"""Both passes of an update: synthesis, and the cycle pass with the synthetic slice as an input.

    masks --training/cycle_inputs.py--> CycleInputs --+
    real slices (K, M, H, W) -------------------------+--> CycleSynthesis --> CycleOutputs

The features of a modality encoder depend only on its own slice. With `fast`, each real slice that is needed
is therefore encoded once, for both passes and for all target variants of a sample. The cycle pass adds the
synthetic slices. Missing slices are not encoded. Matrices select the rows of each sample
(models/feature_fusion.py). The result is exact: the same sums in another order. Encodings for B samples with
one target each and three of four modalities available: 3 B + B instead of 4 B + 4 B. For all four targets of
B samples in one loss: 4 B + 4 B instead of 16 B + 16 B.

Without `fast`, the same is computed by `Generator.forward` twice. Tests compare the two.

One module for both passes also gives DistributedDataParallel one forward for each backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brasyn_dist.models.feature_fusion import EncodedRows
from brasyn_dist.models.hfgan import HFGANGenerator
from brasyn_dist.models.registry import Generator
from brasyn_dist.preprocessing.normalisation import mask_missing


class CycleOutputs(NamedTuple):
    """Outputs of both passes. Those of the cycle pass and of the segmentation head may be None."""

    image_B1HW: Tensor
    bottleneck_BCHW: Tensor
    """Fused features at the lowest resolution."""
    cycle_image_B1HW: Tensor | None
    cycle_bottleneck_BCHW: Tensor | None
    head_BCHW: Tensor | None
    """Logits of the generator's segmentation head for the first pass."""


class CycleInputs(NamedTuple):
    """Inputs and targets of both passes; B target variants: K samples times the targets of each sample."""

    row_B: Tensor
    """Sample of each variant, int64."""
    target_B: Tensor
    available_BM: Tensor
    cycle_target_B: Tensor
    cycle_available_BM: Tensor
    """With the target, whose slice is the synthetic one, and without the target of the cycle pass."""
    real_rows: tuple[Tensor, ...]
    """For each modality the samples whose real slice is encoded, int64; N rows in total."""
    real_mix_BN: Tensor
    """1 where the first pass of a variant uses an encoded real slice, else 0."""
    synthetic_rows: tuple[Tensor, ...]
    """For each modality the variants whose synthetic slice is encoded, int64; S rows in total."""
    cycle_real_mix_BN: Tensor
    cycle_synthetic_mix_BS: Tensor

    def to(self, device: torch.device) -> "CycleInputs":
        """The same tensors on `device`, copied asynchronously."""

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(device, non_blocking=True)

        return CycleInputs(*map(move, self))


class CycleSynthesis(nn.Module):
    """Both passes of a generator. With `cycle=False` the results of the second pass are None.

    Only HF-GAN has encoders that `fast` can use. Other generators run `forward` twice.
    """

    def __init__(self, generator: Generator, fast: bool = True, cycle: bool = True) -> None:
        super().__init__()
        self.generator: Any = generator
        self.fast = fast and isinstance(generator, HFGANGenerator)
        self.cycle = cycle

    def forward(
        self,
        real_KMHW: Tensor,
        view_K: Tensor | None,
        inputs: CycleInputs,
        context_KNMHW: Tensor | None = None,
    ) -> CycleOutputs:
        """Synthesise the targets, and real slices from the synthetic ones.

        Args:
            real_KMHW: Normalised real slices, none of them masked.
            view_K: Views (K,) int64.
            inputs: Masks and rows of both passes.
            context_KNMHW: Normalised neighbouring slices, for a generator with a context.
        """
        real_BMHW = real_KMHW[inputs.row_B]
        view_B = None if view_K is None else view_K[inputs.row_B]
        context_BNMHW = None if context_KNMHW is None else context_KNMHW[inputs.row_B]
        sources = None
        if self.fast:
            slices = [real_KMHW[rows, m, None] for m, rows in enumerate(inputs.real_rows)]
            real = self.generator.encode_modalities(slices)
            sources = [EncodedRows(inputs.real_mix_BN, real)]
        inputs_BMHW = mask_missing(real_BMHW, inputs.available_BM)
        first = self._generate(
            inputs_BMHW, sources, inputs.available_BM, inputs.target_B, view_B, context_BNMHW
        )
        head = self.generator.segmentation_head
        height, width = real_KMHW.shape[2:]
        head_BCHW = None if head is None else head(first[1])[:, :, :height, :width]
        if not self.cycle:
            return CycleOutputs(*first, None, None, head_BCHW)

        image_B1HW = first[0]
        if self.fast:
            slices = [pick(image_B1HW, rows) for rows in inputs.synthetic_rows]
            synthetic = self.generator.encode_modalities(slices)
            sources = [
                EncodedRows(inputs.cycle_real_mix_BN, real),
                EncodedRows(inputs.cycle_synthetic_mix_BS, synthetic),
            ]
        completed_BMHW = completed_slices(real_BMHW, image_B1HW, inputs.target_B)
        inputs_BMHW = mask_missing(completed_BMHW, inputs.cycle_available_BM)
        second = self._generate(
            inputs_BMHW, sources, inputs.cycle_available_BM, inputs.cycle_target_B, view_B
        )
        return CycleOutputs(*first, *second, head_BCHW)

    def _generate(
        self,
        inputs_BMHW: Tensor,
        sources: list[EncodedRows] | None,
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None,
        context_BNMHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if sources is None:
            return self.generator(inputs_BMHW, available_BM, target_B, view_B, context_BNMHW)
        early = self.generator.encode_early(inputs_BMHW)
        return self.generator.complete(early, sources, available_BM, target_B, view_B)


def pick(x_BCHW: Tensor, rows_N: Tensor) -> Tensor:
    """`x_BCHW[rows_N]`, by a product with a matrix of zeros and ones.

    Inductor (torch 2.13, CPU) compiles the sum of the gradients of an indexing (`index_put`) and of
    `completed_slices` to a wrong one: in float64 the loss was equal to the last bits, but the error of the
    feature term's gradient was larger than the gradient. In TF32 the product rounds its factors as the
    convolution after it does anyway.
    """
    taken_NB = rows_N[:, None] == torch.arange(x_BCHW.shape[0], device=x_BCHW.device)
    return torch.mm(taken_NB.to(x_BCHW.dtype), x_BCHW.flatten(1)).unflatten(1, x_BCHW.shape[1:])


def completed_slices(real_BMHW: Tensor, image_B1HW: Tensor, target_B: Tensor) -> Tensor:
    """All slices of each sample, with the synthetic slice (through which gradients flow) as the target."""
    modalities = torch.arange(real_BMHW.shape[1], device=real_BMHW.device)
    is_target_BM = modalities == target_B[:, None]
    return torch.where(is_target_BM[:, :, None, None], image_B1HW.to(real_BMHW.dtype), real_BMHW)
