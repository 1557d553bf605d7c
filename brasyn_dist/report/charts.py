"""Charts as inline SVG, drawn by matplotlib, with the colours of the page.

A colour is given as the name of a CSS variable (`colour("s1")`). matplotlib gets a placeholder, which is
replaced by `var(--s1)` in the finished SVG, so that one chart serves the light and the dark theme. Texts
remain texts.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from brasyn_dist.report.rendering import LIGHT, SERIES

VARIABLES = ("ink", "muted", "line", "card", *SERIES)
"""CSS variables of colours in charts."""
PIXEL = 1 / 96
"""Inches of a CSS pixel: charts are drawn at the size at which they are shown."""
RASTERED = 400
"""Number of points above which they are drawn as pixels, because SVG stores every point as a shape."""
WIDTH, HEIGHT = 280, 200
_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 8.25,  # points: 11 pixels
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
}
_THEMED = {
    "grid.color": "line",
    "axes.edgecolor": "line",
    "xtick.color": "line",
    "xtick.labelcolor": "muted",
    "ytick.color": "line",
    "ytick.labelcolor": "muted",
    "axes.labelcolor": "muted",
    "text.color": "ink",
}
_BETWEEN = re.compile(r">\s+<")
_IDS = re.compile(r' id="[a-zA-Z0-9.]+_\d+"')
_STYLES = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.S)
_TAG = re.compile(r"<[^>]*>")
_DIGITS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Chart:
    """A titled SVG."""

    title: str
    svg: Markup


def colour(variable: str, raster: bool = False) -> str:
    """The placeholder of a CSS variable, for matplotlib.

    Rastered shapes have the colour of the light theme instead.
    """
    return LIGHT[variable] if raster else f"#0b0d{VARIABLES.index(variable) + 16:02x}"


def chart(
    title: str, description: str, plot: Callable[[Any], None], width: int = WIDTH, height: int = HEIGHT
) -> Chart:
    """A chart.

    Args:
        title: Caption.
        description: Content of the chart in words, for screen readers.
        plot: Called with matplotlib's axes.
        width: In CSS pixels.
        height: In CSS pixels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    # Identifiers of shapes are hashes of shape and salt: reproducible, and different in all charts of a page.
    settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": title + description}
    settings |= {key: colour(variable) for key, variable in _THEMED.items()}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width * PIXEL, height * PIXEL), layout="constrained")
        plot(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return Chart(title, themed(buffer.getvalue(), title, description))


def themed(svg: str, title: str, description: str) -> Markup:
    """SVG for use within a page: without XML head and size, with colours by variable and a description."""
    body = svg[svg.index("<svg") :]
    head, body = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    body = _IDS.sub("", _STYLES.sub("", body))
    # Coordinates are rounded to a hundredth of a point; labels, which are between the tags, are not changed.
    body = _TAG.sub(lambda tag: _DIGITS.sub(r"\1", tag[0]), body)
    for variable in VARIABLES:
        body = body.replace(colour(variable), f"var(--{variable})")
    body = re.sub(r"font-family:[^;\"]*;?", "", body)
    label = escape(f"{title}. {description}")
    tight = _BETWEEN.sub("><", body).strip()
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}">{tight}')


def series_text(name: str, values: Sequence[float]) -> str:
    """A series in words: first and last value, smallest and largest value."""
    known = np.asarray([v for v in values if v is not None and np.isfinite(v)], float)
    if not len(known):
        return f"{name}: no values"
    return f"{name}: from {known[0]:.4g} to {known[-1]:.4g}, between {known.min():.4g} and {known.max():.4g}"
