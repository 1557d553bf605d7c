"""Both passes of an update in one call: synthesis, and the cycle pass in which the synthetic slice is an input.

    masks --training/pass_plan.py, on the host--> PassTensors --+
    real slices (K, 4, H, W) -----------------------------------+--> SynthesisPasses --> image, bottleneck, cycle image, cycle bottleneck

A modality encoder's features depend on its own slice alone. So each real slice that anybody needs is encoded once, for
both passes and for all target variants of a sample; the cycle pass adds the synthetic slices; what is missing is never
encoded. Fusion then takes rows by matrix (models/feature_fusion.py). This is exact: the same sums in another order. Modality
encodings for B samples and one target each, three modalities available: 3 B + B instead of 4 B + 4 B; for all four
targets of B samples in one loss: 4 B + 4 B instead of 16 B + 16 B.

`fast=False` is the same mathematics as one reads it: `Generator.forward` twice. Tests hold the two against each other.

One module for both passes also gives DistributedDataParallel one forward for each backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brasyn_dist.models.feature_fusion import Source
from brasyn_dist.models.generator import Generator
from brasyn_dist.preprocessing.normalisation import mask_missing

Passes = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Image (B, 1, H, W) and fused bottleneck (B, C, h, w) of the first pass, then of the cycle pass."""


class PassTensors(NamedTuple):
    """What to synthesise from what, as tensors. B counts target variants: K samples times 1, or times all 4 targets."""

    row_B: Tensor
    """Sample that each variant is of, int64."""
    target_B: Tensor
    available_BM: Tensor
    cycle_target_B: Tensor
    cycle_available_BM: Tensor
    """With the target, whose slice is the synthetic one; without the cycle's own target."""
    real_rows: tuple[Tensor, ...]
    """For each modality the samples whose real slice is encoded, int64; N rows in all."""
    real_mix_BN: Tensor
    """1 where a variant's first pass takes an encoded real slice, else 0."""
    synthetic_rows: tuple[Tensor, ...]
    """For each modality the variants whose synthetic slice is encoded, int64; S rows in all."""
    cycle_real_mix_BN: Tensor
    cycle_synthetic_mix_BS: Tensor

    def to(self, device: torch.device) -> "PassTensors":
        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(move(v) for v in value)
            return value.to(device, non_blocking=True)

        return PassTensors(*map(move, self))


class SynthesisPasses(nn.Module):
    """A generator's two passes; `cycle=False` leaves the second one out (its results are then None)."""

    def __init__(self, generator: Generator, fast: bool = True, cycle: bool = True) -> None:
        super().__init__()
        self.generator = generator
        self.fast = fast
        self.cycle = cycle

    def forward(self, real_KMHW: Tensor, view_K: Tensor | None, *plan: Tensor | tuple[Tensor, ...]) -> Passes:
        """Normalised real slices (K, 4, H, W), none masked, their views (K,) int64, and the fields of a PassTensors.

        Returns images (B, 1, H, W) and fused bottlenecks (B, C, h, w) of the first and of the cycle pass.
        """
        tensors = PassTensors(*plan)  # type: ignore[arg-type]
        return (
            self._encode_once(real_KMHW, view_K, tensors)
            if self.fast
            else self._twice(real_KMHW, view_K, tensors)
        )

    def _encode_once(self, real_KMHW: Tensor, view_K: Tensor | None, plan: PassTensors) -> Passes:
        generator = self.generator
        real_BMHW, view_B = take_rows(real_KMHW, view_K, plan.row_B)
        slices = tuple(real_KMHW[rows, m, None] for m, rows in enumerate(plan.real_rows))
        real = generator.encode_modalities(slices)
        early = generator.encode_early(mask_missing(real_BMHW, plan.available_BM))
        image_B1HW, bottleneck_BCHW = generator.complete(
            early, [Source(plan.real_mix_BN, real)], plan.available_BM, plan.target_B, view_B
        )
        if not self.cycle:
            return image_B1HW, bottleneck_BCHW, None, None
        synthetic = generator.encode_modalities(tuple(pick(image_B1HW, rows) for rows in plan.synthetic_rows))
        sources = [Source(plan.cycle_real_mix_BN, real), Source(plan.cycle_synthetic_mix_BS, synthetic)]
        early = generator.encode_early(cycle_inputs(real_BMHW, image_B1HW, plan))
        cycle = generator.complete(early, sources, plan.cycle_available_BM, plan.cycle_target_B, view_B)
        return image_B1HW, bottleneck_BCHW, *cycle

    def _twice(self, real_KMHW: Tensor, view_K: Tensor | None, plan: PassTensors) -> Passes:
        real_BMHW, view_B = take_rows(real_KMHW, view_K, plan.row_B)
        inputs_BMHW = mask_missing(real_BMHW, plan.available_BM)
        image_B1HW, bottleneck_BCHW = self.generator(inputs_BMHW, plan.available_BM, plan.target_B, view_B)
        if not self.cycle:
            return image_B1HW, bottleneck_BCHW, None, None
        inputs_BMHW = cycle_inputs(real_BMHW, image_B1HW, plan)
        cycle = self.generator(inputs_BMHW, plan.cycle_available_BM, plan.cycle_target_B, view_B)
        return image_B1HW, bottleneck_BCHW, *cycle


def pick(x_BCHW: Tensor, rows_N: Tensor) -> Tensor:
    """`x_BCHW[rows_N]`, by a product with a matrix of zeros and ones.

    Inductor (torch 2.13, CPU) compiles the sum of an indexing's gradient (`index_put`) and of `completed_slices`' to a wrong one:
    in float64, where the loss was equal to the last bits, the feature term's gradient was off by more than itself. In TF32 the
    product rounds to what the convolution behind it would round to anyway.
    """
    taken_NB = rows_N[:, None] == torch.arange(x_BCHW.shape[0], device=x_BCHW.device)
    return torch.mm(taken_NB.to(x_BCHW.dtype), x_BCHW.flatten(1)).unflatten(1, x_BCHW.shape[1:])


def take_rows(real_KMHW: Tensor, view_K: Tensor | None, row_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Slices and views of each variant's sample."""
    return real_KMHW[row_B], None if view_K is None else view_K[row_B]


def cycle_inputs(real_BMHW: Tensor, image_B1HW: Tensor, plan: PassTensors) -> Tensor:
    """Inputs of the cycle pass: the synthetic slice in its place, what is not available then masked. Gradients pass."""
    return mask_missing(completed_slices(real_BMHW, image_B1HW, plan.target_B), plan.cycle_available_BM)


def completed_slices(real_BMHW: Tensor, image_B1HW: Tensor, target_B: Tensor) -> Tensor:
    """All four slices, the synthetic one in its target's place. Gradients pass to it."""
    modalities = torch.arange(real_BMHW.shape[1], device=real_BMHW.device)
    is_target_BM = modalities == target_B[:, None]
    return torch.where(is_target_BM[:, :, None, None], image_B1HW.to(real_BMHW.dtype), real_BMHW)
