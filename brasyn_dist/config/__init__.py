"""All options as dataclasses; see docs/reference/configuration.md or `brasyn train --help` for the list.

schema.py         checks and descriptions (pydantic)
yaml_files.py     YAML files with `base:`, command-line values
training_data.py, models.py, objective.py, training.py, runtime.py: options of each component
run.py            options of a whole run by task, `load_config`
"""

from brasyn_dist.config.models import (
    BEFORE_OPTIONS,
    AnyGeneratorConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    Recompute,
    RefinerConfig,
    SegmenterConfig,
    UNetConfig,
    VolumeUNetConfig,
    check_image_size,
)
from brasyn_dist.config.objective import ObjectiveConfig, RegressionConfig, TverskyConfig
from brasyn_dist.config.run import (
    TASKS,
    Config,
    PatchRunConfig,
    RefinerRunConfig,
    RunConfig,
    SegmenterRunConfig,
    VolumeRunConfig,
    load_config,
    task_of,
)
from brasyn_dist.config.runtime import RuntimeConfig
from brasyn_dist.config.schema import all_options, dataclass, from_dict, to_dict, to_yaml
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
    NormalisationMode,
    OrderConfig,
    PatchConfig,
    SampleOrderConfig,
)
from brasyn_dist.config.yaml_files import merge, parse_value, read_yaml, set_by_path

__all__ = [
    "BEFORE_OPTIONS", "TASKS", "AdamConfig", "AnyGeneratorConfig", "AugmentationConfig", "CheckpointConfig",
    "Config", "DataConfig",
    "DiscriminatorConfig", "GeneratorConfig", "LengthConfig", "NormalisationMode",
    "ObjectiveConfig", "OptimizerConfig", "OrderConfig", "PatchConfig", "PatchRunConfig", "Recompute",
    "RefinerConfig", "RefinerRunConfig", "RegressionConfig", "RunConfig", "RuntimeConfig",
    "SampleOrderConfig", "SegmenterConfig", "SegmenterRunConfig", "TelemetryConfig",
    "TrainingConfig", "TverskyConfig", "UNetConfig", "ValidationConfig", "VolumeRunConfig",
    "VolumeUNetConfig", "all_options",
    "check_image_size",
    "dataclass", "from_dict", "load_config", "merge", "parse_value", "read_yaml", "set_by_path",
    "task_of", "to_dict", "to_yaml",
]  # fmt: skip
