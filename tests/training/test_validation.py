"""Validation of a segmenter: preprocessing as in training, and the loss beside Dice."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.config import SegmenterRunConfig, load_config
from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.losses.tversky import focal_tversky
from brasyn_dist.training.segmenter_task import SegmenterTask
from brasyn_dist.training.training_data import DeviceBatch, TrainingData, open_data
from tests.small import small_shard_set


def segmenter_run(shards: Path, *overrides: str) -> tuple[SegmenterTask, SingleProcess, TrainingData]:
    options = (
        f"data.shards={shards}", "segmenter.image_size=48", "segmenter.widths=[8,16]", "training.global_batch_size=8",
        "validation.slices=5", "validation.batch_size=2", "validation.panels=1",
    )  # fmt: skip
    config = load_config(None, [*options, *overrides], SegmenterRunConfig)
    group = SingleProcess(config.runtime)
    return SegmenterTask(config), group, open_data(config, group)


@pytest.mark.parametrize("mode", ["zscore", "case"])
def test_scores_are_those_of_slices_preprocessed_as_in_training(tmp_path_factory, mode: str):
    shards = small_shard_set(tmp_path_factory.getbasetemp() / "segmenter-shards")
    task, group, data = segmenter_run(shards, f"data.normalisation={mode}")
    state, normaliser = task.build_state(group, data.modality_set), data.preprocessing.normaliser()
    scores, panels = task.build_validator(group, data, normaliser)(state.network)
    assert panels.keys() == {"segmentation"}
    assert {"dice", "dice/NETC", "dice/ED", "dice/ET", "dice/TC", "dice/WT", "tversky"} == scores.keys()

    assert data.validation is not None
    slices = DeviceBatch.load(read_samples(data.validation, range(5), (48, 48)), normaliser)
    with torch.no_grad():
        logits = state.network(slices.real_BMHW, slices.view_B, slices.type_B)
    loss_B = focal_tversky(task.config.tversky, logits, slices.labels_BHW)
    assert scores["tversky"] == pytest.approx(float(np.mean(loss_B[slices.has_labels_B].numpy())), rel=1e-6)
