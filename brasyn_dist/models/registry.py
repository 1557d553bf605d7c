"""Generators by `generator.kind`: their common interface, construction and loading.

    GeneratorConfig --build_generator--> Generator --save_pretrained--> export
    export --Generator.from_pretrained--> Generator

To add a kind: a dataclass of options with a field `kind` (config/models.py, config/run.py), a subclass of
`Generator` in a module of its own, and a line in KINDS.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import AnyGeneratorConfig
from brasyn_dist.errors import CheckpointError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.layers import seeded_initialisation
from brasyn_dist.models.pretrained import GENERATOR, PretrainedNetwork

KINDS = {
    "hfgan": "brasyn_dist.models.hfgan.HFGANGenerator",
    "unet": "brasyn_dist.models.conditional_unet.ConditionalUNet",
}
"""Class of each kind; imported when it is used."""


class SegmentationHead(nn.Sequential):
    """Logits of all classes at full size from a bottleneck (B, C, h, w) at 1 / `scale` of it.

    GroupNorm, SiLU, 1x1 convolution, depth to space.
    """

    def __init__(self, channels: int, groups: int, scale: int, modality_set: ModalitySet) -> None:
        classes = 1 + max(modality_set.labels, default=0)
        super().__init__(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, classes * scale**2, 1),
            nn.PixelShuffle(scale),
        )


class Generator(PretrainedNetwork):
    """A network that synthesises one missing modality of a slice from the available ones."""

    kind: ClassVar[str] = GENERATOR
    config: Any
    context = 0
    """Neighbouring slices on each side that the network sees."""

    def __init__(self, config: Any, modality_set: ModalitySet = BRATS) -> None:
        super().__init__(config, modality_set)
        self.segmentation_head: SegmentationHead | None = None
        """Trained with the auxiliary segmentation term; no part of `forward`."""

    def forward(
        self,
        x_BMHW: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Synthesise the target modality of each sample.

        Args:
            x_BMHW: Normalised slices (B, M, H, W), missing ones -1.
            available_BM: (B, M) bool, at least one True per sample.
            target_B: Target modalities (B,) int64.
            view_B: Views (B,) int64. A network of one view does not need it.
            context_BNMHW: Normalised neighbouring slices (B, 2 x context, M, H, W) in the order of their
                position, of all modalities. Only for a network with a context.

        Returns:
            Normalised slices (B, 1, H, W), and the features at the lowest resolution (B, C, h, w).
        """
        raise NotImplementedError

    def synthesise(
        self,
        x_BMHW: Tensor,
        available: Sequence[int],
        target: int,
        view: int | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> Tensor:
        """`forward` for one set of available modalities in all samples.

        Missing slices need not be masked. Returns the slices (B, 1, H, W).
        """
        size, device = x_BMHW.shape[0], x_BMHW.device
        present = [m in available for m in range(len(self.modality_set))]
        available_BM = torch.tensor(present, device=device).expand(size, -1)
        target_B = torch.full((size,), target, device=device)
        view_B = None if view is None else torch.full((size,), view, device=device)
        return self(x_BMHW, available_BM, target_B, view_B, context_BNMHW)[0]

    @classmethod
    def class_of(cls, config: Mapping[str, Any]) -> type[Self]:
        """The class of an exported configuration; exports of version 0.1 do not name their kind."""
        found = generator_class(config.get("kind", "hfgan"))
        if not issubclass(found, cls):
            raise CheckpointError(
                f"a generator of kind {config['kind']}: load it with Generator.from_pretrained"
            )
        return found


def generator_class(kind: str) -> type[Any]:
    """Class of a kind. Raises CheckpointError for an unknown one."""
    if kind not in KINDS:
        raise CheckpointError(
            f"generator.kind {kind!r} is not known to this version; there are {', '.join(KINDS)}"
        )
    module, _, name = KINDS[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)


def build_generator(
    config: AnyGeneratorConfig, seed: int, modality_set: ModalitySet = BRATS, **options: Any
) -> Any:
    """A generator whose initial weights are a function of (config, seed, modality_set) only.

    Args:
        config: Options of the network; their class decides its kind.
        seed: Seed of the initial weights.
        modality_set: Modalities of the network.
        options: Further arguments of the class, such as `encoder_execution` of HF-GAN.
    """
    with seeded_initialisation(seed, "generator"):
        return generator_class(config.kind)(config, modality_set=modality_set, **options)
