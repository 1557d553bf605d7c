"""Configuration: defaults, YAML with bases, overrides; every mistake is named."""

from pathlib import Path

import pytest
import torch
import yaml

from brasyn_dist.common.typed_yaml import from_dict, to_yaml
from brasyn_dist.config import Config, RuntimeConfig, SegmenterRunConfig, load_config
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.weights_config import load_inference


def test_saved_configuration_reads_back_equal():
    config = load_config(
        None, ["generator.base_channels=8", "data.views=[sagittal]", "optimizer.base_rate=5e-5"]
    )
    assert from_dict(Config, yaml.safe_load(to_yaml(config))) == config
    assert config.optimizer.base_rate == 5e-5


def test_yaml_over_base_over_defaults_and_overrides_last(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("seed: 3\ntraining: {global_batch_size: 8, epochs: 2}\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntraining: {epochs: 5}\n")
    config = load_config(tmp_path / "run.yaml", ["seed=4"])
    assert (config.seed, config.training.global_batch_size, config.training.epochs) == (4, 8, 5.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.global_batchsize=8", "unknown option training.global_batchsize"),
        ("training.updates_per_batch=2", "choose from 4, 1"),
        ("training.updates_per_batch=0", "choose from 4, 1"),
        ("data.views=[axial, oblique]", "oblique"),
        ("data.views=axial", "expected a list"),
        ("data.views=[axial, sagittal]", "view_embedding"),
        ("training.epochs=many", "expected float"),
        ("training.global_batch_size=true", "expected int"),
        ("generator.image_size=100", "multiple of 16"),
        ("generator.image_size=48", "must be equal"),
        ("generator.image_size=[160,200]", "multiple of 16"),
        ("generator.image_size=[160]", "expected 2 values"),
        ("generator.image_size=wide", "expected int"),
        ("generator.heads=7", "do not divide"),
        ("checkpoint.keep=1", "at least 2"),
        ("training.epochs", "section.key=value"),
        ("seed.x=1", "must be|expected int|mapping"),
    ],
)
def test_mistakes_are_named(override: str, words: str):
    with pytest.raises(ConfigError, match=words):
        load_config(None, [override])


def test_a_static_graph_does_not_go_with_micro_batches():
    with pytest.raises(ConfigError, match=r"static_graph does not go with training\.micro_batch_size"):
        load_config(None, ["runtime.static_graph=true", "training.micro_batch_size=2"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_bf16_gradients_need_cuda():
    with pytest.raises(ConfigError, match="gradient_exchange=bf16 needs NCCL"):
        Distributed(RuntimeConfig(gradient_exchange="bf16"))


def test_off_and_no_are_words_not_booleans():
    config = load_config(None, ["telemetry.wandb=off", "runtime.precision=no", "runtime.compile=off"])
    assert (config.telemetry.wandb, config.runtime.precision, config.runtime.compile) == ("off", "no", "off")


def test_missing_file_and_bad_yaml_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere.yaml: no such"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="bad.yaml: not valid YAML"):
        load_config(tmp_path / "bad.yaml")


INFERENCE = ("r9.yaml", "r10.yaml")
"""Configurations of brasyn_dist.infer."""
KINDS = {"segmenter.yaml": SegmenterRunConfig}


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].joinpath("configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_shipped_configurations_load(path: Path):
    if path.name in INFERENCE:
        assert load_inference(path).members
    else:
        assert load_config(path, (), KINDS.get(path.name, Config)).name


def test_options_of_the_other_kind_of_run_are_refused():
    with pytest.raises(ConfigError, match=r"unknown option training\.updates_per_batch"):
        load_config(None, ["training.updates_per_batch=1"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match=r"unknown option order\.availability"):
        load_config(None, ["order.availability=any"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match="encoder_execution"):
        load_config(None, ["runtime.encoder_execution=grouped"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match="unknown option segmenter"):
        load_config(None, ["segmenter.image_size=48"])
