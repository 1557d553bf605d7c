"""One optimiser update of a GAN, in two phases.

    generator phase       trains: generator (both passes in one call)   frozen: discriminator, segmenter
    discriminator phase   trains: discriminator on real and detached synthetic slices

A rank's slices can be cut into micro-batches. All terms are per sample and divided by the global batch size,
so the update does not depend on how the global batch is cut into ranks and micro-batches.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import Config
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.data.loading.sampler import BatchMasks, targets_and_masks
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.losses.objective import (
    GeneratorOutputs,
    Objective,
    Terms,
    discriminator_terms,
    weighted_discriminator_sum,
)
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.cycle_synthesis import CycleInputs, CycleOutputs, completed_slices
from brasyn_dist.models.segmenter import Guidance
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.cycle_inputs import cycle_inputs
from brasyn_dist.training.network_setup import compile_in_place, compile_mode
from brasyn_dist.training.training_data import BatchLoader, DeviceBatch


class DiscriminatorInputs(NamedTuple):
    """Slices of one micro-batch."""

    real_B1HW: Tensor
    synthetic_B1HW: Tensor
    """Without gradient."""
    target_B: Tensor
    """Their modality."""


class GanStep:
    """Updates generator and discriminator. See `Step`."""

    headline = ("L1", "reconstruction")

    def __init__(
        self,
        config: Config,
        group: ProcessGroup,
        generator: Trainable,
        discriminator: Trainable | None,
        normaliser: Normaliser,
        guidance: Guidance | None = None,
        modality_set: ModalitySet = BRATS,
    ) -> None:
        """`guidance` has the frozen segmenter, in evaluation mode, if a term of the objective needs it.

        `discriminator` is None if no term of the objective needs it.
        """
        self._config, self._group = config, group
        self._generator, self._discriminator, self._guidance = generator, discriminator, guidance
        self._objective = Objective(config.objective, config.tversky)
        compile_in_place(config, group.device, self._objective)
        self._loader = BatchLoader(config, normaliser)
        self.normaliser = normaliser
        self._highest_label = modality_set.highest_label
        self.variants = variants(config, modality_set)
        # Compilation needs few distinct shapes. ZeRO 3 needs rows of every modality, since it cannot use the
        # separate encoders. In other cases execution is faster without padded rows.
        self._equal_rows = compile_mode(config, group.device) != "off" or group.shards_weights
        # Gradients are averaged over ranks, but must be summed and divided by the global batch size.
        self._scale = group.world / config.training.global_batch_size

    def update(self, batch: SliceBatch, number: int, rate: float) -> dict[str, Tensor]:
        """One update of both networks; see `Step`."""
        return self(self._loader(batch), self._masks(batch, number), rate)

    def __call__(self, batch: DeviceBatch, masks: Sequence[BatchMasks], rate: float) -> dict[str, Tensor]:
        """One update on this rank's part of a global batch.

        Args:
            batch: This rank's slices.
            masks: This rank's rows; one entry for each target variant that enters the loss.
            rate: Learning rate of the generator.

        Returns:
            See `Step.update`; the terms are unweighted.
        """
        sums: dict[str, Tensor] = {}
        with self._group.clock.phase("generator"):
            for_discriminator = self._train_generator(batch, masks, rate, sums)
        if self._discriminator is not None:
            with self._group.clock.phase("discriminator"):
                self._train_discriminator(self._discriminator, for_discriminator, rate, sums)
        return sums

    def _train_generator(
        self, batch: DeviceBatch, masks: Sequence[BatchMasks], rate: float, sums: dict[str, Tensor]
    ) -> list[DiscriminatorInputs]:
        config, for_discriminator = self._config, []
        frozen: AbstractContextManager[nn.Module | None] = nullcontext()
        if self._discriminator is not None:
            frozen = self._discriminator.frozen()
        with frozen as discriminator:
            for start, stop in micro_batches(len(batch), config.training.micro_batch_size):
                part = batch.rows(start, stop)
                inputs = cycle_inputs([m[start:stop] for m in masks], self._equal_rows)
                inputs = inputs.to(part.real_BMHW.device)
                with self._generator.accumulate(last=stop == len(batch)):
                    synthesised = self._generator.wrapped(
                        part.real_BMHW, part.view_B, inputs, part.context_BNMHW
                    )
                    outputs = self._outputs(part, inputs, synthesised, discriminator)
                    terms, loss_B = self.objective(outputs)
                    self._generator.backward(loss_B.sum() * self._scale)
                add_sums(sums, terms)
                for_discriminator.append(
                    DiscriminatorInputs(outputs.real_B1HW, outputs.image_B1HW.detach(), inputs.target_B)
                )
        sums["generator_norm"] = self._generator.clip_and_step(config.optimizer.clip_norm, rate)
        return for_discriminator

    def objective(self, outputs: GeneratorOutputs) -> tuple[Terms, Tensor]:
        """Unweighted terms (B,) by name, and the generator's loss (B,). A subclass may add terms."""
        return self._objective(outputs)

    def _train_discriminator(
        self,
        discriminator: Trainable,
        for_discriminator: Sequence[DiscriminatorInputs],
        rate: float,
        sums: dict[str, Tensor],
    ) -> None:
        config = self._config
        for number, part in enumerate(for_discriminator):
            with discriminator.accumulate(last=number == len(for_discriminator) - 1):
                patch, classes = discriminator.wrapped(torch.cat([part.real_B1HW, part.synthetic_B1HW]))
                real_patch, synthetic_patch = patch.chunk(2)
                real_class, synthetic_class = classes.chunk(2)
                terms = discriminator_terms(
                    real_patch, real_class, synthetic_patch, synthetic_class, part.target_B
                )
                loss = weighted_discriminator_sum(config.objective, terms).sum() * self._scale
                discriminator.backward(loss)
            add_sums(sums, terms)
        rate *= config.optimizer.discriminator_ratio
        sums["discriminator_norm"] = discriminator.clip_and_step(config.optimizer.clip_norm, rate)

    def _outputs(
        self,
        part: DeviceBatch,
        inputs: CycleInputs,
        synthesised: CycleOutputs,
        discriminator: nn.Module | None,
    ) -> GeneratorOutputs:
        image_B1HW = synthesised.image_B1HW
        patch_B1hw, class_BM = (None, None) if discriminator is None else discriminator(image_B1HW)
        labels_BHW = part.labels_BHW[inputs.row_B]
        segmented_BCHW, features, real_features = self._guide(part, inputs, image_B1HW)
        return GeneratorOutputs(
            **synthesised._asdict(),
            real_B1HW=modality_slices(part.real_BMHW, inputs.row_B, inputs.target_B),
            target_B=inputs.target_B,
            range_B=self.normaliser.range_M[inputs.target_B],
            tumour_B1HW=((labels_BHW > 0) & (labels_BHW <= self._highest_label))[:, None],
            healthy_B1HW=(labels_BHW == 0)[:, None],
            ssim_offset=self.normaliser.ssim_offset,
            cycle_real_B1HW=modality_slices(part.real_BMHW, inputs.row_B, inputs.cycle_target_B),
            patch_B1hw=patch_B1hw,
            class_BM=class_BM,
            segmented_BCHW=segmented_BCHW,
            segmenter_features=features,
            real_segmenter_features=real_features,
            labels_BHW=labels_BHW,
            has_labels_B=part.has_labels_B[inputs.row_B],
        )

    def _guide(
        self, part: DeviceBatch, inputs: CycleInputs, image_B1HW: Tensor
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Logits and features of the segmenter for the completed slices. See `Guidance.forward`."""
        if self._guidance is None:
            return None, [], []
        rows_B = inputs.row_B
        real_BMHW = part.real_BMHW[rows_B]
        slices_BMHW = completed_slices(real_BMHW, image_B1HW, inputs.target_B)
        with self._group.autocast():
            return self._guidance(slices_BMHW, real_BMHW, part.view_B[rows_B], part.type_B[rows_B])

    def trace(self, batch: SliceBatch, number: int) -> list[list[object]]:
        """Target, available modalities and target of the cycle pass of each sample and mask."""
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


def variants(config: Config, modality_set: ModalitySet = BRATS) -> int:
    """Target variants of each slice in one update.

    1 with an update for each modality, else one for each modality.
    """
    return len(modality_set) if config.training.updates_per_batch == 1 else 1


def micro_batches(size: int, limit: int | None) -> list[tuple[int, int]]:
    """(start, stop) of micro-batches of at most `limit` slices."""
    step = limit or size
    return [(i, min(i + step, size)) for i in range(0, size, step)]


def modality_slices(real_BMHW: Tensor, row_V: Tensor, modality_V: Tensor) -> Tensor:
    """(V, 1, H, W): for each variant the slice of its modality, from its row."""
    return real_BMHW[row_V, modality_V][:, None]


def add_sums(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add each per-sample term's sum to `sums`, detached."""
    for name, value_B in terms.items():
        total = value_B.detach().sum()
        sums[name] = sums[name] + total if name in sums else total
