"""Charts of a run from metrics.jsonl and performance.jsonl: one small chart for each number.

    train lines       --> loss terms; norms and rate (line: mean of a bin; shade: smallest to largest)
    validation lines  --> each score, overall and of each part (target, region)
    performance lines --> slices per second, share of time spent waiting for data

All numbers of the lines are drawn, so other tasks than the generator need no code here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.charts import Chart, chart, colour, series_text
from brasyn_dist.report.rendering import SERIES

Line = Mapping[str, Any]
BINS = 200
"""Largest number of points of a curve."""
NOT_METRICS = ("step", "kind", "epoch", "rate", "time")
NORM = "_norm"
OVERALL = "overall"


def training_curves(lines: Sequence[Line]) -> tuple[list[Chart], list[Chart]]:
    """(loss terms, gradient norms and learning rate) by optimiser step; empty without training lines."""
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return [], []
    names = list(dict.fromkeys(n for line in (train[0], train[-1]) for n in line if n not in NOT_METRICS))
    norms = [n for n in names if n.endswith(NORM)] + ["rate"] * ("rate" in train[0])
    terms = [n for n in names if not n.endswith(NORM)]
    return [term_chart(train, n) for n in terms], [term_chart(train, n) for n in norms]


def validation_curves(
    lines: Sequence[Line], modality_set: ModalitySet = BRATS
) -> tuple[dict[str, str], list[Chart]]:
    """Each validation score by optimiser step, overall and of each part (target, region).

    Returns:
        Legend (name -> CSS variable; empty without parts) and charts; both empty without validation lines.
    """
    validation = [line for line in lines if line["kind"] == "validation"]
    if not validation:
        return {}, []
    names = score_names(validation[-1])
    parts = list(dict.fromkeys(p for n in names for p in parts_of(validation[-1], n, modality_set)))
    parts = parts[: len(SERIES)]
    legend = {OVERALL: "ink", **dict(zip(parts, SERIES))} if parts else {}
    return legend, [validation_chart(validation, name, parts, modality_set) for name in names]


def score_names(line: Line) -> list[str]:
    """Scores of a validation line that are means over all parts."""
    return [n for n in line if "/" not in n and n not in NOT_METRICS]


def parts_of(line: Line, name: str, modality_set: ModalitySet = BRATS) -> dict[str, str]:
    """Keys of a score's parts by their titles: `t1c/mae` of a generator, `dice/WT` of a segmenter."""
    targets = {
        modality_set.title(key.removesuffix(f"/{name}")): key for key in line if key.endswith(f"/{name}")
    }
    return targets | {key.removeprefix(f"{name}/"): key for key in line if key.startswith(f"{name}/")}


def performance_curves(lines: Sequence[Line]) -> list[Chart]:
    """Speed by optimiser step."""
    names = ("slices_per_second", "data_wait_fraction")
    return [term_chart(lines, n) for n in names if any(n in line for line in lines)]


def points_of(lines: Sequence[Line], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) where the value is known."""
    known = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*known) if known else ((), ())
    return np.array(steps, float), np.array(values, float)


def binned(steps: np.ndarray, values: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """(step, mean, smallest, largest) of at most `bins` groups of consecutive points."""
    parts = [p for p in np.array_split(np.arange(len(steps)), min(bins, max(1, len(steps)))) if len(p)]
    rows = [(steps[p].mean(), values[p].mean(), values[p].min(), values[p].max()) for p in parts]
    return tuple(np.array(rows).reshape(-1, 4).T)


def term_chart(lines: Sequence[Line], name: str) -> Chart:
    """One number of train or performance lines, binned; logarithmic if it spans more than a factor of 20."""
    steps, values = points_of(lines, name)

    def plot(axes: Any) -> None:
        # At least eight points a bin, so that the mean is smoother than the points.
        x, mean, low, high = binned(steps, values, max(8, min(BINS, len(steps) // 8)))
        axes.fill_between(x, low, high, color=colour("s1"), alpha=0.22, lw=0)
        axes.plot(x, mean, color=colour("s1"), marker="o" if len(x) == 1 else None)
        if len(values) and values.min() > 0 and values.max() > 20 * values.min():
            axes.set_yscale("log")
        finish(axes)

    return chart(readable(name), series_text("By optimiser step", values.tolist()), plot, height=170)


def validation_chart(
    lines: Sequence[Line], name: str, parts: Sequence[str], modality_set: ModalitySet = BRATS
) -> Chart:
    """One score, overall and by part; the position in `parts` gives each series its colour."""
    known = parts_of(lines[-1], name, modality_set)
    series = [(p, key, SERIES[parts.index(p)]) for p, key in known.items() if p in parts]

    def plot(axes: Any) -> None:
        for _, key, shade in series:
            axes.plot(*points_of(lines, key), color=colour(shade), marker="o", ms=2.5, lw=1.1)
        axes.plot(*points_of(lines, name), color=colour("ink"), marker="o", ms=3.5, lw=2)
        finish(axes)

    texts = [
        series_text(p, points_of(lines, key)[1].tolist()) for p, key, _ in [(OVERALL, name, ""), *series]
    ]
    return chart(readable(name), "By optimiser step. " + "; ".join(texts), plot)


def finish(axes: Any) -> None:
    """Label the axis of steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.02)


def readable(name: str) -> str:
    """`ssim_healthy` as `SSIM healthy`."""
    words = name.replace("_", " ").split()
    return " ".join(w.upper() if w in ("mae", "psnr", "ssim") else w for w in words).replace("/", ", ")
