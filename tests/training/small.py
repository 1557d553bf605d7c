"""Small networks and a made-up batch for tests of one update, in this process, without Accelerate."""

from typing import Any

import torch

from brasyn_dist.config import Config, load_config
from brasyn_dist.data.loading.loader import BatchMemory, SliceBatch
from brasyn_dist.data.loading.sampler import BatchMasks, targets_and_masks
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import DeviceBatch

SIZE, BATCH = 32, 8
OPTIONS = (
    f"generator.image_size={SIZE}", f"discriminator.image_size={SIZE}", "generator.base_channels=8", "generator.heads=2",
    "generator.transformer_layers=1", "discriminator.base_channels=8", f"training.global_batch_size={BATCH}",
    "runtime.threads=1",
)  # fmt: skip


UNET = (
    "generator.kind=unet", "generator.widths=[16,32]", "generator.units=1", "generator.full_channels=16",
    "generator.condition=8", "generator.context=1", f"generator.image_size={SIZE}", "objective.cycle=0",
    "objective.feature=0", "objective.adversarial=0", "objective.classification=0", "optimizer.weight_decay=1e-2",
    f"training.global_batch_size={BATCH}", "runtime.threads=1", "objective.ssim_regions=whole",
)  # fmt: skip
"""The recommended recipe with a small network and neighbouring slices."""


def small_config(*overrides: str) -> Config:
    return load_config(None, [*OPTIONS, *overrides])


def made_up_slices(count: int = BATCH, size: int = SIZE, context: int = 0) -> SliceBatch:
    """Brains of different sizes; every other slice has tumour, one has no labels at all, two are the same."""
    noise = torch.Generator().manual_seed(0)
    planes = torch.randint(1, 4000, (count, 4, size, size), generator=noise, dtype=torch.int16)
    labels = torch.zeros(count, size, size, dtype=torch.uint8)
    for b in range(count):
        planes[b, :, : 3 + b] = 0
        labels[b, size // 2 : size // 2 + 4 + b, 8:20] = 3 * (b % 2)
    planes[1:2], labels[1:2] = planes[:1].clone(), labels[:1].clone()
    batch = BatchMemory(size, "int16", context=context).batch(0, slice(0, count))
    batch.context.copy_(planes[:, None].roll(1, 0))
    batch.planes.copy_(planes)
    batch.labels.copy_(labels)
    batch.has_labels.copy_(torch.arange(count) != 3)
    batch.view.copy_(torch.arange(count) % 3)
    return batch


class Update:
    """One update of both networks: `update()`, or of the masks of another batch, `update(5)`."""

    def __init__(self, config: Config, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.distributed = SingleProcess(config.runtime, device)
        self.state: TrainState = GanTask(config).build_state(self.distributed)
        if dtype != torch.float32:
            for network in self.state.networks.values():
                network.module.to(dtype)
        self.normaliser = Normaliser(PUBLISHED, torch.device(device), dtype)
        self.step = GanStep(
            config, self.distributed, self.state.generator, self.state.discriminator, self.normaliser
        )
        size = config.generator.image_size
        self.batch = DeviceBatch.load(
            made_up_slices(config.training.global_batch_size, size, config.context), self.normaliser
        )

    def masks(self, k: int) -> list[BatchMasks]:
        training, order = self.config.training, self.config.order
        return [
            targets_and_masks(1, k, u, training.global_batch_size, order.availability)
            for u in range(4 // training.updates_per_batch)
        ]

    def __call__(self, k: int = 0, masks: list[BatchMasks] | None = None) -> dict[str, torch.Tensor]:
        return self.step(self.batch, masks or self.masks(k), 1e-3)

    def gradients(self, masks: list[BatchMasks] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """(terms, gradients by parameter) of one update that changes no weight."""
        kept: dict[str, Any] = {}

        def keep(name: str, network: Any) -> Any:
            def clip_and_step(max_norm: float, rate: float) -> torch.Tensor:
                kept.update({f"{name}.{n}": p.grad for n, p in network.module.named_parameters()})
                return torch.zeros(())

            return clip_and_step

        for name, network in self.state.networks.items():
            network.clip_and_step = keep(name, network)  # type: ignore[method-assign]
        terms = self(masks=masks)
        assert kept
        return terms, kept
