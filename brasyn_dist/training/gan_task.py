"""Training of a generator and its discriminator; with guidance terms also with a frozen segmenter."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from brasyn_dist.brats import BRATS, image_shape
from brasyn_dist.common.files import sha256_of
from brasyn_dist.config import Config, to_dict
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.errors import CheckpointError, ConfigError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.cycle_synthesis import CycleSynthesis
from brasyn_dist.models.discriminator import Discriminator, build_discriminator
from brasyn_dist.models.hub import is_hub_name
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.pretrained import load_state, load_tensors, load_weights, weights_file
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.models.segmenter import Guidance, Segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.checkpoint import newest_intact
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.network_setup import adam, compile_in_place, move_to_device
from brasyn_dist.training.run_dir import CHECKPOINTS
from brasyn_dist.training.state import TrainState, average_of
from brasyn_dist.training.task import Task
from brasyn_dist.training.training_data import TrainingData
from brasyn_dist.training.validation import GeneratorValidator

log = logging.getLogger(__name__)
DISCRIMINATOR = "discriminator"
"""Name of the network in a checkpoint."""


@dataclass(frozen=True)
class GanTask(Task):
    """A generator and its discriminator."""

    config: Config
    step_class: ClassVar[type[GanStep]] = GanStep

    def missing(self) -> str | None:
        """See `Task.missing`: the segmenter, if it is not trained yet."""
        objective = self.config.objective
        needed = objective.uses_segmenter and objective.segmenter is not None
        return objective.segmenter if needed and not Path(str(objective.segmenter)).exists() else None

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """The frozen segmenter of the objective, on the CPU."""
        path = self.config.objective.segmenter
        if not self.config.objective.uses_segmenter or path is None:
            return None
        if not Path(path).exists() and not is_hub_name(path):
            where = f"runs_dir={Path(path).parent} name={Path(path).name}"
            raise ConfigError(
                f"objective.segmenter={path}: no such folder; give the run folder of a segmenter, or train "
                f"it with `brasyn train --config segmenter {where} data.shards={self.config.data.shards}`"
            )
        return Segmenter.from_pretrained(path).requires_grad_(False)

    @property
    def guidance(self) -> Guidance | None:
        """What the objective needs of that segmenter."""
        return self.guidance_of(self.segmenter)

    def guidance_of(self, segmenter: Segmenter | None) -> Guidance | None:
        """What the objective needs of a segmenter."""
        if segmenter is None:
            return None
        objective = self.config.objective
        return Guidance(segmenter, objective.tversky > 0, objective.segmenter_features > 0)

    @cached_property
    def segmenter_sha256(self) -> str | None:
        """Hash of its weights. They are in no checkpoint, but must be the same after a resume."""
        path = self.config.objective.segmenter
        return None if self.segmenter is None else sha256_of(weights_file(Path(str(path)), Segmenter.kind))

    def identity(self) -> dict[str, Any]:
        """What a resume must not change."""
        return {
            "generator": to_dict(self.config.generator),
            "discriminator": to_dict(self.config.discriminator),
            "segmenter_sha256": self.segmenter_sha256,
        }

    def sources(self) -> dict[str, Any]:
        """Files that the run was started from."""
        if self.segmenter is None:
            return {}
        return {"segmenter": {"path": self.config.objective.segmenter, "sha256": self.segmenter_sha256}}

    def check(self, data: TrainingData) -> None:
        """See `Task.check`."""
        config = self.config
        check_updates(config, data.modality_set)
        if self.segmenter is None:
            return
        name, trained = f"objective.segmenter={config.objective.segmenter}", self.segmenter.preprocessing
        assert trained is not None
        if image_shape(self.segmenter.config.image_size) != config.image_shape:
            raise ConfigError(
                f"{name} was trained on slices of {self.segmenter.config.image_size} pixels, the generator "
                f"has "
                f"{config.generator.image_size}; train a segmenter of this size"
            )
        if trained.normalisation != config.data.normalisation:
            raise ConfigError(
                f"{name} was trained with data.normalisation={trained.normalisation}, this run has "
                f"{config.data.normalisation}; train a segmenter with the same"
            )
        if trained.statistics != data.preprocessing.statistics:
            raise ConfigError(
                f"{name} was trained with other statistics than those of {config.data.shards}, so its "
                f"inputs would be "
                "normalised differently; train it on the same shard set"
            )
        unknown = [view for view in config.data.views if view not in trained.views]
        if unknown:
            raise ConfigError(
                f"{name} was not trained on {', '.join(unknown)} slices; train one on these views"
            )

    def build_state(self, group: ProcessGroup, modality_set: ModalitySet = BRATS) -> TrainState:
        """Generator, discriminator (if the objective needs it) and their optimisers."""
        config, device = self.config, group.device
        options = generator_options(config, group.shards_weights)
        generator = build_generator(config.generator, config.seed, modality_set, **options)
        if config.checkpoint.init_from is not None:
            load_weights(generator, config.checkpoint.init_from)
        set_recompute(generator, config.runtime.recompute)
        move_to_device(config, device, generator)
        average = average_of(generator) if config.training.ema_decay > 0 else None
        passes = CycleSynthesis(generator, config.training.fast_passes, config.objective.uses_cycle)
        compile_in_place(config, device, passes)
        networks = {"generator": group.prepare(passes, adam(config, generator), generator)}
        if config.objective.uses_discriminator:
            discriminator = build_discriminator(config.discriminator, config.seed, modality_set)
            if config.checkpoint.init_from is not None:
                start_discriminator(discriminator, Path(config.checkpoint.init_from), group.is_main)
            move_to_device(config, device, discriminator)
            compile_in_place(config, device, discriminator)
            optimizer = adam(config, discriminator, config.optimizer.discriminator_ratio)
            networks["discriminator"] = group.prepare(discriminator, optimizer, discriminator)
        return TrainState(networks, average)

    def build_step(self, group: ProcessGroup, state: TrainState, normaliser: Normaliser) -> GanStep:
        """See `Task.build_step`."""
        guidance = self.guidance
        if guidance is not None:
            move_to_device(self.config, group.device, guidance)
            compile_in_place(self.config, group.device, guidance)
        modality_set = cast(Generator, state.generator.module).modality_set
        return self.step_class(
            self.config, group, state.generator, state.discriminator, normaliser, guidance, modality_set
        )

    def build_validator(
        self, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> GeneratorValidator:
        """See `Task.build_validator`."""
        return GeneratorValidator(self.config, group, data, normaliser)

    def describe(self, state: TrainState, group: ProcessGroup) -> dict[str, str]:
        """Networks in words, for the log."""
        lines = {name: f"{network.parameter_count:,} parameters" for name, network in state.networks.items()}
        options = generator_options(self.config, group.shards_weights)
        lines["generator"] += "".join(f", {name} {value}" for name, value in options.items())
        if self.segmenter is not None:
            lines["segmenter"] = f"frozen, {self.config.objective.segmenter}, {self.segmenter_sha256}"
        return lines


def check_updates(config: Config, modality_set: ModalitySet) -> None:
    """Raise ConfigError if the number of updates per batch does not fit the modalities of the shard set."""
    updates, count = config.training.updates_per_batch, len(modality_set)
    if updates not in (1, count):
        raise ConfigError(
            f"training.updates_per_batch={updates}: {config.data.shards} has {count} modalities; use {count} "
            "(one update for each target modality) or 1 (all targets in one update)"
        )


def start_discriminator(discriminator: Discriminator, path: Path, say: bool) -> None:
    """Load the discriminator's weights from a checkpoint or from the newest one of a run folder.

    An export has none: the discriminator then keeps its random weights.

    Raises:
        CheckpointError: The weights do not fit.
    """
    found = path if (path / f"{DISCRIMINATOR}.safetensors").is_file() else None
    if found is None and (newest := newest_intact(path / CHECKPOINTS)[0]) is not None:
        found = newest.folder
    if found is None:
        if say:
            log.warning("checkpoint.init_from=%s has no discriminator: it starts with random weights", path)
        return
    file = found / f"{DISCRIMINATOR}.safetensors"
    try:
        load_state(discriminator, load_tensors(file), file)
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint.init_from={path}: {error}; to start with its generator only, give an export folder"
        ) from None


def generator_options(config: Config, shards_weights: bool) -> dict[str, Any]:
    """Execution options of the generator, by its kind."""
    if config.generator.kind != "hfgan":
        return {}
    # Separate execution calls encoders with parts of their weights, which ZeRO 3 does not gather.
    default = "grouped" if shards_weights else "separate"
    return {"encoder_execution": config.runtime.encoder_execution or default}
