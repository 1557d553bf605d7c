"""A checkpoint continues only the run that it is of; checkpoints of earlier versions lack newer options."""

from pathlib import Path

import pytest

from brasyn_dist.config import to_dict
from brasyn_dist.errors import CheckpointError
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.run_dir import changed_options, check_identity, run_identity
from tests.training.small import small_config

FOLDER = Path("checkpoints/step-00000004")


def identity(*overrides: str) -> dict:
    config = small_config(*overrides)
    return run_identity(config, "fingerprint", GanTask(config).identity())


def defaults() -> dict:
    config = type(small_config()).before_options()
    return run_identity(config, "", GanTask(config).identity())


def test_options_that_an_earlier_version_did_not_have_take_their_default():
    saved = identity()
    del saved["order"]["availability"], saved["generator"]["view_embedding"], saved["segmenter_sha256"]
    del saved["augmentation"]
    check_identity(saved, identity(), defaults(), FOLDER)
    with pytest.raises(CheckpointError, match=r"order.availability: checkpoint 'three', configuration 'any'"):
        check_identity(saved, identity("order.availability=any"), defaults(), FOLDER)


def test_checkpoints_that_are_older_than_the_decoder_option_have_the_published_decoder():
    saved = identity("generator.decoder=published")
    del saved["generator"]["decoder"]
    check_identity(saved, identity("generator.decoder=published"), defaults(), FOLDER)
    with pytest.raises(CheckpointError, match=r"generator.decoder: checkpoint 'published'"):
        check_identity(saved, identity(), defaults(), FOLDER)


def test_every_difference_is_listed():
    changed = identity("training.updates_per_batch=1", "generator.view_embedding=true")
    with pytest.raises(
        CheckpointError, match=r"(?s)updates_per_batch: checkpoint 4.*view_embedding: checkpoint"
    ):
        check_identity(identity(), changed, defaults(), FOLDER)


def test_changed_options_are_listed_and_new_ones_are_not():
    saved = to_dict(small_config())
    del saved["runtime"]["recompute"]
    assert changed_options(saved, small_config("optimizer.base_rate=1e-4")) == [
        "optimizer.base_rate: 0.0005 -> 0.0001"
    ]
