"""Scores of an evaluation for its report: cards, comparison with baselines, tables, distributions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brasyn_dist.brats import BRATS
from brasyn_dist.evaluation import image_metrics, segmentation_metrics
from brasyn_dist.evaluation.image_metrics import direction
from brasyn_dist.evaluation.scoring import SYNTHETIC
from brasyn_dist.evaluation.tables import (
    ALL,
    IMAGE_HEADLINES,
    METHODS,
    Mean,
    mean_at,
    metrics_of,
    number,
    segmentation_headlines,
)
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.charts import RASTERED, Chart, chart, colour
from brasyn_dist.report.rendering import SERIES, Card

TITLES = {
    "mae": "MAE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "challenge_ssim": "Challenge SSIM",
    "ms_ssim": "MS-SSIM",
    "gmsd": "GMSD",
    "dice": "Dice",
    "nsd": "NSD",
    "voxel_nsd": "Voxel NSD",
    "hd95": "HD95",
}
DESCRIPTIONS = {**image_metrics.DESCRIPTIONS, **segmentation_metrics.DESCRIPTIONS}
CARDS = ("mae/brain", "psnr/brain", "ssim/healthy", "ssim/tumour")
UNFOLDED = ("mae", "psnr", "ssim", "dice")
"""Metrics whose distributions are visible at once."""


def split(name: str) -> tuple[str, str]:
    """`mae/brain` to (metric, region)."""
    metric, _, region = name.partition("/")
    return metric, region


def title_of(name: str) -> str:
    """`mae/brain` to `MAE, brain`."""
    metric, region = split(name)
    return f"{TITLES.get(metric, metric.replace('_', ' '))}{f', {region}' if region else ''}"


def targets_of(summary: pd.DataFrame) -> list[str]:
    """Targets of a summary; `all` only if there are several."""
    targets = list(dict.fromkeys(summary.index.get_level_values("target")))
    return [t for t in targets if t != ALL] if len(targets) == 2 else targets


def overview(summary: pd.DataFrame, modality_set: ModalitySet = BRATS) -> tuple[list[Card], list[str]]:
    """Cards of the main metrics with the best baseline; for each target, where a baseline wins."""
    cards = [_card(summary, name) for name in CARDS if mean_at(summary, ALL, SYNTHETIC, name)]
    for name in (f"dice/{region}" for region in modality_set.regions):
        if (ours := mean_at(summary, ALL, SYNTHETIC, name)) is not None:
            cards.append(Card(title_of(name), number(ours), "of the completed case"))
    return cards, _where_beaten(summary, modality_set)


def best_baseline(summary: pd.DataFrame, target: str, name: str) -> tuple[str, Mean] | None:
    """(method, mean) of the baseline with the best mean of a metric."""
    found = [(m, mean) for m in METHODS if m != SYNTHETIC and (mean := mean_at(summary, target, m, name))]
    return max(found, key=lambda entry: direction(name) * entry[1].mean, default=None)


def _advantage(summary: pd.DataFrame, target: str, name: str) -> float | None:
    """How much better the synthetic volumes are than the best baseline; None if one of both is unknown."""
    ours, best = mean_at(summary, target, SYNTHETIC, name), best_baseline(summary, target, name)
    return None if ours is None or best is None else direction(name) * (ours.mean - best[1].mean)


def _card(summary: pd.DataFrame, name: str) -> Card:
    ours, best = mean_at(summary, ALL, SYNTHETIC, name), best_baseline(summary, ALL, name)
    assert ours is not None
    advantage = _advantage(summary, ALL, name)
    if best is None or advantage is None:
        more = "a single case" if np.isnan(ours.high) else "± half of the 95 % interval"
        return Card(title_of(name), number(ours), more)
    verdict = "better" if advantage > 0 else "not better"
    return Card(title_of(name), number(ours), f"than {best[0]}, {number(best[1])}", verdict, advantage > 0)


def _where_beaten(summary: pd.DataFrame, modality_set: ModalitySet) -> list[str]:
    lines = []
    for target in targets_of(summary):
        advantages = {n: a for n in CARDS if (a := _advantage(summary, target, n)) is not None}
        if target == ALL or not advantages:
            continue
        lost = [
            f"{title_of(n)} ({best[0]})"
            for n, advantage in advantages.items()
            if advantage <= 0 and (best := best_baseline(summary, target, n)) is not None
        ]
        result = (
            f"a baseline is as good or better in {'; '.join(lost)}" if lost else "better than every baseline"
        )
        lines.append(f"{modality_set.title(target)}: {result}.")
    return lines


def score_tables(summary: pd.DataFrame, modality_set: ModalitySet = BRATS) -> dict[str, Any]:
    """Template values: headline and complete tables of image and segmentation metrics, definitions."""
    names = list(dict.fromkeys(summary.index.get_level_values("metric")))
    segmentation = [n for n in names if split(n)[0] in segmentation_metrics.DESCRIPTIONS]
    image = [n for n in names if n not in segmentation]
    headlines = [n for n in IMAGE_HEADLINES if n in image]

    def table(metrics: Sequence[str], label: str) -> dict[str, Any] | None:
        return metric_table(summary, metrics, label, modality_set) if metrics else None

    return {
        "image_table": metric_table(summary, headlines, "Image scores", modality_set),
        "all_image_table": metric_table(summary, image, "Every image score", modality_set),
        "segmentation_table": table(segmentation_headlines(summary, modality_set), "Scores of segmentations"),
        "all_segmentation_table": table(segmentation, "Every score of segmentations"),
        "definitions": definitions(names),
    }


def metric_table(
    summary: pd.DataFrame, names: Sequence[str], label: str, modality_set: ModalitySet = BRATS
) -> dict[str, Any]:
    """Template values of a table: groups by target, rows by method, the best mean of a group marked."""
    columns = [
        {
            "title": title_of(split(n)[0]),
            "region": split(n)[1],
            "direction": "higher" if direction(n) > 0 else "lower",
        }
        for n in names
    ]
    groups = []
    for target in targets_of(summary):
        means = {m: [mean_at(summary, target, m, n) for n in names] for m in METHODS}
        means = {m: values for m, values in means.items() if any(values)}
        best = [_best([v[i] for v in means.values()], n) for i, n in enumerate(names)]
        rows = [
            {
                "method": method,
                "ours": method == SYNTHETIC,
                "cases": int(max(v.cases for v in values if v)),
                "cells": [_cell(v, best[i]) for i, v in enumerate(values)],
            }
            for method, values in means.items()
        ]
        if rows:
            groups.append(
                {"title": "All targets" if target == ALL else modality_set.title(target), "rows": rows}
            )
    return {"label": label, "columns": columns, "groups": groups}


def _best(means: Sequence[Mean | None], name: str) -> float | None:
    """The best of several means."""
    known = [m.mean for m in means if m is not None]
    return max(known, key=lambda v: direction(name) * v) if len(means) > 1 and known else None


def _cell(mean: Mean | None, best: float | None) -> dict[str, Any]:
    value, _, interval = number(mean).partition(" ± ")
    return {"value": value, "interval": interval, "best": mean is not None and mean.mean == best}


def definitions(names: Sequence[str]) -> list[str]:
    """One sentence for each metric, and the conventions of the tables."""
    metrics = dict.fromkeys(split(n)[0] for n in names)
    lines = [f"{title_of(m)}: {DESCRIPTIONS[m]}." for m in metrics if m in DESCRIPTIONS]
    return [
        *lines,
        "± is half of the 95 % confidence interval over cases. Bold: the best mean of a target.",
        "The best copy is chosen in hindsight, for each target, by its MAE on these very cases.",
        "Brain: foreground of the real volume. Tumour: labels above 0 within the brain; healthy: the rest.",
    ]


# ---- distributions over cases


def method_colours(table: pd.DataFrame) -> dict[str, str]:
    """CSS variable of each method of a score table."""
    return {m: SERIES[METHODS.index(m)] for m in METHODS if m in set(table.method)}


def distributions(table: pd.DataFrame, modality_set: ModalitySet = BRATS) -> list[dict[str, Any]]:
    """Template values: charts of each metric and region, grouped by metric."""
    groups: dict[str, list[Chart]] = {}
    for name in metrics_of(table):
        known = table[table.method.isin(METHODS)].dropna(subset=[name])
        if len(known):
            groups.setdefault(split(name)[0], []).append(strip_chart(known, name, modality_set))
    return [
        {"title": TITLES.get(m, m), "open": m in UNFOLDED, "charts": charts} for m, charts in groups.items()
    ]


def strip_chart(known: pd.DataFrame, name: str, modality_set: ModalitySet = BRATS) -> Chart:
    """Points are cases, the bar is their mean, the box holds the middle half if there are at least five."""
    targets = [m for m in modality_set.modalities if m in set(known.modality)]
    methods = [m for m in METHODS if m in set(known.method)]
    groups = {key: values.tolist() for key, values in known.groupby(["modality", "method"])[name]}
    columns = {(t, m): groups[t, m] for t in targets for m in methods if (t, m) in groups}

    def plot(axes: Any) -> None:
        pitch = min(0.28, 0.8 / len(methods))
        for (target, method), values in columns.items():
            centre = targets.index(target) + (methods.index(method) - (len(methods) - 1) / 2) * pitch
            draw_column(axes, centre, pitch, values, SERIES[METHODS.index(method)])
        axes.set_xticks(range(len(targets)), targets)
        axes.set_xlim(-0.5, len(targets) - 0.5)

    return chart(title_of(name), _described(columns, modality_set), plot)


def draw_column(axes: Any, centre: float, pitch: float, values: Sequence[float], variable: str) -> None:
    """One column of points with its box and mean, in the colour of a CSS variable."""
    if len(values) >= 5:
        low, high = np.percentile(values, (25, 75))
        axes.bar(centre, high - low, pitch * 0.8, low, color=colour(variable), alpha=0.22, lw=0)
    # Points of one column lie side by side in the order of the cases, which is reproducible.
    across = centre + pitch * 0.3 * np.linspace(-1, 1, len(values)) if len(values) > 1 else [centre]
    raster = len(values) > RASTERED
    axes.plot(across, values, "o", ms=4, mew=0, alpha=0.75, color=colour(variable, raster), rasterized=raster)
    axes.hlines(np.mean(values), centre - pitch * 0.4, centre + pitch * 0.4, color=colour(variable), lw=2)


def _described(columns: Mapping[tuple[str, str], Sequence[float]], modality_set: ModalitySet) -> str:
    """Mean and range of every column in words."""
    texts = [
        f"{modality_set.title(target)}, {method}: mean {np.mean(values):.4g}, "
        f"{min(values):.4g} to {max(values):.4g}, {len(values)} case{'s' * (len(values) > 1)}"
        for (target, method), values in columns.items()
    ]
    return "; ".join(texts)
