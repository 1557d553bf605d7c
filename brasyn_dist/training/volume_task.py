"""Training of a network of volumes on patches (`task: volume`, a 3-D U-Net, and `task: refiner`).

Each patch of a batch has one target modality and one set of available ones, as the slices of a generator.
Loop, checkpoints, resume, stop and loggers are those of the other tasks.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.config import ObjectiveConfig, PatchRunConfig, TverskyConfig, to_dict
from brasyn_dist.data.loading.patches import PatchBatch, PatchOrder, PatchStream
from brasyn_dist.data.loading.sampler import BatchMasks, targets_and_masks
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.errors import ConfigError
from brasyn_dist.losses.objective import GeneratorOutputs, Objective
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.volume_network import VolumeNetwork, build_volume_network, volume_network_class
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.gan_step import add_sums, micro_batches
from brasyn_dist.training.network_setup import compile_in_place, state_of_one
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.task import Task
from brasyn_dist.training.training_data import TrainingData, augmentation_of
from brasyn_dist.training.validation import GeneratorValidator
from brasyn_dist.training.volume_data import DevicePatches, VolumeData, open_volumes


class VolumeStep:
    """Updates a network of volumes. See `Step`."""

    variants = 1
    headline = ("L1", "reconstruction")

    def __init__(
        self,
        config: PatchRunConfig,
        group: ProcessGroup,
        network: Trainable,
        normaliser: Normaliser,
        modality_set: ModalitySet = BRATS,
    ) -> None:
        self._config, self._group, self._network = config, group, network
        self._objective = Objective(ObjectiveConfig.of_volumes(config.objective), TverskyConfig())
        compile_in_place(config, group.device, self._objective)
        self.normaliser = normaliser
        self._modality_set = modality_set

    def update(self, batch: PatchBatch, number: int, rate: float) -> dict[str, Tensor]:
        """One update of the network; see `Step`."""
        loaded = DevicePatches.load(batch, self.normaliser, augmentation_of(self._config, batch))
        return self(loaded, self._masks(batch), rate)

    def __call__(self, batch: DevicePatches, masks: BatchMasks, rate: float) -> dict[str, Tensor]:
        """One update on this rank's part of a global batch."""
        training, sums = self._config.training, {}  # type: ignore[var-annotated]
        scale, device = self._group.world / training.global_batch_size, batch.real_BMXYZ.device
        target_B = torch.from_numpy(masks.target).to(device, non_blocking=True)
        available_BM = torch.from_numpy(masks.available).to(device, non_blocking=True)
        with self._group.clock.phase(self._config.task):
            for start, stop in micro_batches(len(batch), training.micro_batch_size):
                part, target = batch.rows(start, stop), target_B[start:stop]
                with self._network.accumulate(last=stop == len(batch)):
                    image = self._network.wrapped(
                        part.real_BMXYZ, available_BM[start:stop], target, part.stage1_of(target)
                    )
                    terms, loss_B = self._objective(self._outputs(part, target, image))
                    self._network.backward(loss_B.sum() * scale)
                add_sums(sums, terms)
            norm = self._network.clip_and_step(self._config.optimizer.clip_norm, rate)
            sums[f"{self._config.task}_norm"] = norm
        return sums

    def _outputs(self, part: DevicePatches, target_B: Tensor, image_B1XYZ: Tensor) -> GeneratorOutputs:
        labels, highest = part.labels_BXYZ[:, None], self._modality_set.highest_label
        own = torch.arange(len(part), device=target_B.device)
        return GeneratorOutputs(
            image_B1HW=image_B1XYZ,
            real_B1HW=part.real_BMXYZ[own, target_B][:, None],
            target_B=target_B,
            bottleneck_BCHW=None,
            range_B=self.normaliser.range_M[target_B],
            tumour_B1HW=(labels > 0) & (labels <= highest),
            healthy_B1HW=labels == 0,
            ssim_offset=self.normaliser.ssim_offset,
        )

    def trace(self, batch: PatchBatch, number: int) -> list[list[object]]:
        """Target and available modalities of each patch."""
        masks = self._masks(batch)
        return [[int(t), a.tolist()] for t, a in zip(masks.target, masks.available)]

    def _masks(self, batch: PatchBatch) -> BatchMasks:
        order, size = self._config.order, self._config.training.global_batch_size
        modalities = batch.volumes.shape[1]
        return targets_and_masks(order.seed, batch.index, 0, size, order.availability, modalities)[batch.rows]


class VolumeValidator(GeneratorValidator):
    """Scores a network of volumes on fixed patches of the held-out cases, for each target modality."""

    def __init__(
        self, config: PatchRunConfig, group: ProcessGroup, data: VolumeData, normaliser: Normaliser
    ) -> None:
        options, chunks = config.validation, data.validation
        self._panels, self._group, self._normaliser = options.panels, group, normaliser
        self._modality_set = data.modality_set
        # As the slices of other tasks: the same patches every time, also after a resume.
        order = PatchOrder(config.patches, config.order.seed, chunks, options.slices)
        start, stop = (options.slices * rank // group.world for rank in (group.rank, group.rank + 1))
        parts = [range(i, min(i + options.batch_size, stop)) for i in range(start, stop, options.batch_size)]
        self._batches = []
        for rows in parts:
            with PatchStream(chunks, order, slice(rows.start, rows.stop), 0, 1) as stream:
                self._batches.append((rows, next(stream)))

    def _load(self, batch: Any) -> Any:
        return DevicePatches.load(batch, self._normaliser)

    def _real_and_labels(self, loaded: Any) -> tuple[Tensor, Tensor]:
        return loaded.real_BMXYZ, loaded.labels_BXYZ

    def _synthesise(
        self, network: nn.Module, inputs_BMXYZ: Tensor, available_BM: Tensor, target_B: Tensor, loaded: Any
    ) -> Tensor:
        return network(inputs_BMXYZ, available_BM, target_B, loaded.stage1_of(target_B))

    def _view(self, batch: Any, row: int) -> str:
        return "axial"

    def _plane(self, x: Tensor) -> np.ndarray:
        """The slice in the middle."""
        return x[..., x.shape[-1] // 2].cpu().numpy()


@dataclass(frozen=True)
class VolumeTask(Task):
    """A network of volumes."""

    config: PatchRunConfig

    @property
    def kind(self) -> str:
        """Kind of the network."""
        return self.config.task

    def identity(self) -> dict[str, Any]:
        """What a resume must not change."""
        return {self.kind: to_dict(self.config.network), "patches": to_dict(self.config.patches)}

    def open_data(self, group: ProcessGroup) -> VolumeData:
        """See `Task.open_data`."""
        return open_volumes(self.config, group)

    def check(self, data: TrainingData) -> None:
        """See `Task.check`."""
        if volume_network_class(self.kind).needs_stage1 and not cast(VolumeData, data).training.stage1:
            raise ConfigError(
                f"task {self.kind}: {self.config.data.shards} has no stage-1 volumes; synthesise them with "
                "`brasyn cross-fit` and shard the cases with --chunks 32 --stage1 FOLDER"
            )

    def build_state(self, group: ProcessGroup, modality_set: ModalitySet = BRATS) -> TrainState:
        """Network with its optimiser, and the counters."""
        config = self.config
        network = build_volume_network(self.kind, config.network, config.seed, modality_set)
        return state_of_one(config, group, network)

    def build_step(self, group: ProcessGroup, state: TrainState, normaliser: Normaliser) -> VolumeStep:
        """See `Task.build_step`."""
        modality_set = cast(VolumeNetwork, state.main.module).modality_set
        return VolumeStep(self.config, group, state.main, normaliser, modality_set)

    def build_validator(
        self, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> VolumeValidator:
        """See `Task.build_validator`."""
        return VolumeValidator(self.config, group, cast(VolumeData, data), normaliser)

    def describe(self, state: TrainState, group: ProcessGroup) -> dict[str, str]:
        """Networks in words, for the log."""
        return {self.kind: f"{state.main.parameter_count:,} parameters"}
