"""The data of a run as the trainer sees it: global batches by number, and everything random about them."""

from dataclasses import dataclass

import numpy as np

from brasyn_dist.brats import TUMOUR_TYPES, UNKNOWN_TYPE
from brasyn_dist.config import DataConfig, RunConfig
from brasyn_dist.data.format.index import Selection, ShardIndex
from brasyn_dist.data.loading.loader import SliceStream
from brasyn_dist.data.loading.sampler import SampleOrder, rank_rows
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import Statistics


@dataclass(frozen=True)
class TrainingData:
    """This rank's view of the training slices, and the held-out ones."""

    config: RunConfig
    index: ShardIndex
    training: Selection
    validation: Selection | None
    """Held-out slices; None if the set has none of these views and cohorts."""
    statistics: Statistics
    intensity_scale: IntensityScaleModel | None
    """Of the cases that are trained on, for normalisation `case`; None with another."""
    order: SampleOrder
    rows: slice
    """This rank's rows of every global batch."""
    pin_memory: bool

    @property
    def preprocessing(self) -> Preprocessing:
        data = self.config.data
        return Preprocessing(
            self.statistics, data.views, data.normalisation, self.intensity_scale, self.modality_set
        )

    @property
    def modality_set(self) -> ModalitySet:
        return self.index.header.modality_set

    @property
    def samples(self) -> int:
        return len(self.training)

    def stream(self, start: int, stop: int) -> SliceStream:
        """This rank's part of global batches start .. stop - 1."""
        data = self.config.data
        return SliceStream(
            self.training,
            self.order,
            self.rows,
            start=start,
            stop=stop,
            threads=data.threads,
            prefetch=data.prefetch,
            pin_memory=self.pin_memory,
            image_size=self.config.image_shape,
        )

    def rank_keys(self, batch: int) -> list[str]:
        """Sample keys of this rank's part of a global batch."""
        return [self.training.key(int(i)) for i in self.order.batch(batch)[self.rows]]


def open_data(config: RunConfig, distributed: Distributed) -> TrainingData:
    """Open the shard set (fetching its index where it is remote) and select the run's slices."""
    data = config.data
    index = ShardIndex.load(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib)
    training = choose_training(index, data)
    order = SampleOrder(
        config.order.seed, training.shard, config.training.global_batch_size, config.order.block_shards
    )
    return TrainingData(
        config,
        index,
        training,
        held_out(index, config),
        Statistics.from_dict(index.header.statistics, data.shards, index.header.modality_set),
        fit_intensity_scale(training, config),
        order,
        rows=rank_rows(
            config.training.global_batch_size, distributed.rank, distributed.world, config.runtime.rank_shares
        ),
        pin_memory=distributed.device.type == "cuda",
    )


def fit_intensity_scale(training: Selection, config: RunConfig) -> IntensityScaleModel | None:
    """Scales of the cases of these slices, where normalisation `case` needs them. Raises DataError if the set does not tell."""
    if config.data.normalisation != "case":
        return None
    if training.medians is None:
        raise DataError(
            f"{config.data.shards}: these shards do not tell the medians that data.normalisation=case needs; shard the cases "
            "anew with this version of tools/shard_dataset.py, to another --out"
        )
    return IntensityScaleModel.fit(training.medians[np.unique(training.column("case"))])


def choose_training(index: ShardIndex, data: DataConfig) -> Selection:
    """The slices that a run trains on."""
    return index.select("train", data.views, data.cohorts, data.quarantine, data.min_tumour_fraction)


def held_out(index: ShardIndex, config: RunConfig) -> Selection | None:
    """Validation slices of the run's views and cohorts, or of its views alone: held-out patients may be a cohort apart."""
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


def check_tumour_types(selection: Selection) -> None:
    """Raise DataError if a segmenter could not be told the tumour type of some of the slices."""
    unknown = np.unique(selection.column("case")[selection.tumour_type == UNKNOWN_TYPE])
    if len(unknown):
        case = selection.index.header.cases[unknown[0]]
        raise DataError(
            f"{len(unknown)} cases, such as {case.name} of cohort {case.cohort}, do not tell their tumour type "
            f"({' or '.join(TUMOUR_TYPES)}); shard them from a folder named after it (such as train_gli), or choose data.cohorts"
        )
