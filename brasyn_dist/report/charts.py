"""Charts as inline SVG: drawn by matplotlib, coloured by the page.

Colours are asked for by the name of a CSS variable (`colour("s1")`): matplotlib gets a placeholder, which the finished SVG has
replaced by `var(--s1)`. So one picture serves the light and the dark page. Texts stay texts.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brasyn_dist.report.page import escape
from brasyn_dist.report.style import VARIABLES

PIXEL = 1 / 96
"""Inches of a CSS pixel: charts are drawn at the size at which they are shown, so 12 means 12 there."""
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


def colour(variable: str) -> str:
    """The placeholder of a CSS variable, for matplotlib."""
    return f"#0b0d{VARIABLES.index(variable) + 16:02x}"


def chart(
    title: str,
    description: str,
    draw: Callable[[Any], None],
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """A titled figure of what `draw(axes)` draws; `description` is what a reader who cannot see it is told."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    # Identifiers of shapes are hashes of shape and salt: no two charts of a page share one, and none is random.
    settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": title + description}
    settings |= {key: colour(variable) for key, variable in _THEMED.items()}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width * PIXEL, height * PIXEL), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = themed(buffer.getvalue(), title, description)
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{text}</figure>'


def themed(svg: str, title: str, description: str) -> str:
    """matplotlib's SVG for use within a page: no XML head, sizes left to the page, colours by variable, a description."""
    body = svg[svg.index("<svg") :]
    head, body = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    body = _IDS.sub("", _STYLES.sub("", body))
    # Coordinates to a hundredth of a point; labels, between the tags, stay as they are.
    body = _TAG.sub(lambda tag: _DIGITS.sub(r"\1", tag[0]), body)
    for variable in VARIABLES:
        body = body.replace(colour(variable), f"var(--{variable})")
    body = re.sub(r"font-family:[^;\"]*;?", "", body)
    label = escape(f"{title}. {description}")
    tight = _BETWEEN.sub("><", body).strip()
    return f'<svg {box[0]} role="img" aria-label="{label}">{tight}'


def series_text(name: str, values: Sequence[float]) -> str:
    """A series in words: where it starts, ends, and lies between."""
    known = np.asarray([v for v in values if v is not None and np.isfinite(v)], float)
    if not len(known):
        return f"{name}: no values"
    return f"{name}: from {known[0]:.4g} to {known[-1]:.4g}, between {known.min():.4g} and {known.max():.4g}"
