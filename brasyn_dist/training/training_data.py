"""The data of a run: which slices are trained on and held out, in which order, and batches on the device.

shard set --open_data--> TrainingData --stream--> SliceBatch (host) --BatchLoader--> DeviceBatch
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.common.files import write_json
from brasyn_dist.config import DataConfig, RunConfig
from brasyn_dist.data.format.contents import table_rows
from brasyn_dist.data.format.index import Selection, ShardIndex
from brasyn_dist.data.loading.augmentation import (
    Augmentation,
    crop_shifts,
    mirrored,
    sample_augmentation,
)
from brasyn_dist.data.loading.loader import SliceBatch, SliceStream
from brasyn_dist.data.loading.patches import PatchBatch
from brasyn_dist.data.loading.sampler import SampleOrder, rank_rows
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import Statistics

B = TypeVar("B")
DATA_FILE = "data.json"
"""File in the run folder that describes the training data, for the report."""


@dataclass(frozen=True)
class TrainingData:
    """The slices of a run and this rank's part of them."""

    unit: ClassVar[str] = "slices"
    """What a sample is, for messages."""

    config: RunConfig
    index: ShardIndex
    training: Selection
    validation: Selection | None
    """Held-out slices; None if the set has none of these views and cohorts."""
    preprocessing: Preprocessing
    order: SampleOrder
    rows: slice
    """This rank's rows of every global batch."""
    pin_memory: bool

    @property
    def modality_set(self) -> ModalitySet:
        """Modalities and labels of the shard set."""
        return self.preprocessing.modality_set

    @property
    def samples(self) -> int:
        """Number of training slices."""
        return len(self.training)

    def stream(self, start: int, stop: int) -> SliceStream:
        """This rank's part of global batches start .. stop - 1."""
        config, data, crop = self.config, self.config.data, self.config.augmentation.crop

        def shifts(k: int) -> np.ndarray:
            assert crop is not None
            size = config.training.global_batch_size
            return crop_shifts(crop, config.image_shape, config.order.seed, k, size)

        return SliceStream(
            self.training,
            self.order,
            self.rows,
            start=start,
            stop=stop,
            threads=data.threads,
            prefetch=data.prefetch,
            pin_memory=self.pin_memory,
            image_size=crop or config.image_shape,
            shifts=shifts if crop else None,
            context=config.context,
        )

    def rank_keys(self, batch: int) -> list[str]:
        """Sample keys of this rank's part of a global batch."""
        return [self.training.key(int(i)) for i in self.order.batch(batch)[self.rows]]

    def describe(self) -> str:
        """The data in words, for the log."""
        held_out = len(self.validation or ())
        return (
            f"{self.samples} slices for training, {held_out} held out ({', '.join(self.config.data.views)})"
        )

    def record(self) -> None:
        """Write data.json into the run folder."""
        head, *rows = table_rows(self.index)
        values = {
            "fingerprint": self.training.fingerprint,
            "modality_set": self.modality_set.to_dict(),
            "statistics": self.index.header.statistics,
            "slices" if self.unit == "slices" else "cases": {
                "training": self.samples,
                "held_out": len(self.validation or ()),
            },
            "shard_set": {"head": list(head), "rows": [list(row) for row in rows]},
        }
        write_json(self.config.run_dir / DATA_FILE, values)


def open_data(config: RunConfig, group: ProcessGroup) -> TrainingData:
    """Open the shard set and select the slices of the run. The index of a remote set is fetched.

    Raises:
        DataError: The set has no such slices, or lacks the medians that normalisation `case` needs.
    """
    data, size = config.data, config.training.global_batch_size
    index = open_shard_set(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib)
    training = choose_training(index, data)
    modality_set = index.header.modality_set
    return TrainingData(
        config,
        index,
        training,
        held_out(index, config),
        Preprocessing(
            Statistics.from_dict(index.header.statistics, data.shards, modality_set),
            data.views,
            data.normalisation,
            fit_intensity_scale(training, config),
            modality_set,
        ),
        SampleOrder(config.order.seed, training.shard, size, config.order.block_shards),
        rank_rows(size, group.rank, group.world, config.runtime.rank_shares),
        pin_memory=group.device.type == "cuda",
    )


def fit_intensity_scale(training: Selection, config: RunConfig) -> IntensityScaleModel | None:
    """Distribution of the training cases' intensity scales for normalisation `case`; None for other modes."""
    if config.data.normalisation != "case":
        return None
    if training.medians is None:
        raise DataError(
            f"{config.data.shards}: these shards do not contain the medians that data.normalisation=case "
            f"needs; "
            "shard the cases again with this version, into another folder"
        )
    return IntensityScaleModel.fit(training.medians[np.unique(training.column("case"))])


def choose_training(index: ShardIndex, data: DataConfig) -> Selection:
    """The slices that a run trains on."""
    return index.select("train", data.views, data.cohorts, data.quarantine, data.min_tumour_fraction)


def held_out(index: ShardIndex, config: RunConfig) -> Selection | None:
    """Validation slices of the run's views and cohorts; of all cohorts if none is held out in those."""
    if not index.header.shard_counts.get("val"):
        return None
    for cohorts in (config.data.cohorts, ()):
        try:
            return index.select(
                "val", config.data.views, cohorts, min_tumour_fraction=config.data.min_tumour_fraction
            )
        except DataError:
            continue
    return None


@dataclass(frozen=True)
class DeviceBatch:
    """This rank's slices of one global batch, normalised, on the device."""

    real_BMHW: Tensor
    """Slices of all modalities; none is masked."""
    context_BNMHW: Tensor | None
    """Their N neighbouring slices, for a generator with a context."""
    labels_BHW: Tensor
    """Canonical labels, uint8; 0 for slices without labels."""
    has_labels_B: Tensor
    view_B: Tensor
    type_B: Tensor
    """Tumour type."""

    @classmethod
    def load(
        cls, batch: SliceBatch, normaliser: Normaliser, augmentation: Augmentation | None = None
    ) -> "DeviceBatch":
        """Copy the integers to the device and normalise them there: half the bytes of float32 slices."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(normaliser.device, non_blocking=True)

        planes, labels, view = move(batch.planes), move(batch.labels), move(batch.view)
        medians, context = move(batch.medians), move(batch.context)
        factor = None if augmentation is None else move(torch.from_numpy(augmentation.factor_BM))
        real = normaliser(planes, factor, medians)
        context = normaliser.neighbours(context, factor, medians)
        if augmentation is not None:
            mirror = move(torch.from_numpy(augmentation.mirror_B))
            real, context, labels = (mirrored(x, mirror, view) for x in (real, context, labels))
        context_BNMHW = context if context.shape[1] else None
        return cls(real, context_BNMHW, labels, move(batch.has_labels), view, move(batch.tumour_type))

    def rows(self, start: int, stop: int) -> "DeviceBatch":
        """Samples from `start` to before `stop`."""
        return rows_of(self, start, stop)

    def __len__(self) -> int:
        return len(self.real_BMHW)


def rows_of(batch: B, start: int, stop: int) -> B:
    """Samples from `start` to before `stop` of a dataclass of tensors, of which some may be None."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(cast(Any, batch))}
    return type(batch)(**{k: None if v is None else v[start:stop] for k, v in values.items()})


def augmentation_of(config: RunConfig, batch: SliceBatch | PatchBatch) -> Augmentation | None:
    """Augmentation of this rank's part of a global batch."""
    size, modalities = config.training.global_batch_size, batch.medians.shape[1]
    sampled = sample_augmentation(config.augmentation, config.order.seed, batch.index, size, modalities)
    return None if sampled is None else sampled[batch.rows]


class BatchLoader:
    """Batches on the device, augmented.

    The newest batch is kept, since it can be used for several updates.
    """

    def __init__(self, config: RunConfig, normaliser: Normaliser) -> None:
        self._config, self.normaliser = config, normaliser
        self._newest: tuple[SliceBatch, DeviceBatch] | None = None

    def __call__(self, batch: SliceBatch) -> DeviceBatch:
        """This rank's slices of a batch, on the device."""
        if self._newest is None or self._newest[0] is not batch:
            augmentation = augmentation_of(self._config, batch)
            self._newest = (batch, DeviceBatch.load(batch, self.normaliser, augmentation))
        return self._newest[1]
