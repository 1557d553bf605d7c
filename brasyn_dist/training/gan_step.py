"""One optimiser update of a GAN, in two phases.

    generator phase       trains: generator (both passes in one call)   frozen: discriminator, segmenter (if there is one)
    discriminator phase   trains: discriminator on real and detached synthetic slices

A rank's slices may be cut into micro-batches. All terms are per sample and divided by the global batch size, so the
update is the same however the global batch is cut into ranks and micro-batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from brasyn_dist.brats import MODALITIES
from brasyn_dist.config import Config, RunConfig
from brasyn_dist.data.loading.augmentation import Augmentation, mirrored, sample_augmentation
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.data.loading.sampler import BatchMasks, targets_and_masks
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.losses.objective import (
    GeneratorOutputs,
    discriminator_terms,
    generator_terms,
    weighted_discriminator_sum,
    weighted_sum,
)
from brasyn_dist.models.passes import PassTensors, completed_slices
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.compilation import compile_mode
from brasyn_dist.training.pass_plan import plan_passes

Passes = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Image and bottleneck of the first pass and of the cycle pass."""


@dataclass(frozen=True)
class DeviceBatch:
    """This rank's slices of one global batch, normalised, on the device."""

    real_BMHW: Tensor
    """All four modalities, none masked."""
    labels_BHW: Tensor
    """Canonical, uint8; 0 where a slice has none."""
    has_labels_B: Tensor
    view_B: Tensor
    type_B: Tensor
    """Tumour type."""

    @classmethod
    def load(
        cls, batch: SliceBatch, normaliser: Normaliser, augmentation: Augmentation | None = None
    ) -> "DeviceBatch":
        """Move the integers, then normalise there: half of the bytes of float32 planes cross the bus."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(normaliser.device, non_blocking=True)

        planes, labels, view = move(batch.planes), move(batch.labels), move(batch.view)
        medians = move(batch.medians)
        if augmentation is None:
            real = normaliser(planes, medians_BM=medians)
        else:
            mirror = move(torch.from_numpy(augmentation.mirror_B))
            real = normaliser(planes, move(torch.from_numpy(augmentation.factor_BM)), medians)
            real, labels = (mirrored(x, mirror, view) for x in (real, labels))
        return cls(real, labels, move(batch.has_labels), view, move(batch.tumour_type))

    def rows(self, start: int, stop: int) -> "DeviceBatch":
        return DeviceBatch(
            self.real_BMHW[start:stop],
            self.labels_BHW[start:stop],
            self.has_labels_B[start:stop],
            self.view_B[start:stop],
            self.type_B[start:stop],
        )

    def __len__(self) -> int:
        return self.real_BMHW.shape[0]


class Step(Protocol):
    """What the trainer does with a batch: everything that knows which networks are trained."""

    variants: int
    """How often each slice enters one update: metrics are means over slices and variants."""
    headline: tuple[str, str]
    """Caption, and the term that the console shows under it."""

    def update(self, batch: SliceBatch, number: int, rate: float) -> dict[str, Tensor]:
        """Optimiser step `number` (from 0) of those that this batch is used for, at the main network's learning `rate`.

        Returns sums over this rank's samples, and norms (`..._norm`), on the device: nothing waits for it.
        """

    def trace(self, batch: SliceBatch, number: int) -> list[list[object]]:
        """What that update asks of each sample beside its key, as JSON, to compare runs."""


class Loader:
    """The newest batch on the device, augmented: loaded once, however many updates it is used for."""

    def __init__(self, config: RunConfig, normaliser: Normaliser) -> None:
        self._config = config
        self.normaliser = normaliser
        self._newest: tuple[SliceBatch, DeviceBatch] | None = None

    def __call__(self, batch: SliceBatch) -> DeviceBatch:
        if self._newest is None or self._newest[0] is not batch:
            self._newest = (batch, DeviceBatch.load(batch, self.normaliser, self._augmentation(batch)))
        return self._newest[1]

    def _augmentation(self, batch: SliceBatch) -> Augmentation | None:
        options, size = self._config.augmentation, self._config.training.global_batch_size
        seed, modalities = self._config.order.seed, batch.planes.shape[1]
        sampled = sample_augmentation(options, seed, batch.index, size, modalities)
        return None if sampled is None else sampled[batch.rows]


def chunks(size: int, limit: int | None) -> list[tuple[int, int]]:
    """(start, stop) of micro-batches of at most `limit` slices."""
    step = limit or size
    return [(i, min(i + step, size)) for i in range(0, size, step)]


@dataclass(frozen=True)
class Rates:
    """Learning rates of one update."""

    generator: float
    discriminator: float


class GanStep:
    """Updates both networks. Calling it returns device tensors only: nothing in here waits for the device."""

    def __init__(
        self,
        config: Config,
        distributed: ProcessGroup,
        generator: Trainable,
        discriminator: Trainable,
        normaliser: Normaliser,
        segmenter: Segmenter | None = None,
    ) -> None:
        """`segmenter` is frozen and in evaluation mode; the objective's Tversky term needs it."""
        self._config = config
        self._distributed = distributed
        self._generator = generator
        self._discriminator = discriminator
        self._segmenter = segmenter
        self._loader = Loader(config, normaliser)
        self.normaliser = normaliser
        self.variants = len(MODALITIES) // config.training.updates_per_batch
        self.headline = ("L1", "reconstruction")
        self._use_discriminator = config.objective.adversarial > 0 or config.objective.classification > 0
        """If both discriminator loss weights are 0, the discriminator is neither evaluated nor updated."""
        # Compiled code wants few shapes; eager code is quicker without padded rows.
        self._equal_rows = compile_mode(config, distributed.device) != "off"

    def __call__(self, batch: DeviceBatch, masks: Sequence[BatchMasks], rates: Rates) -> dict[str, Tensor]:
        """One update on this rank's part of a global batch.

        `masks` holds this rank's rows: one entry for each target variant that enters the loss (1, or all 4 of them).
        Returns sums over this rank's samples of every (unweighted) term, and the gradient norms, as 0-dim tensors.
        """
        sums: dict[str, Tensor] = {}
        with self._distributed.clock.phase("generator"):
            pairs = self._generator_phase(batch, masks, rates.generator, sums)
        if self._use_discriminator:
            with self._distributed.clock.phase("discriminator"):
                self._discriminator_phase(pairs, rates.discriminator, sums)
        return sums

    def update(self, batch: SliceBatch, number: int, rate: float) -> dict[str, Tensor]:
        rates = Rates(rate, rate * self._config.optimizer.discriminator_ratio)
        return self(self._loader(batch), self._masks(batch, number), rates)

    def trace(self, batch: SliceBatch, number: int) -> list[list[object]]:
        masks = self._masks(batch, number)
        return [
            [[int(m.target[i]), m.available[i].tolist(), int(m.cycle_target[i])] for m in masks]
            for i in range(len(batch))
        ]

    def _masks(self, batch: SliceBatch, number: int) -> list[BatchMasks]:
        """Targets and availability of this rank's rows, for each variant that enters the loss."""
        order, size = self._config.order, self._config.training.global_batch_size
        return [
            targets_and_masks(
                order.seed, batch.index, number + v, size, order.availability, batch.planes.shape[1]
            )[batch.rows]
            for v in range(self.variants)
        ]

    def _scale(self) -> float:
        """Gradients are averaged over ranks, but must be summed and divided by the global batch."""
        return self._distributed.world / self._config.training.global_batch_size

    def _generator_phase(
        self, batch: DeviceBatch, masks: Sequence[BatchMasks], rate: float, sums: dict[str, Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns (real target, detached synthetic, target modality) of each micro-batch, for the discriminator."""
        config, pairs = self._config, []
        with self._discriminator.frozen() as discriminator:
            for start, stop in chunks(len(batch), config.training.micro_batch_size):
                part = batch.rows(start, stop)
                plan = plan_passes([m[start:stop] for m in masks], self._equal_rows).to(part.real_BMHW.device)
                with self._generator.accumulate(last=stop == len(batch)):
                    passes = self._generator.wrapped(part.real_BMHW, part.view_B, *plan)
                    terms = self._generator_terms(discriminator, part, plan, passes)
                    loss = weighted_sum(config.objective, terms).sum() * self._scale()
                    self._generator.backward(loss)
                add_sums(sums, terms)
                real = modality_slices(part.real_BMHW, plan.row_B, plan.target_B)
                pairs.append((real, passes[0].detach(), plan.target_B))
        sums["generator_norm"] = self._generator.clip_and_step(config.optimizer.clip_norm, rate)
        return pairs

    def _generator_terms(
        self, discriminator: torch.nn.Module, part: DeviceBatch, plan: PassTensors, passes: Passes
    ) -> dict[str, Tensor]:
        image_B1HW, bottleneck_BCHW, cycle_image_B1HW, cycle_bottleneck_BCHW = passes
        real_B1HW = modality_slices(part.real_BMHW, plan.row_B, plan.target_B)
        patch_B1hw, class_B4 = discriminator(image_B1HW) if self._use_discriminator else (None, None)
        labels_BHW = part.labels_BHW[plan.row_B]
        outputs = GeneratorOutputs(
            image_B1HW=image_B1HW,
            real_B1HW=real_B1HW,
            target_B=plan.target_B,
            bottleneck_BCHW=bottleneck_BCHW,
            range_B=self.normaliser.range_M[plan.target_B],
            tumour_B1HW=(labels_BHW > 0)[:, None],
            cycle_image_B1HW=cycle_image_B1HW,
            cycle_real_B1HW=modality_slices(part.real_BMHW, plan.row_B, plan.cycle_target_B),
            cycle_bottleneck_BCHW=cycle_bottleneck_BCHW,
            patch_B1hw=patch_B1hw,
            class_BM=class_B4,
            segmented_BCHW=self._segmented(part, plan, image_B1HW),
            labels_BHW=labels_BHW,
            has_labels_B=part.has_labels_B[plan.row_B],
        )
        return generator_terms(self._config.objective, outputs, self._config.tversky)

    def _segmented(self, part: DeviceBatch, plan: PassTensors, image_B1HW: Tensor) -> Tensor | None:
        """The segmenter's logits for the completed slices; gradients pass through it to the image."""
        if self._segmenter is None:
            return None
        rows_B = plan.row_B
        slices_BMHW = completed_slices(part.real_BMHW[rows_B], image_B1HW, plan.target_B)
        with self._distributed.autocast():
            return self._segmenter(slices_BMHW, part.view_B[rows_B], part.type_B[rows_B])

    def _discriminator_phase(
        self, pairs: Sequence[tuple[Tensor, Tensor, Tensor]], rate: float, sums: dict[str, Tensor]
    ) -> None:
        config = self._config
        for number, (real_B1HW, synthetic_B1HW, target_B) in enumerate(pairs):
            with self._discriminator.accumulate(last=number == len(pairs) - 1):
                patch, classes = self._discriminator.wrapped(torch.cat([real_B1HW, synthetic_B1HW]))
                real_patch, synthetic_patch = patch.chunk(2)
                real_class, synthetic_class = classes.chunk(2)
                terms = discriminator_terms(
                    real_patch, real_class, synthetic_patch, synthetic_class, target_B
                )
                loss = weighted_discriminator_sum(config.objective, terms).sum() * self._scale()
                self._discriminator.backward(loss)
            add_sums(sums, terms)
        sums["discriminator_norm"] = self._discriminator.clip_and_step(config.optimizer.clip_norm, rate)


def modality_slices(real_BMHW: Tensor, row_V: Tensor, modality_V: Tensor) -> Tensor:
    """(V, 1, H, W): for each variant the slice of its modality, from its row."""
    return real_BMHW[row_V, modality_V][:, None]


def add_sums(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add each per-sample term's sum to `sums`, detached."""
    for name, value_B in terms.items():
        total = value_B.detach().sum()
        sums[name] = sums[name] + total if name in sums else total
