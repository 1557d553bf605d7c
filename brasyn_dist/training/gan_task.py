"""Training a generator: with its discriminator, and with a frozen segmenter where the objective has the Tversky term."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import nn

from brasyn_dist.brats import image_shape
from brasyn_dist.common.files import sha256_of
from brasyn_dist.common.typed_yaml import to_dict
from brasyn_dist.config import Config, RuntimeConfig
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import ConfigError
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.generator import Generator, build_generator, default_execution
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.passes import SynthesisPasses
from brasyn_dist.models.pretrained import load_weights, weights_file
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.build import adam
from brasyn_dist.training.compilation import compile_in_place, place
from brasyn_dist.training.ema import average_of
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.schedule import scaled_rate
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData, check_tumour_types
from brasyn_dist.training.validation import Validator


@dataclass(frozen=True)
class GanTask:
    """See training/task.py."""

    config: Config

    validator = Validator

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """The frozen segmenter of the objective, on the CPU."""
        path = self.config.objective.segmenter
        if not self.config.objective.tversky or path is None:
            return None
        return Segmenter.from_pretrained(path).requires_grad_(False)

    @cached_property
    def segmenter_sha256(self) -> str | None:
        """Hash of its weights: they are in no checkpoint, but a resumed run must have the same."""
        path = self.config.objective.segmenter
        return None if self.segmenter is None else sha256_of(weights_file(Path(str(path)), Segmenter.kind))

    def with_runtime(self, runtime: RuntimeConfig) -> "GanTask":
        return GanTask(replace(self.config, runtime=runtime))

    def identity(self) -> dict[str, Any]:
        return {
            "generator": to_dict(self.config.generator),
            "discriminator": to_dict(self.config.discriminator),
            "segmenter_sha256": self.segmenter_sha256,
        }

    def sources(self) -> dict[str, Any]:
        if self.segmenter is None:
            return {}
        return {"segmenter": {"path": self.config.objective.segmenter, "sha256": self.segmenter_sha256}}

    def check(self, data: TrainingData) -> None:
        if self.segmenter is None:
            return
        check_tumour_types(data.training)
        name, mine = f"objective.segmenter={self.config.objective.segmenter}", self.config
        if image_shape(self.segmenter.config.image_size) != mine.image_shape:
            raise ConfigError(
                f"{name} sees slices of {self.segmenter.config.image_size} pixels, the generator {mine.generator.image_size}; "
                "train a segmenter of this size"
            )
        trained = self.segmenter.preprocessing
        assert trained is not None
        if trained.normalisation != mine.data.normalisation:
            raise ConfigError(
                f"{name} was trained with data.normalisation={trained.normalisation}, this run has "
                f"{mine.data.normalisation}; train a segmenter with the same"
            )
        if trained.statistics != data.statistics:
            raise ConfigError(
                f"{name} was trained with other statistics than those of {mine.data.shards}: the same intensity would look "
                "different to it; train it on the same shard set"
            )
        unknown = [view for view in mine.data.views if view not in trained.views]
        if unknown:
            raise ConfigError(f"{name} was not trained on {', '.join(unknown)} slices; train one that was")

    def build_state(self, distributed: Distributed) -> TrainState:
        return build_state(self.config, distributed)

    def build_step(self, distributed: Distributed, state: TrainState, normaliser: Normaliser) -> GanStep:
        segmenter = self.segmenter
        if segmenter is not None:
            place(self.config, distributed, segmenter)
            compile_in_place(self.config, distributed.device, segmenter)
        return GanStep(self.config, distributed, state.generator, state.discriminator, normaliser, segmenter)

    def export(self, network: nn.Module, folder: Path, data: TrainingData, step: int) -> None:
        cast(Generator, network).save_pretrained(folder, data.preprocessing, step)

    def facts(self, state: TrainState, distributed: Distributed) -> dict[str, str]:
        execution = self.config.runtime.encoder_execution or default_execution(distributed.device)
        lines = {
            "generator": f"{state.generator.parameter_count:,} parameters, encoders {execution}",
            "discriminator": f"{state.discriminator.parameter_count:,} parameters",
        }
        if self.segmenter is not None:
            lines["segmenter"] = f"frozen, {self.config.objective.segmenter}, {self.segmenter_sha256}"
        return lines


def build_state(config: Config, distributed: Distributed) -> TrainState:
    """Both networks with their optimisers, at step 0: weights are a function of the seed (or of `init_from`)."""
    runtime, device = config.runtime, distributed.device
    execution = runtime.encoder_execution or default_execution(device)
    generator = build_generator(config.generator, config.seed, execution)
    if config.checkpoint.init_from is not None:
        load_weights(generator, config.checkpoint.init_from)
    set_recompute(generator, runtime.recompute)
    discriminator = build_discriminator(config.discriminator, config.seed)
    for network in (generator, discriminator):
        place(config, distributed, network)
    average = average_of(generator) if config.training.ema_decay > 0 else None
    needs_cycle = config.objective.cycle > 0 or config.objective.feature > 0
    passes = SynthesisPasses(generator, fast=config.training.fast_passes, cycle=needs_cycle)
    compile_in_place(config, device, passes, discriminator)
    rate = scaled_rate(config.optimizer, config.training.global_batch_size)
    return TrainState(
        {
            "generator": distributed.prepare(passes, adam(config, generator, rate), generator),
            "discriminator": distributed.prepare(
                discriminator,
                adam(config, discriminator, rate * config.optimizer.discriminator_ratio),
                discriminator,
            ),
        },
        average,
    )
