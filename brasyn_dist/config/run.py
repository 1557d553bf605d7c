"""Options of a whole training run, by task, and their loading: defaults <- YAML <- section.key=value.

A YAML file may start with `base: other.yaml` (relative to itself) and then contains only the differences.
`task:` names what is trained. Unknown options are errors. The merged result is saved in the run folder.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, overload

from pydantic import AfterValidator

from brasyn_dist.brats import image_shape
from brasyn_dist.config.models import (
    BEFORE_OPTIONS,
    SIZE_STEP,
    AnyGeneratorConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    RefinerConfig,
    SegmenterConfig,
    VolumeUNetConfig,
    check_image_size,
)
from brasyn_dist.config.objective import ObjectiveConfig, RegressionConfig, TverskyConfig
from brasyn_dist.config.runtime import RuntimeConfig
from brasyn_dist.config.schema import PathText, Seed, all_options, by_kind, dataclass, from_dict
from brasyn_dist.config.training import (
    AdamConfig,
    CheckpointConfig,
    LengthConfig,
    OptimizerConfig,
    TelemetryConfig,
    TrainingConfig,
    ValidationConfig,
)
from brasyn_dist.config.training_data import (
    AugmentationConfig,
    DataConfig,
    OrderConfig,
    PatchConfig,
    SampleOrderConfig,
)
from brasyn_dist.config.yaml_files import parse_value, read_yaml, set_by_path
from brasyn_dist.errors import ConfigError

LONGEST_NAME = 200
"""Bytes of the name of a run; most file systems allow 255."""
R = TypeVar("R", bound="RunConfig")


def relative_name(name: str) -> str:
    """`name` unless it leads to another folder than one below `runs_dir`. Raises ValueError."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name or not name.isprintable():
        raise ValueError("the name of a folder below runs_dir")
    if max(len(part.encode()) for part in path.parts) > LONGEST_NAME:
        raise ValueError(f"the name of a folder below runs_dir, of at most {LONGEST_NAME} bytes")
    return name


RunName = Annotated[str, AfterValidator(relative_name)]


@dataclass(frozen=True)
class RunConfig:
    """Options that all training runs have."""

    task: str = ""
    """What is trained."""
    name: RunName = "run"
    """Name of the run; its folder is `runs_dir`/`name`."""
    runs_dir: PathText = "runs"
    """Folder of all runs."""
    seed: Seed = 0
    """Seed of the initial weights."""
    data: DataConfig = field(default_factory=DataConfig)
    order: SampleOrderConfig = field(default_factory=SampleOrderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    training: LengthConfig = field(default_factory=LengthConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def _check_encoder_execution(self) -> None:
        if self.runtime.encoder_execution is not None:
            raise ConfigError("runtime.encoder_execution is an option of task generator; remove it")

    @classmethod
    def before_options(cls) -> Self:
        """Defaults as they were before an option existed: fill what an old checkpoint does not state."""
        return from_dict(cls, {"generator": BEFORE_OPTIONS} if cls is Config else {})

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.runs_dir) / self.name

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the networks' input slices in pixels."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Neighbouring slices on each side that the main network sees."""
        return 0


@dataclass(frozen=True)
class Config(RunConfig):
    """A training run of a generator."""

    task: Literal["generator"] = "generator"
    """What is trained."""
    order: OrderConfig = field(default_factory=OrderConfig)
    generator: Annotated[AnyGeneratorConfig, by_kind] = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tversky: TverskyConfig = field(default_factory=TverskyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        self._check_generator()
        sizes = [image_shape(network.image_size) for network in (self.generator, self.discriminator)]
        if self.objective.uses_discriminator and sizes[0] != sizes[1]:
            raise ConfigError(
                f"generator.image_size {self.generator.image_size} and discriminator.image_size "
                f"{self.discriminator.image_size} must be equal"
            )
        if self.runtime.static_graph and self.training.micro_batch_size is not None:
            raise ConfigError(
                "runtime.static_graph does not go with training.micro_batch_size: not every micro-batch "
                "exchanges gradients"
            )

    def _check_generator(self) -> None:
        """Options that do not go with the generator."""
        if (self.objective.auxiliary_segmentation > 0) != self.generator.segmentation_head:
            raise ConfigError(
                "objective.auxiliary_segmentation and generator.segmentation_head need each other: set both, "
                "or neither"
            )
        crop, generator = self.augmentation.crop, self.generator
        if isinstance(generator, GeneratorConfig):
            if crop is not None:
                raise ConfigError(
                    "augmentation.crop: generator.kind=hfgan has a position embedding for whole slices; set "
                    "augmentation.crop=null or generator.kind=unet"
                )
            return
        if self.runtime.encoder_execution is not None:
            raise ConfigError("runtime.encoder_execution is an option of generator.kind=hfgan; remove it")
        if generator.context and self.objective.uses_cycle:
            raise ConfigError(
                "generator.context: neighbouring slices have no cycle pass; set objective.cycle=0 and "
                "objective.feature=0"
            )
        if crop is None:
            return
        check_image_size("augmentation.crop", crop, SIZE_STEP)
        whole = image_shape(generator.image_size)
        if crop[0] > whole[0] or crop[1] > whole[1]:
            raise ConfigError(
                f"augmentation.crop {list(crop)} is larger than generator.image_size {list(whole)}"
            )
        if self.objective.uses_discriminator:
            raise ConfigError(
                "augmentation.crop: the discriminator needs whole slices; set augmentation.crop=null, or "
                "objective.adversarial=0 and objective.classification=0"
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the networks' input slices in pixels."""
        return image_shape(self.generator.image_size)

    @property
    def context(self) -> int:
        """Neighbouring slices on each side that the generator sees."""
        return getattr(self.generator, "context", 0)


@dataclass(frozen=True)
class SegmenterRunConfig(RunConfig):
    """A training run of a segmenter."""

    task: Literal["segmenter"] = "segmenter"
    """What is trained."""
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    tversky: TverskyConfig = field(default_factory=TverskyConfig)

    def __post_init__(self) -> None:
        self._check_encoder_execution()

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the network's input slices in pixels."""
        return image_shape(self.segmenter.image_size)


@dataclass(frozen=True)
class PatchRunConfig(RunConfig):
    """Options that training runs of networks of volumes have; see its subclasses."""

    order: OrderConfig = field(default_factory=OrderConfig)
    patches: PatchConfig = field(default_factory=PatchConfig)
    objective: RegressionConfig = field(default_factory=RegressionConfig)

    def __post_init__(self) -> None:
        if self.augmentation.crop is not None:
            raise ConfigError(f"augmentation.crop: task {self.task} has patches; set patches.size instead")
        if self.data.normalisation == "slice":
            raise ConfigError(
                f"data.normalisation=slice: task {self.task} has no slices; choose case or zscore"
            )
        if self.data.min_tumour_fraction:
            raise ConfigError(
                f"data.min_tumour_fraction: task {self.task} has no slices; set patches.tumour_share instead"
            )
        if min(self.patches.size) < 6:
            raise ConfigError(f"patches.size {list(self.patches.size)}: each side must be at least 6")
        self._check_encoder_execution()

    @property
    def network(self) -> VolumeUNetConfig | RefinerConfig:
        """Options of the network, whose section is called as the task."""
        network: VolumeUNetConfig | RefinerConfig = getattr(self, self.task)
        return network


@dataclass(frozen=True)
class VolumeRunConfig(PatchRunConfig):
    """A training run of a 3-D U-Net."""

    task: Literal["volume"] = "volume"
    """What is trained."""
    volume: VolumeUNetConfig = field(default_factory=VolumeUNetConfig)


@dataclass(frozen=True)
class RefinerRunConfig(PatchRunConfig):
    """A training run of a refiner of synthesised volumes."""

    task: Literal["refiner"] = "refiner"
    """What is trained."""
    refiner: RefinerConfig = field(default_factory=RefinerConfig)


TASKS: dict[str, type[RunConfig]] = {
    "generator": Config,
    "segmenter": SegmenterRunConfig,
    "volume": VolumeRunConfig,
    "refiner": RefinerRunConfig,
}
"""Dataclass of a run by its `task`."""


REMOVED: dict[tuple[str, str], object] = {
    ("runtime", "measure_rank_shares"): False,
    ("augmentation", "gamma"): 0.0,
}
"""Options that do not exist any more, and the value without effect, which saved configurations state."""


def task_of(values: dict[str, Any]) -> str:
    """Task of a file's mapping; files of old segmenter runs have a section `segmenter` and no `task`."""
    old_segmenter = "segmenter" in values and "generator" not in values
    return str(values.get("task", "segmenter" if old_segmenter else "generator"))


@overload
def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config: ...
@overload
def load_config(path: str | Path | None, overrides: Sequence[str], kind: type[R]) -> R: ...
def load_config(path: str | Path | None, overrides: Sequence[str] = (), kind: type[Any] = Config) -> Any:
    """Configuration of a run: defaults, updated by the YAML file (and its bases), updated by overrides.

    Args:
        path: YAML file, or None for the defaults.
        overrides: `section.key=value`; values are YAML.
        kind: Expected dataclass. `RunConfig`: the one that `task` names.

    Raises:
        ConfigError: An option is unknown, has a value that is not allowed, or belongs to another task.
    """
    where = str(path) if path else "command line"
    values = read_yaml(Path(path)) if path is not None else {}
    for (section, name), unused in REMOVED.items():
        if isinstance(values.get(section), dict) and values[section].get(name) == unused:
            del values[section][name]
    task = next((name for name, cls in TASKS.items() if cls is kind), task_of(values))
    values.setdefault("task", task)
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not all(key.strip().split(".")):
            raise ConfigError(
                f"{item!r}: overrides are written section.key=value, and a file is given by --config"
            )
        if not text.strip():
            raise ConfigError(f"{item!r}: no value; an empty text is '', and the default of null is null")
        set_by_path(values, key.strip(), parse_value(text))
    if values["task"] not in TASKS:
        raise ConfigError(f"{where}: task={values['task']!r}: expected {' or '.join(TASKS)}")
    chosen = TASKS[values["task"]]
    if not issubclass(chosen, kind):
        raise ConfigError(f"{where}: task={values['task']}: expected {task}, the task of this command")
    try:
        return from_dict(chosen, values, where)
    except ConfigError as error:
        raise ConfigError(f"{error}{_owner_hint(str(error), values['task'])}") from None


def _owner_hint(message: str, task: str) -> str:
    """Names the task that an unknown option belongs to."""
    _, found, rest = message.partition("unknown option ")
    option = rest.partition(";")[0]
    for name, cls in TASKS.items():
        if found and name != task and any(f"{key}.".startswith(f"{option}.") for key, _ in all_options(cls)):
            return f". {option} is an option of task {name}"
    return ""
