"""Curves show all numbers of the log, and stay small for long runs."""

import numpy as np

from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.charts import Chart
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


def labels(charts: list[Chart]) -> list[str]:
    return [svg["aria-label"] for c in charts for svg in Page(c.svg).all("svg")]


def test_every_term_has_its_chart() -> None:
    terms, norms = map(labels, training_curves(train(30) + validation(3)))
    assert [label.split(".")[0] for label in (*terms, *norms)] == ["tversky", "generator norm", "rate"]
    assert "from 100 to 3.333, between 3.333 and 100" in terms[0]


def test_validation_by_target() -> None:
    legend, charts = validation_curves(train(3) + validation(4))
    found = labels(charts)
    assert len(found) == 2 and found[1].startswith("dice.") and "WT: from 0.25 to 0.25" in found[1]
    assert "overall: from 1 to 0.25" in found[0] and "T1 contrast-enhanced: from 2 to 0.5" in found[0]
    assert list(legend) == ["overall", "T1 contrast-enhanced", "WT"]


def test_modalities_of_another_set() -> None:
    other = ModalitySet("other", ("t1c", "pd"), {"t1c": "contrast"})
    legend, _ = validation_curves(
        [{"step": 1, "kind": "validation", "mae": 1.0, "t1c/mae": 2.0, "pd/mae": 3.0}], other
    )
    assert list(legend) == ["overall", "contrast", "pd"]


def test_no_lines_at_all() -> None:
    assert training_curves([]) == ([], []) and validation_curves(train(2)) == ({}, [])
    assert performance_curves([]) == []
    assert labels(training_curves(train(1))[0])  # one point is no line, and is drawn nevertheless


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
    terms, norms = training_curves(train(20000))
    assert sum(len(c.svg) for c in terms + norms) < 200_000


def test_names_for_people() -> None:
    assert readable("ssim_healthy") == "SSIM healthy" and readable("t1c/mae") == "t1c, mae"
