"""Weights out and in: what was saved is what is loaded, with its statistics, or a clear refusal."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from brasyn_dist.errors import CheckpointError
from brasyn_dist.models.pretrained import load_weights
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from tests.models.conftest import small_config

STATISTICS = dataclasses.replace(PUBLISHED, cases=3, case_list_hash="abc")
PREPROCESSING = Preprocessing(STATISTICS, ("axial", "sagittal"))


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "run" / "export"
    build_generator(small_config(view_embedding=True), 1).save_pretrained(folder, PREPROCESSING, step=12)
    return folder


def same_weights(a: Generator, b: Generator) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("execution", ["separate", "grouped"])
def test_round_trip(export, execution):
    generator = Generator.from_pretrained(export, encoder_execution=execution)
    assert same_weights(generator, build_generator(small_config(view_embedding=True), 1))
    assert generator.config == small_config(view_embedding=True)
    assert generator.preprocessing == PREPROCESSING
    assert generator.encoder_execution == execution
    assert not generator.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in generator.parameters())


def test_a_run_folder_stands_for_its_export(export):
    assert same_weights(Generator.from_pretrained(export.parent), Generator.from_pretrained(export))


def test_files_are_readable_by_others(export):
    values = json.loads((export / "config.json").read_text())
    assert values["generator"]["view_embedding"] is True
    assert Statistics.from_dict(values["statistics"]) == STATISTICS
    assert values["step"] == 12
    assert sorted(p.name for p in export.iterdir()) == ["config.json", "model.safetensors"]


def test_channels_last_weights_are_stored_plainly(export):
    generator = Generator.from_pretrained(export)
    again = export.parent / "again"
    generator.to(memory_format=torch.channels_last).save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
    assert Generator.from_pretrained(again).preprocessing == PREPROCESSING


def test_weights_and_configuration_must_belong_together(export):
    """As after an interruption between the two files."""
    other = export.parent / "other"
    build_generator(small_config(view_embedding=True), 2).save_pretrained(other, PREPROCESSING)
    (other / "model.safetensors").replace(export / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors is not the file"):
        Generator.from_pretrained(export)


def test_damage_is_named(export, tmp_path):
    with pytest.raises(CheckpointError, match="no exported generator"):
        Generator.from_pretrained(tmp_path / "nothing")
    weights, config = export / "model.safetensors", export / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors: not a whole"):
        Generator.from_pretrained(export)
    weights.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors: no such file"):
        Generator.from_pretrained(export)
    weights.write_bytes(whole)
    for broken, problem in (
        (text[:-20], "not valid JSON"),
        (text.replace('"format_version": 1', '"format_version": 9'), "version 1"),
        (text.replace('"views"', '"sights"'), "lacks views"),
        (text.replace('"heads": 4', '"heads": "four"'), "generator|heads"),
        (text.replace('"std": 1301.7006', '"std": 0'), "std 0"),
        (text.replace('"transformer_layers": 1', '"transformer_layers": 2'), "does not fit"),
    ):
        config.write_text(broken)
        with pytest.raises(CheckpointError, match=problem):
            Generator.from_pretrained(export)


def test_weights_are_not_exported_without_statistics(tmp_path):
    with pytest.raises(CheckpointError, match="statistics"):
        build_generator(small_config(), 1).save_pretrained(tmp_path)


def test_exports_that_are_older_than_the_decoder_option_have_the_published_decoder(tmp_path):
    build_generator(small_config(decoder="published"), 1).save_pretrained(tmp_path, PREPROCESSING)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    del values["generator"]["decoder"]
    config.write_text(json.dumps(values))
    assert Generator.from_pretrained(tmp_path).config == small_config(decoder="published")


def test_weights_alone_from_export_run_and_checkpoint(export, tmp_path):
    source = Generator.from_pretrained(export)
    checkpoint = tmp_path / "step-00000001"
    checkpoint.mkdir()
    save_file(build_generator(source.config, 5).state_dict(), checkpoint / "generator.safetensors")
    for path, seed in ((export, 1), (export.parent, 1), (checkpoint, 5)):
        generator = build_generator(source.config, 9)
        load_weights(generator, path)
        assert same_weights(generator, build_generator(source.config, seed))
    save_file(build_generator(source.config, 6).state_dict(), checkpoint / "average.safetensors")
    load_weights(generator, checkpoint)
    assert same_weights(generator, build_generator(source.config, 6))


def test_weights_that_do_not_fit_are_refused(export, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(build_generator(small_config(), 1), export)
    with pytest.raises(CheckpointError, match="no exported generator"):
        load_weights(build_generator(small_config(), 1), tmp_path)


def test_normalisation_is_kept_and_old_exports_have_the_usual_one(export):
    config = export / "config.json"
    assert Generator.from_pretrained(export).preprocessing.normalisation == "zscore"
    values = json.loads(config.read_text())
    for stored, expected in (("slice", "slice"), (None, "zscore")):
        values["normalisation"] = stored
        config.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        generator = Generator.from_pretrained(export)
        assert generator.preprocessing.normalisation == expected
        generator.save_pretrained(export.parent / "again")
        assert Generator.from_pretrained(export.parent / "again").preprocessing == generator.preprocessing
    assert "scales" not in values and generator.preprocessing.intensity_scale is None
    scale = IntensityScaleModel.fit(np.array([[100.0, 200, 300, 400]] * 2))
    preprocessing = Preprocessing(STATISTICS, ("axial",), "case", scale)
    generator.save_pretrained(export.parent / "again", preprocessing)
    assert Generator.from_pretrained(export.parent / "again").preprocessing == preprocessing
    config.write_text(json.dumps({**values, "normalisation": "percentile"}))
    with pytest.raises(CheckpointError, match="unknown normalisation 'percentile'"):
        Generator.from_pretrained(export)
