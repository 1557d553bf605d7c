"""Rendering of reports: Jinja2 environment, palette of the style sheet, pictures as data URIs."""

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brasyn_dist.common.files import atomic_write_text

LIGHT = {
    "page": "#f4f6f8", "card": "#fff", "ink": "#18212c", "muted": "#586575", "line": "#dde3ea",
    "accent": "#1f5fa8", "tint": "#e9f1fb", "bad": "#b3261e", "good": "#176f30",
    "s1": "#1f66b8", "s2": "#c25e00", "s3": "#7a8594", "s4": "#0b7d69", "s5": "#a23b8f", "s6": "#8a6d00",
}  # fmt: skip
"""CSS variables of the light theme."""
DARK = {
    "page": "#10151b", "card": "#182029", "ink": "#e7ecf2", "muted": "#9caaba", "line": "#2b3643",
    "accent": "#7db4f5", "tint": "#1e3148", "bad": "#ff8a80", "good": "#6fd58b",
    "s1": "#6daef7", "s2": "#f2a150", "s3": "#98a5b5", "s4": "#4ccdb0", "s5": "#e08ad0", "s6": "#d9b93b",
}  # fmt: skip
"""CSS variables of the dark theme."""
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
"""Colours of series, distinguishable with colour blindness and on both backgrounds."""


@dataclass(frozen=True)
class Card:
    """A named value at the top of a report; `verdict` is coloured by `good` and precedes `more`."""

    name: str
    value: str
    more: str = ""
    verdict: str = ""
    good: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG image within the page."""

    source: str
    """Data URI."""
    alt: str
    width: int
    height: int

    @classmethod
    def of(cls, image: np.ndarray, alt: str) -> "Picture":
        """From (H, W) or (H, W, 3) uint8."""
        from PIL import Image

        plain = image[..., 0] if image.ndim == 3 and (image[..., :1] == image).all() else image
        buffer = io.BytesIO()
        Image.fromarray(plain).save(buffer, format="PNG", optimize=True)
        return cls.of_png(buffer.getvalue(), alt)

    @classmethod
    def of_png(cls, data: bytes, alt: str) -> "Picture":
        """From the bytes of a PNG file."""
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        return cls(f"data:image/png;base64,{base64.b64encode(data).decode()}", alt, width, height)


NO_OVERLAY = Markup("")


@dataclass(frozen=True)
class Tile:
    """A picture with a caption; main tiles come first on a small screen."""

    picture: Picture
    caption: str
    overlay: Markup = NO_OVERLAY
    """SVG on top of the picture."""
    main: bool = False

    @classmethod
    def of(
        cls, image: np.ndarray, caption: str, alt: str, overlay: Markup = NO_OVERLAY, main: bool = False
    ) -> "Tile":
        """From (H, W) or (H, W, 3) uint8; `alt` describes the picture in words."""
        return cls(Picture.of(image, alt), caption, overlay, main)


@cache
def environment() -> Environment:
    """The template environment of all reports."""
    made = Environment(
        loader=PackageLoader("brasyn_dist.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["anchor"] = anchor
    return made


def anchor(title: str) -> str:
    """Identifier of a section within the page."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def write_html(path: Path, template: str, **context: Any) -> None:
    """Render a template with `context` and write the file atomically."""
    page = environment().get_template(template)
    atomic_write_text(path, page.render(light=LIGHT, dark=DARK, toc=[], **context).lstrip() + "\n")
