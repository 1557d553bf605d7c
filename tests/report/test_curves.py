"""Curves say what the log holds, whatever numbers it has, and stay small however long the run was."""

import numpy as np

from brasyn_dist.report.curves import (
    binned,
    performance_curves,
    points_of,
    readable,
    training_curves,
    validation_curves,
)
from tests.report.checked import Page


def train(steps: int) -> list[dict]:
    return [
        {"step": s, "kind": "train", "epoch": s / 10, "rate": 1e-3, "tversky": 100.0 / s, "generator_norm": None if s == 2 else 1.0}
        for s in range(1, steps + 1)
    ]  # fmt: skip


def validation(steps: int) -> list[dict]:
    return [
        {"step": s, "kind": "validation", "mae": 1.0 / s, "t1c/mae": 2.0 / s, "dice": 0.5, "dice/WT": 0.25}
        for s in range(1, steps + 1)
    ]


def test_every_term_has_its_chart() -> None:
    page = Page(training_curves(train(30) + validation(3)))
    labels = [s["aria-label"] for s in page.all("svg")]
    assert [label.split(".")[0] for label in labels] == ["tversky", "generator norm", "rate"]
    assert "from 100 to 3.333, between 3.333 and 100" in labels[0]
    assert page.titles("summary") == ["Gradient norms and learning rate"]


def test_validation_by_target() -> None:
    page = Page(validation_curves(train(3) + validation(4)))
    labels = [s["aria-label"] for s in page.all("svg")]
    assert len(labels) == 2 and labels[1].startswith("dice.") and "WT: from 0.25 to 0.25" in labels[1]
    assert "overall: from 1 to 0.25" in labels[0] and "T1 contrast-enhanced: from 2 to 0.5" in labels[0]
    assert "T1 contrast-enhanced" in page.text() and "T2-FLAIR" not in page.text()


def test_no_lines_at_all() -> None:
    assert "no training step" in training_curves([])
    assert "no validation" in validation_curves(train(2))
    assert performance_curves([]) == ""
    assert Page(training_curves(train(1))).all("svg")  # one point is no line, and drawn nevertheless


def test_bins_against_numpy() -> None:
    steps = np.arange(1000.0)
    values = np.random.default_rng(0).normal(size=1000)
    x, mean, low, high = binned(steps, values, 50)
    parts = values.reshape(50, 20)
    np.testing.assert_allclose(x, steps.reshape(50, 20).mean(1))
    for found, expected in ((mean, parts.mean(1)), (low, parts.min(1)), (high, parts.max(1))):
        np.testing.assert_allclose(found, expected)
    assert [len(c) for c in binned(steps[:3], values[:3], 50)] == [3] * 4
    assert [len(c) for c in binned(steps[:0], values[:0])] == [0] * 4


def test_unknown_values_are_left_out() -> None:
    steps, values = points_of(train(3), "generator_norm")
    assert steps.tolist() == [1, 3] and values.tolist() == [1, 1]


def test_long_runs_make_small_pages() -> None:
    assert len(training_curves(train(20000))) < 200_000


def test_names_for_people() -> None:
    assert readable("ssim_healthy") == "SSIM healthy" and readable("t1c/mae") == "t1c, mae"
