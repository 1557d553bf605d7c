"""What is trained: the one thing in which training a generator and training a segmenter differ.

    setup.py   data, checkpoint, telemetry --------+
    Task       networks, step, validator, export --+--> Trainer (loop.py)

Order, batches, checkpoints, resume, stop, telemetry know nothing of it. `gan.GanTask`, `segmentation.SegmenterTask`.
"""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from brasyn_dist.config import RunConfig, RuntimeConfig
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.gan_step import Step
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData
from brasyn_dist.training.validation import SliceValidator


class Task(Protocol):
    """Networks of one kind of run, and what is done with them."""

    @property
    def config(self) -> RunConfig: ...

    def with_runtime(self, runtime: RuntimeConfig) -> "Task":
        """The same with the options that are in force."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume, beside data, order and batch geometry."""

    def sources(self) -> dict[str, Any]:
        """Weights of other runs that this one uses without training them, for environment.json."""

    def check(self, data: TrainingData) -> None:
        """Raise ConfigError or DataError where the data does not suit the networks."""

    def build_state(self, distributed: Distributed) -> TrainState:
        """The networks with their optimisers, at step 0: weights are a function of the seed (or of `init_from`)."""

    def build_step(self, distributed: Distributed, state: TrainState, normaliser: Normaliser) -> Step: ...

    @property
    def validator(self) -> type[SliceValidator]: ...

    def export(self, network: nn.Module, folder: Path, data: TrainingData, step: int) -> None:
        """Write what users load."""

    def facts(self, state: TrainState, distributed: Distributed) -> dict[str, str]:
        """Lines about the networks for the table at the start of a run."""
