"""What is trained: the part in which the trainings of generators, segmenters and networks of volumes differ.

    start_run.py   checkpoint, loggers -----------------------+
    Task           data, networks, step, validator, export ---+--> Trainer (trainer.py)

Subclasses: GanTask (gan_task.py), SegmenterTask (segmenter_task.py), VolumeTask (volume_task.py).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.pretrained import PretrainedNetwork
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData, open_data
from brasyn_dist.training.validation import SliceValidator


class Step(Protocol):
    """One optimiser update."""

    variants: int
    """Synthetic slices for each real slice of an update. Metrics are means over slices and variants."""
    headline: tuple[str, str]
    """(caption, loss term) of the number on the console."""

    def update(self, batch: Any, number: int, rate: float) -> dict[str, Tensor]:
        """Update `number` (from 0) of those that a batch is used for.

        Args:
            batch: This rank's part of a global batch: SliceBatch, or PatchBatch of tasks on volumes.
            number: Number of the update within the batch.
            rate: Learning rate of the main network.

        Returns:
            Sums over this rank's samples, and gradient norms (names end in `_norm`), as 0-dim tensors on the
            device. The call does not wait for the device.
        """

    def trace(self, batch: Any, number: int) -> list[list[object]]:
        """Targets and masks of each sample in that update, as JSON, to compare runs."""


@dataclass(frozen=True)
class Task(ABC):
    """The networks of one kind of run and what is done with them."""

    config: Any
    """Options of the run, a RunConfig."""

    def missing(self) -> str | None:
        """Result of another run that this run needs and that does not exist yet."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Options that must be equal for a resume, in addition to data, order and batch geometry."""

    def sources(self) -> dict[str, Any]:
        """Weights of other runs that this run uses without training them, for environment.json."""
        return {}

    def open_data(self, group: ProcessGroup) -> TrainingData:
        """Open the shard set and select the samples of the run."""
        return open_data(self.config, group)

    def check(self, data: TrainingData) -> None:  # noqa: B027
        """Raise ConfigError or DataError if the data does not fit the networks."""

    @abstractmethod
    def build_state(self, group: ProcessGroup, modality_set: ModalitySet = BRATS) -> TrainState:
        """Networks and optimisers at step 0.

        Weights are a function of the seed, or come from `checkpoint.init_from`.
        """

    @abstractmethod
    def build_step(self, group: ProcessGroup, state: TrainState, normaliser: Normaliser) -> Step:
        """What one optimiser step does."""

    @abstractmethod
    def build_validator(
        self, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> SliceValidator:
        """Validation on held-out slices."""

    def export(self, network: nn.Module, folder: Path, data: TrainingData, step: int) -> None:
        """Write the weights that users load."""
        cast(PretrainedNetwork, network).save_pretrained(folder, data.preprocessing, step)

    @abstractmethod
    def describe(self, state: TrainState, group: ProcessGroup) -> dict[str, str]:
        """Lines about the networks for the table at the start of a run."""
