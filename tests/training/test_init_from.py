"""A fine-tuned run starts from both networks where both exist, and says where the discriminator's are missing."""

import logging
from pathlib import Path

import pytest
import torch

from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.errors import CheckpointError
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.checkpoint import save_checkpoint
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.network_setup import adam
from tests.training.small import small_config

CONFIG = small_config()
GENERATOR, DISCRIMINATOR = build_generator(CONFIG.generator, 7), build_discriminator(CONFIG.discriminator, 7)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run: an export, and a checkpoint with other weights of the generator."""
    GENERATOR.save_pretrained(tmp_path / "export", Preprocessing(PUBLISHED, ("axial",)))
    tensors = {
        "generator": build_generator(CONFIG.generator, 8).state_dict(),
        "discriminator": DISCRIMINATOR.state_dict(),
    }
    save_checkpoint(tmp_path / "checkpoints", 4, tensors, {})
    return tmp_path


def started(path: Path, *more: str) -> tuple[Generator, torch.nn.Module]:
    config = small_config(f"checkpoint.init_from={path}", *more)
    state = GanTask(config).build_state(SingleProcess(config.runtime))
    return state.generator.module, state.discriminator.module


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_run_folder_gives_its_export_and_the_discriminator_of_its_newest_checkpoint(run_dir: Path):
    generator, discriminator = started(run_dir)
    assert equal(generator, GENERATOR) and equal(discriminator, DISCRIMINATOR)


def test_a_checkpoint_gives_both_networks(run_dir: Path):
    generator, discriminator = started(run_dir / "checkpoints/step-00000004")
    assert equal(generator, build_generator(CONFIG.generator, 8)) and equal(discriminator, DISCRIMINATOR)


def test_an_export_gives_the_generator_only(run_dir: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        generator, discriminator = started(run_dir / "export")
    assert "no discriminator" in caplog.text
    assert equal(generator, GENERATOR)
    assert equal(discriminator, build_discriminator(CONFIG.discriminator, CONFIG.seed))


def test_a_discriminator_of_another_width_is_refused_with_the_remedy(run_dir: Path):
    with pytest.raises(CheckpointError, match="give an export folder"):
        started(run_dir, "discriminator.base_channels=16")


HEAD = ("generator.segmentation_head=true", "objective.auxiliary_segmentation=1")


def test_a_segmentation_head_may_be_added_and_left_out(run_dir: Path, tmp_path: Path):
    with_head, _ = started(run_dir, *HEAD)
    untrained = build_generator(small_config(*HEAD).generator, CONFIG.seed)
    assert equal(with_head.segmentation_head, untrained.segmentation_head)
    weights = with_head.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in GENERATOR.state_dict().items())
    with_head.save_pretrained(tmp_path / "head", Preprocessing(PUBLISHED, ("axial",)))
    without, _ = started(tmp_path / "head")
    assert equal(without, GENERATOR)


def test_weight_decay_reaches_the_optimiser():
    for form, kind in (("l2", torch.optim.Adam), ("decoupled", torch.optim.AdamW)):
        options = ("optimizer.weight_decay=1e-5", f"optimizer.weight_decay_form={form}")
        optimizer = adam(small_config(*options), GENERATOR)
        assert type(optimizer) is kind
        assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-5]
