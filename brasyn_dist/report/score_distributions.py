"""How scores spread over cases: for each measure and region a chart, for each target and method a column of points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brasyn_dist.brats import MODALITIES, MODALITY_NAMES
from brasyn_dist.evaluation.tables import METHODS, Row
from brasyn_dist.report.charts import chart, colour
from brasyn_dist.report.page import fold, legend
from brasyn_dist.report.score_tables import TITLES, split, title_of
from brasyn_dist.report.style import SERIES

OPEN = ("mae", "psnr", "ssim", "dice")
"""Measures that are shown unfolded."""
RASTERED = 400
"""Points a column beyond which they are drawn as pixels: SVG keeps every single one as a shape."""
_SHORT = {"t1c": "T1c", "t1n": "T1n", "t2f": "FLAIR", "t2w": "T2w"}


def distributions(rows: Sequence[Row]) -> str:
    """HTML: the legend of methods, then the charts, grouped by measure."""
    methods = [m for m in METHODS if any(r.method == m for r in rows)]
    names = dict.fromkeys(n for r in rows for n, v in r.scores.items() if v is not None)
    measures: dict[str, list[str]] = {}
    for name in names:
        measures.setdefault(split(name)[0], []).append(name)
    parts = [legend({m: f"var(--{SERIES[METHODS.index(m)]})" for m in methods})]
    for measure, regions in measures.items():
        charts = f'<div class="charts">{"".join(strip_chart(rows, n, methods) for n in regions)}</div>'
        title = TITLES.get(measure, measure)
        parts.append(f"<h3>{title}</h3>{charts}" if measure in OPEN else fold(title, charts))
    return "".join(parts)


def values_of(rows: Sequence[Row], name: str, modality: str, method: str) -> list[float]:
    chosen = (r for r in rows if (r.modality, r.method) == (modality, method))
    return [v for r in chosen if (v := r.scores.get(name)) is not None]


def strip_chart(rows: Sequence[Row], name: str, methods: Sequence[str]) -> str:
    """Points are cases, the bar is their mean, the box holds the middle half where there are at least five."""
    targets = [m for m in MODALITIES if any(r.modality == m for r in rows)]
    columns = {
        (x, method): values
        for x, modality in enumerate(targets)
        for method in methods
        if (values := values_of(rows, name, modality, method))
    }
    scored = [m for m in methods if any(method == m for _, method in columns)]

    def draw(axes: Any) -> None:
        pitch = min(0.28, 0.8 / len(scored))
        for (x, method), values in columns.items():
            centre = x + (scored.index(method) - (len(scored) - 1) / 2) * pitch
            draw_column(axes, centre, pitch, values, colour(SERIES[METHODS.index(method)]))
        axes.set_xticks(range(len(targets)), [_SHORT[m] for m in targets])
        axes.set_xlim(-0.5, len(targets) - 0.5)

    return chart(title_of(name), described(columns, targets), draw)


def draw_column(axes: Any, centre: float, pitch: float, values: Sequence[float], shade: str) -> None:
    if len(values) >= 5:
        low, high = np.percentile(values, (25, 75))
        axes.bar(centre, high - low, pitch * 0.8, low, color=shade, alpha=0.22, lw=0)
    # Points of one column side by side, in order of the cases: the same picture every time.
    across = centre + pitch * 0.3 * np.linspace(-1, 1, len(values)) if len(values) > 1 else [centre]
    axes.plot(across, values, "o", ms=4, mew=0, alpha=0.75, color=shade, rasterized=len(values) > RASTERED)
    axes.hlines(np.mean(values), centre - pitch * 0.4, centre + pitch * 0.4, color=shade, lw=2)


def described(columns: Mapping[tuple[int, str], Sequence[float]], targets: Sequence[str]) -> str:
    """The chart in words: mean and range of every column."""
    texts = [
        f"{MODALITY_NAMES[targets[x]]}, {method}: mean {np.mean(values):.4g}, "
        f"{min(values):.4g} to {max(values):.4g}, {len(values)} case{'s' * (len(values) > 1)}"
        for (x, method), values in columns.items()
    ]
    return "; ".join(texts)
