"""Images within a page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.report.page import escape, scroll


def embed(image: np.ndarray, alt: str) -> str:
    """<img> of (H, W) or (H, W, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return image_tag(buffer.getvalue(), alt, image.shape[1], image.shape[0])


def tiles(parts: Sequence[str]) -> str:
    """Tiles in one row, or wrapped on a small screen, the main ones first."""
    return f'<div class="tiles" style="--n:{len(parts)}">{"".join(parts)}</div>'


def tile(image: np.ndarray, caption: str, alt: str, overlay: str = "", main: bool = False) -> str:
    """A picture with a caption below; `overlay` is SVG that lies on it."""
    plain = image[..., 0] if (image[..., :1] == image).all() else image
    return (
        f'<figure class="tile{" main" if main else ""}"><div class="frame">{embed(plain, alt)}{overlay}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def embed_file(path: Path, alt: str) -> str:
    """<img> of a PNG file that may be wide: it scrolls by itself on a small screen."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
    return f'<figure class="wide">{scroll(image_tag(path.read_bytes(), alt, width, height), alt)}</figure>'


def image_tag(png: bytes, alt: str, width: int, height: int) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" loading="lazy" src="data:image/png;base64,{data}">'
