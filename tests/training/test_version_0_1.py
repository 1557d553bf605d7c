"""Shards, checkpoints and exports that version 0.1 wrote (tests/fixtures/version_0_1) are still used."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from brasyn_dist.cli.train import main as train
from brasyn_dist.models.registry import Generator

FIXTURES = Path(__file__).parents[1] / "fixtures/version_0_1"
EXPORT = "runs/old/export/model.safetensors"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run as it was left at step 2 of 4, without what the continued run writes."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/old/export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_continues_on_its_shards_to_the_result_of_version_0_1(work: Path):
    """The decoder is that of the time, because the option did not exist."""
    words = ["--config", "runs/old/config.yaml", "telemetry.report=false"]
    assert train([*words, "generator.decoder=published"]) == 0
    found, expected = load_file(work / EXPORT), load_file(FIXTURES / EXPORT)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_another_decoder_is_refused_by_name(work: Path, capsys: pytest.CaptureFixture[str]):
    assert train(["--config", "runs/old/config.yaml", "telemetry.report=false"]) == 1
    assert "generator.decoder" in capsys.readouterr().err


def test_an_export_has_the_decoder_of_its_time():
    generator = Generator.from_pretrained(FIXTURES / "runs/old")
    assert generator.config.decoder == "published"
    weights = generator.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in load_file(FIXTURES / EXPORT).items())
