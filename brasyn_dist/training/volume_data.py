"""The data of a run on volumes: which cases are trained on and held out, and patches on the device.

shard set with chunks --open_volumes--> VolumeData --stream--> PatchBatch (host) --> DevicePatches
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from brasyn_dist.config import DataConfig, PatchRunConfig
from brasyn_dist.data.format.chunks import ChunkSelection, select_chunks
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading.augmentation import Augmentation
from brasyn_dist.data.loading.patches import PatchBatch, PatchOrder, PatchStream
from brasyn_dist.data.loading.sampler import rank_rows
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import Statistics
from brasyn_dist.training.training_data import TrainingData, rows_of


@dataclass(frozen=True)
class VolumeData(TrainingData):
    """The cases of a run and this rank's part of the patches."""

    unit: ClassVar[str] = "patches"
    training: Any
    """ChunkSelection."""
    validation: Any
    """ChunkSelection of the held-out cases; None if there are none."""
    order: Any
    """PatchOrder."""

    def stream(self, start: int, stop: int) -> Any:
        """This rank's part of global batches start .. stop - 1: a PatchStream."""
        options = self.config.data
        return PatchStream(
            self.training,
            self.order,
            self.rows,
            start,
            stop,
            threads=options.threads,
            prefetch=options.prefetch,
            pin_memory=self.pin_memory,
        )

    def rank_keys(self, batch: int) -> list[str]:
        """Names of the cases of this rank's part of a global batch."""
        return [self.training.case(int(i)).name for i in self.order.draw(batch)[0][self.rows]]

    def describe(self) -> str:
        """The data in words, for the log."""
        size = " x ".join(map(str, self.order.config.size))
        held_out = len(self.validation or ())
        return f"{self.samples} cases for training, {held_out} held out; patches of {size} voxels"


def open_volumes(config: PatchRunConfig, group: ProcessGroup) -> VolumeData:
    """Open the shard set and select the cases of the run.

    Raises:
        DataError: The set has no chunks or no such case.
    """
    data, size = config.data, config.training.global_batch_size
    index = open_shard_set(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib)
    training = choose_cases(index, data)
    modality_set = index.header.modality_set
    scale = IntensityScaleModel.fit(training.medians) if data.normalisation == "case" else None
    return VolumeData(
        config,
        index,
        training,
        held_out_cases(config, index),
        Preprocessing(
            Statistics.from_dict(index.header.statistics, data.shards, modality_set),
            (),
            data.normalisation,
            scale,
            modality_set,
            config.patches.size,
        ),
        PatchOrder(config.patches, config.order.seed, training, size, config.order.block_shards),
        rank_rows(size, group.rank, group.world, config.runtime.rank_shares),
        pin_memory=group.device.type == "cuda",
    )


def choose_cases(index: ShardIndex, data: DataConfig) -> ChunkSelection:
    """The cases that a run trains on."""
    return select_chunks(index, "train", data.cohorts, data.quarantine)


def held_out_cases(config: PatchRunConfig, index: ShardIndex) -> ChunkSelection | None:
    """Validation cases of the run's cohorts; of all cohorts if none is held out in those."""
    for cohorts in (config.data.cohorts, ()):
        try:
            return select_chunks(index, "val", cohorts)
        except DataError:
            continue
    return None


@dataclass(frozen=True)
class DevicePatches:
    """This rank's patches of one global batch, normalised, on the device."""

    real_BMXYZ: Tensor
    """Patches of all modalities; none is masked."""
    stage1_BMXYZ: Tensor | None
    """The same as a first stage synthesised them; None: the set has none."""
    labels_BXYZ: Tensor
    """Canonical labels, uint8; 0 for cases without labels."""
    has_labels_B: Tensor

    @classmethod
    def load(
        cls, batch: PatchBatch, normaliser: Normaliser, augmentation: Augmentation | None = None
    ) -> "DevicePatches":
        """Copy the integers to the device and normalise them there."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(normaliser.device, non_blocking=True)

        factor = None if augmentation is None else move(torch.from_numpy(augmentation.factor_BM))
        real = normaliser.volumes(move(batch.volumes), factor, move(batch.medians))
        labels, stage1 = move(batch.labels), None
        if batch.stage1 is not None:
            stage1 = normaliser.volumes(move(batch.stage1), factor, move(batch.stage1_medians))
        if augmentation is not None:
            mirror_B = move(torch.from_numpy(augmentation.mirror_B))
            real, labels = left_right(real, mirror_B, 2), left_right(labels, mirror_B, 1)
            stage1 = None if stage1 is None else left_right(stage1, mirror_B, 2)
        return cls(real, stage1, labels, move(batch.has_labels))

    def stage1_of(self, target_B: Tensor) -> Tensor | None:
        """(B, 1, X, Y, Z): the stage-1 patch of each sample's target."""
        if self.stage1_BMXYZ is None:
            return None
        return self.stage1_BMXYZ[torch.arange(len(self), device=target_B.device), target_B][:, None]

    def rows(self, start: int, stop: int) -> "DevicePatches":
        """Samples from `start` to before `stop`."""
        return rows_of(self, start, stop)

    def __len__(self) -> int:
        return len(self.real_BMXYZ)


def left_right(x: Tensor, mirror_B: Tensor, axis: int) -> Tensor:
    """`x` with left and right exchanged where `mirror_B` is True; `axis` is that of x."""
    return torch.where(mirror_B.view(-1, *[1] * (x.ndim - 1)), x.flip(axis), x)
