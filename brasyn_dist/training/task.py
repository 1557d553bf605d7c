"""What is trained: the part in which the training of a generator and that of a segmenter differ.

    build.py   data, checkpoint, loggers ----------+
    Task       networks, step, validator, export --+--> Trainer (trainer.py)

Implementations: GanTask (gan_task.py), SegmenterTask (segmenter_task.py), VolumeTask (volume_task.py).
"""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from brasyn_dist.config import RunConfig
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData
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


class Task(Protocol):
    """The networks of one kind of run and what is done with them."""

    def __init__(self, config: Any) -> None: ...

    @property
    def config(self) -> RunConfig:
        """Options of the run."""

    def missing(self) -> str | None:
        """Result of another run that this run needs and that does not exist yet."""

    def identity(self) -> dict[str, Any]:
        """Options that must be equal for a resume, in addition to data, order and batch geometry."""

    def sources(self) -> dict[str, Any]:
        """Weights of other runs that this run uses without training them, for environment.json."""

    def open_data(self, group: ProcessGroup) -> TrainingData:
        """Open the shard set and select the samples of the run."""

    def check(self, data: TrainingData) -> None:
        """Raise ConfigError or DataError if the data does not fit the networks."""

    def build_state(self, group: ProcessGroup, modality_set: ModalitySet) -> TrainState:
        """Networks and optimisers at step 0.

        Weights are a function of the seed, or come from `checkpoint.init_from`.
        """

    def build_step(self, group: ProcessGroup, state: TrainState, normaliser: Normaliser) -> Step:
        """What one optimiser step does."""

    def build_validator(
        self, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> SliceValidator:
        """Validation on held-out slices."""

    def export(self, network: nn.Module, folder: Path, data: TrainingData, step: int) -> None:
        """Write the weights that users load."""

    def describe(self, state: TrainState, group: ProcessGroup) -> dict[str, str]:
        """Lines about the networks for the table at the start of a run."""
