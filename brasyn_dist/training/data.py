"""The data of a run as the trainer sees it: global batches by number, and everything random about them."""

from dataclasses import dataclass

from brasyn_dist.config import Config
from brasyn_dist.data.index import Selection, ShardIndex
from brasyn_dist.data.plan import BatchMasks, SampleOrder, rank_rows, targets_and_masks
from brasyn_dist.data.statistics import Statistics
from brasyn_dist.data.stream import SliceStream
from brasyn_dist.distributed import Distributed
from brasyn_dist.errors import DataError


@dataclass(frozen=True)
class TrainingData:
    """This rank's view of the training slices, and the held-out ones."""

    config: Config
    index: ShardIndex
    training: Selection
    validation: Selection | None
    """Held-out slices; None if the set has none of these views and cohorts."""
    statistics: Statistics
    order: SampleOrder
    rows: slice
    """This rank's rows of every global batch."""
    pin_memory: bool

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
            image_size=self.config.generator.image_size,
        )

    def masks(self, batch: int, update: int, rows: slice) -> BatchMasks:
        """Targets and availability of `rows` of global batch `batch` in its update (or variant) `update`."""
        order = self.config.order
        masks = targets_and_masks(
            order.seed, batch, update, self.config.training.global_batch_size, order.availability
        )
        return masks[rows]

    def rank_keys(self, batch: int) -> list[str]:
        """Sample keys of this rank's part of a global batch."""
        return [self.training.key(int(i)) for i in self.order.batch(batch)[self.rows]]


def open_data(config: Config, distributed: Distributed) -> TrainingData:
    """Open the shard set (fetching its index where it is remote) and select the run's slices."""
    data = config.data
    index = ShardIndex.load(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib)
    training = index.select("train", views=data.views, cohorts=data.cohorts, quarantine=data.quarantine)
    order = SampleOrder(
        config.order.seed, training.shard, config.training.global_batch_size, config.order.block_shards
    )
    return TrainingData(
        config,
        index,
        training,
        held_out(index, config),
        Statistics.from_dict(index.header.statistics),
        order,
        rows=rank_rows(
            config.training.global_batch_size, distributed.rank, distributed.world, config.runtime.rank_shares
        ),
        pin_memory=distributed.device.type == "cuda",
    )


def held_out(index: ShardIndex, config: Config) -> Selection | None:
    """Validation slices of the run's views and cohorts, or of its views alone: held-out patients may be a cohort apart."""
    if not index.header.shard_counts.get("val"):
        return None
    for cohorts in (config.data.cohorts, ()):
        try:
            return index.select("val", views=config.data.views, cohorts=cohorts)
        except DataError:
            continue
    return None
