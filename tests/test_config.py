"""Configuration: defaults, YAML with bases, overrides; every mistake is named."""

from pathlib import Path

import pytest
import torch
import yaml

from brasyn_dist.config import (
    TASKS,
    Config,
    RunConfig,
    RuntimeConfig,
    SegmenterRunConfig,
    all_options,
    from_dict,
    load_config,
    to_yaml,
)
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.ensemble import load_inference


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
        ("training.updates_per_batch=0", "expected int of at least 1"),
        ("data.views=[axial, oblique]", "oblique"),
        ("data.views=axial", "expected a list"),
        ("training.epochs=many", "expected float"),
        ("training.global_batch_size=true", "expected int"),
        ("training.global_batch_size=4.0", "expected int"),
        ("training.global_batch_size=0", "expected int of at least 1"),
        ("checkpoint.every_steps=-1", "expected int of at least 0"),
        ("telemetry.log_every=-1", "expected int of at least 0"),
        ("validation.every_steps=-1", "expected int of at least 0"),
        ("optimizer.base_rate=.nan", "base_rate=nan: expected float of at least 0"),
        ("training.ema_decay=1", "expected float of at least 0 and below 1"),
        ("augmentation.mirror=1.5", "at most 1"),
        ("data.shards=$NOWHERE/x", "variable NOWHERE is not set"),
        ("data.cache_gib=[", "not a YAML value"),
        ("name=gr\udcc3\udcb6sse", "encoding of this locale; set LC_ALL"),
        ("data=3", "data must be a mapping"),
        ("task=diffusion", "expected generator"),
        ("generator.image_size=100", "multiple of 16"),
        ("generator.image_size=48", "must be equal"),
        ("generator.image_size=[160,200]", "multiple of 16"),
        ("generator.image_size=[160]", "expected int, or a list of 2 int"),
        ("generator.image_size=wide", "expected int"),
        ("generator.heads=7", "generator.heads 7 does not divide"),
        ("checkpoint.keep=1", "at least 2"),
        ("training.epochs", "section.key=value"),
        ("seed.x=1", "must be|expected int|mapping"),
    ],
)
def test_mistakes_are_named(override: str, words: str):
    with pytest.raises(ConfigError, match=words) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


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
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read .*`brasyn configs` lists"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="bad.yaml: not valid YAML"):
        load_config(tmp_path / "bad.yaml")


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(None, ["data.shards=$SCRATCH/a", "runs_dir=~/runs", "data.cache_dir=${SCRATCH}/c"])
    assert (config.data.shards, config.runs_dir) == ("/scratch/a", "/home/me/runs")
    assert config.data.cache_dir == "/scratch/c"
    piped = "pipe:cat $SCRATCH/{}"
    assert load_config(None, [f"data.shards='{piped}'"]).data.shards == piped


def test_the_constructor_checks_as_a_file_does():
    with pytest.raises(
        ConfigError, match="hang_minutes=-1.0: expected float above 0 and at most 525600, or null"
    ):
        RuntimeConfig(hang_minutes=-1.0)


def test_a_saved_configuration_may_state_a_removed_option_without_effect(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("augmentation: {gamma: 0.0, mirror: 0.5}\n")
    assert load_config(path) == load_config(None, ["augmentation.mirror=0.5"])
    path.write_text("augmentation: {gamma: 0.2}\n")
    with pytest.raises(ConfigError, match=r"unknown option augmentation\.gamma"):
        load_config(path)


def test_the_task_selects_the_options(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("task: segmenter\n")
    assert isinstance(load_config(path, (), RunConfig), SegmenterRunConfig)
    with pytest.raises(ConfigError, match="task=segmenter: expected generator"):
        load_config(path)
    with pytest.raises(ConfigError, match="task=generator: expected segmenter"):
        load_config(None, ["task=generator"], SegmenterRunConfig)
    assert isinstance(load_config(None, ["task=segmenter"], RunConfig), SegmenterRunConfig)
    assert isinstance(load_config(None, (), RunConfig), Config)


def test_saved_options_of_runs_before_there_were_tasks_are_read(tmp_path: Path):
    path = tmp_path / "config.yaml"
    for kind in (Config, SegmenterRunConfig):
        path.write_text(to_yaml(kind()).replace(f"task: {kind().task}\n", ""))
        assert load_config(path, (), RunConfig) == kind()


@pytest.mark.parametrize("kind", TASKS.values())
def test_every_option_is_described(kind: type[RunConfig]):
    assert [name for name, option in all_options(kind) if not option.description] == []


INFERENCE = ("r9.yaml", "r10.yaml")
"""Configurations of `brasyn infer`."""


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for p in Path(__file__).parents[1].joinpath("configs").glob("*.yaml")
        if not p.name.startswith("ablations")
    ),
    ids=lambda p: p.name,
)
def test_shipped_configurations_load(path: Path):
    if path.name in INFERENCE:
        assert load_inference(path).members
    else:
        assert load_config(path, (), RunConfig).name


def test_options_of_the_other_kind_of_run_are_refused():
    with pytest.raises(
        ConfigError, match=r"unknown option training\.updates_per_batch.* is an option of task generator"
    ):
        load_config(None, ["training.updates_per_batch=1"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match=r"unknown option order\.availability"):
        load_config(None, ["order.availability=any"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match="encoder_execution"):
        load_config(None, ["runtime.encoder_execution=grouped"], SegmenterRunConfig)
    with pytest.raises(ConfigError, match="unknown option segmenter"):
        load_config(None, ["segmenter.image_size=48"])
