"""Conversion of published weights: whatever the wrapper and flavour, and a clear word where they do not fit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from brasyn_dist.cli.convert import main
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.errors import CheckpointError
from brasyn_dist.models.published_weights import convert_discriminator, convert_generator, published_names
from brasyn_dist.models.registry import Generator
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from tests.conftest import REPOSITORY
from tests.models.conftest import reference

FLAVOURS = ["generator-grouped", "generator-separate", "generator-grouped-view"]


def weights(shared, name: str) -> dict[str, Tensor]:
    """As full-size checkpoints have them: without `weights.`, without inputs and outputs."""
    tensors = reference(shared, name)
    return {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}


@pytest.mark.real
@pytest.mark.parametrize("name", FLAVOURS)
def test_configuration_is_read_off_the_weights(shared, name):
    config, _ = convert_generator(weights(shared, name), heads=4)
    assert config == GeneratorConfig(
        image_size=48,
        base_channels=8,
        transformer_layers=2,
        heads=4,
        mlp_activation="gelu" if name == "generator-grouped-view" else "silu",
        view_embedding=name == "generator-grouped-view",
        attention="published",
        decoder="published",
    )


@pytest.mark.real
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "weights.", "weights.module."]
)
def test_wrappers_prefixes_are_taken_off(shared, prefix):
    plain = weights(shared, "generator-separate")
    config, state = convert_generator(plain, heads=4)
    config2, state2 = convert_generator({prefix + k: v for k, v in plain.items()}, heads=4)
    assert config == config2
    assert all(torch.equal(state[k], state2[k]) for k in state)


@pytest.mark.real
@pytest.mark.parametrize("name", FLAVOURS)
def test_missing_and_unknown_keys_are_named(shared, name):
    tensors = weights(shared, name)
    gone = sorted(tensors)[40]
    del tensors[gone]
    tensors["encoder.something_else.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        convert_generator(tensors, heads=4)
    assert gone in str(error.value)
    assert "encoder.something_else.weight" in str(error.value)


@pytest.mark.real
def test_wrong_shapes_and_heads_are_named(shared):
    tensors = weights(shared, "generator-grouped")
    with pytest.raises(CheckpointError, match="--heads"):
        convert_generator(tensors, heads=7)
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"][:, 1:]
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight gives \(80, 159, 1, 1\)"):
        convert_generator(tensors, heads=4)


def test_other_networks_are_refused():
    with pytest.raises(CheckpointError, match="not the published network"):
        convert_generator({"conv.weight": torch.zeros(1)}, heads=4)
    with pytest.raises(CheckpointError, match="not the published network"):
        convert_discriminator({"conv.weight": torch.zeros(1)})


def test_stacked_names():
    from brasyn_dist.models.published_weights import _GENERATOR_RULES, _OLDER_BLOCK_RULES, _SEPARATE_RULES

    rules = (*_SEPARATE_RULES, *_OLDER_BLOCK_RULES, *_GENERATOR_RULES)
    name = "modality_encoders.blocks.2.norms.0.bias"
    expected = [f"encoder.encoder_middles.{m}.downs.2.0.block1.norm.bias" for m in range(4)]
    assert published_names(name, rules) == expected
    name = "infuser.blocks.1.query_key_value.weight"
    expected = [f"middle.layers.1.attn.{part}.weight" for part in ("query", "key", "value")]
    assert published_names(name, rules) == expected


@pytest.mark.real
@pytest.mark.parametrize("name", ["generator-separate", "generator-grouped-view"])
def test_command_line_to_from_pretrained(shared, tmp_path, name):
    """The way a user goes: published file, conversion, from_pretrained, and the published output comes out."""
    source = tmp_path / "published.safetensors"
    save_file({f"module.{k}": v.contiguous() for k, v in weights(shared, name).items()}, source)
    command = [
        sys.executable,
        REPOSITORY / "tools" / "convert_checkpoint.py",
        source,
        tmp_path / "out",
        "--heads",
        "4",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, env=environment)
    generator = Generator.from_pretrained(tmp_path / "out")
    assert generator.config.attention == "published"
    assert generator.preprocessing.statistics == PUBLISHED
    tensors = reference(shared, name)
    with torch.no_grad():
        image, _ = generator.double()(
            tensors["input"].double(), tensors["available"].bool(), tensors["target"], tensors["view"]
        )
    assert (image - tensors["output"]).abs().max() < 1e-9


@pytest.mark.real
def test_command_line_with_other_statistics(shared, tmp_path):
    source = tmp_path / "published.safetensors"
    save_file(weights(shared, "generator-grouped"), source)
    statistics = Statistics(PUBLISHED.modalities, cases=12)
    statistics.save(tmp_path / "statistics.json")
    options = ["--heads", "4", "--statistics", str(tmp_path / "statistics.json"), "--views", "axial"]
    assert main([str(source), str(tmp_path / "out"), *options]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["statistics"]["cases"] == 12
    assert Generator.from_pretrained(tmp_path / "out").preprocessing.views == ("axial",)


def test_command_line_names_what_is_wrong(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name in ("absent.safetensors", "broken.safetensors"):
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 1
        assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.real
def test_full_size_weights_need_no_options(shared, tmp_path):
    """A checkpoint of the published size (made of zeros) converts with the default number of heads."""
    state = {
        name: torch.zeros(full_size(name, tensor.shape))
        for name, tensor in weights(shared, "generator-grouped").items()
    }
    extra = {
        name.replace(".0.", f".{i}.", 1): tensor
        for name, tensor in state.items()
        for i in (2, 3)
        if name.startswith("middle.layers.0.")
    }
    config, converted = convert_generator(state | extra)
    assert config == GeneratorConfig(mlp_activation="silu", attention="published", decoder="published")
    assert sum(t.numel() for t in converted.values()) == 80_039_041


def full_size(name: str, shape: torch.Size) -> list[int]:
    """Shape of the published tensor whose small counterpart has `shape`: 8 times the channels, 225 tokens for 9."""
    if name == "middle.embedding.position_embeddings":
        return [1, 225, 640]
    fixed = {"encoder.encoder_early.conv_initial.weight": 1, "encoder.encoder_middles.conv_initial.weight": 1}
    if name.startswith("decoder.conv_final.3."):
        return [shape[0], *(8 * n for n in shape[1:2]), *shape[2:]]
    scaled = 1 if name in fixed else 2
    return [8 * n if i < scaled else n for i, n in enumerate(shape)]
