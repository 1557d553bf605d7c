"""Scores of the segmenter's validation against sets of pixels; tumour types by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.brats import MODALITIES, TUMOUR_TYPES, UNKNOWN_TYPE, tumour_type
from brasyn_dist.common.panels import _CAPTION, LABEL_COLOURS, label_panel
from brasyn_dist.data.format.metadata import CaseEntry
from brasyn_dist.training.segmenter_task import confusion_matrix, dice_scores
from tests.data.shard_sets import write_set

REGIONS = {"NETC": {1}, "ED": {2}, "ET": {3}, "TC": {1, 3}, "WT": {1, 2, 3}}


def test_dice_equals_that_of_sets_of_pixels():
    noise = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(0, 4, (3, 5, 7), generator=noise) for _ in range(2))
    scores = dice_scores(confusion_matrix(labels.to(torch.uint8), predicted))
    for name, members in REGIONS.items():
        sets = [
            {tuple(i) for i in np.argwhere(np.isin(x.numpy(), list(members))).tolist()}
            for x in (labels, predicted)
        ]
        expected = 2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1]))
        assert scores[f"dice/{name}"] == pytest.approx(expected, abs=1e-12), name
    assert scores["dice"] == pytest.approx(np.mean([scores[f"dice/{n}"] for n in ("NETC", "ED", "ET")]))


def test_dice_of_an_absent_label_is_one():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert set(dice_scores(confusion_matrix(labels, labels)).values()) == {1.0}
    assert dice_scores(confusion_matrix(labels, labels + 3))["dice/ET"] == 0.0


@pytest.mark.parametrize(
    ("cohort", "case", "expected"),
    [
        ("train_gli", "BraTS-GLI-00005-000", "GLI"),
        ("train", "BraTS-MET-00005-000", "MET"),
        ("train_met_additional", "subject-7", "MET"),
        ("gli", "BraTS-MET-00005-000", "MET"),
        ("train", "BraTS2021_00012", "GLI"),
        ("train", "BraTS20_Training_001", "GLI"),
        ("method", "subject-7", None),
        ("train_men", "BraTS-MEN-00005-000", None),
        ("met", "brats-men-rt-0001-1", None),
        ("train", "BraTS-SSA-00005-000", None),
    ],
)
def test_tumour_type_by_name(cohort: str, case: str, expected: str | None):
    assert tumour_type(cohort, case) == (UNKNOWN_TYPE if expected is None else TUMOUR_TYPES.index(expected))


def test_slices_carry_their_type_and_others_have_none(tmp_path: Path):
    known = write_set(tmp_path / "known", train=4, val=1).select("train")
    types = {known.key(i).split("/")[0].split("-")[1]: int(t) for i, t in enumerate(known.tumour_type)}
    assert types == {"GLI": 0, "MET": 1}
    cases = (
        CaseEntry("subject-1", "ours", "train", "subject-1", True),
        CaseEntry("BraTS-GLI-1-000", "gli", "train", "BraTS-GLI-1", True),
    )
    unknown = write_set(tmp_path / "unknown", cases=cases, shards=2).select("train")
    assert set(unknown.tumour_type.tolist()) == {0, UNKNOWN_TYPE}


def test_panel_colours_labels_where_they_are():
    slices, labels = np.full((4, 8, 8), -1.0), np.zeros((8, 8), dtype=np.uint8)
    labels[2, 5] = 3
    picture = label_panel(slices, labels, np.zeros_like(labels), (-1.0, 4.0), "axial", MODALITIES)
    blue = tuple(c // 2 for c in LABEL_COLOURS[2])
    found = np.argwhere((picture == blue).all(-1))
    assert len(found) == 1
    row, column = found[0]
    tile, inside = divmod(int(column), picture.shape[1] // 6)
    # Upright: x runs to the right, y downwards, below the caption.
    assert (tile, inside, row - _CAPTION) == (4, 2, 5)
