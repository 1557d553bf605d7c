"""Pictures of slices: inputs, target, synthetic, difference, tumour outline, as RGB arrays.

    slice_panel --> one row of tiles      grid --> rows below each other      save_png --> a file

The grey window is given, never derived from the picture: two panels with the same window can be compared.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.brats import ED, ET, MODALITIES, NETC
from brasyn_dist.common.files import atomic_path

OUTLINE_COLOUR = (255, 196, 0)
LABEL_COLOURS = {NETC: (230, 80, 60), ED: (70, 180, 90), ET: (60, 120, 230)}
_CAPTION = 16
"""Height of a tile's caption, in pixels."""
_GAP = 2
"""Pixels between tiles."""


def upright(slice_HW: np.ndarray, view: str = "axial") -> np.ndarray:
    """A slice as radiologists see it: anterior (or superior) at the top, the patient's right on the left."""
    image = slice_HW.T
    return image if view == "axial" else image[::-1]


def slice_panel(
    inputs_MHW: np.ndarray,
    target_HW: np.ndarray,
    synthetic_HW: np.ndarray,
    labels_HW: np.ndarray | None,
    available_M: np.ndarray,
    window: tuple[float, float],
    view: str = "axial",
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray:
    """(height, width, 3) uint8: the available inputs, the target, the synthetic slice and their difference, side by side.

    `window` is the (black, white) intensity; the difference runs from blue (synthetic darker by the window's width) through
    white to red. Where labels are given, the tumour's outline is drawn on target and synthetic slice.
    """
    edge = None if labels_HW is None else outline(labels_HW > 0)
    tiles = [
        captioned(grey(image, window), name) if given else captioned(blank(image), f"{name}: missing")
        for image, name, given in zip(
            (upright(x, view) for x in inputs_MHW), modalities, available_M, strict=True
        )
    ]
    for image, name in ((target_HW, "target"), (synthetic_HW, "synthetic")):
        tile = grey(image, window)
        if edge is not None:
            tile[edge] = OUTLINE_COLOUR
        tiles.append(captioned(_upright_rgb(tile, view), name))
    error = difference(synthetic_HW - target_HW, window[1] - window[0])
    tiles.append(captioned(_upright_rgb(error, view), "synthetic - target"))
    return np.concatenate(tiles, axis=1)


def label_panel(
    slices_MHW: np.ndarray,
    labels_HW: np.ndarray,
    predicted_HW: np.ndarray,
    window: tuple[float, float],
    view: str = "axial",
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray:
    """(height, width, 3) uint8: all modalities, then the first (t1c) with reference and with predicted labels in colour."""
    tiles = [
        captioned(_upright_rgb(grey(image, window), view), name)
        for image, name in zip(slices_MHW, modalities, strict=True)
    ]
    for labels, caption in ((labels_HW, "reference"), (predicted_HW, "predicted")):
        tile = grey(slices_MHW[0], window)
        for label, colour in LABEL_COLOURS.items():
            inside = labels == label
            tile[inside] = (tile[inside].astype(int) + np.array(colour)) // 2
        tiles.append(captioned(_upright_rgb(tile, view), caption))
    return np.concatenate(tiles, axis=1)


def _upright_rgb(tile_HW3: np.ndarray, view: str) -> np.ndarray:
    image = tile_HW3.transpose(1, 0, 2)
    return image if view == "axial" else image[::-1]


def grey(image_HW: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) uint8, `window` from black to white."""
    scaled = np.clip((image_HW.astype(np.float64) - window[0]) / (window[1] - window[0]), 0, 1)
    return np.repeat(np.rint(255 * scaled).astype(np.uint8)[..., None], 3, axis=-1)


def blank(image_HW: np.ndarray) -> np.ndarray:
    return np.full((*image_HW.shape, 3), 24, np.uint8)


def difference(error_HW: np.ndarray, full_scale: float) -> np.ndarray:
    """(H, W, 3) uint8: blue below, white at, red above zero; saturated at a quarter of `full_scale`."""
    strength = np.clip(error_HW.astype(np.float64) / (full_scale / 4), -1, 1)
    red, blue = 1 + np.minimum(strength, 0), 1 - np.maximum(strength, 0)
    return np.rint(255 * np.stack([red, np.minimum(red, blue), blue], -1)).astype(np.uint8)


def outline(mask_HW: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of the mask with a 4-neighbour outside it."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner


def captioned(tile_HW3: np.ndarray, text: str) -> np.ndarray:
    """The tile under a line of text, with a thin gap to its neighbour."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (tile_HW3.shape[1], _CAPTION))
    ImageDraw.Draw(strip).text((3, 2), text, fill=(235, 235, 235))
    tile = np.concatenate([np.asarray(strip), tile_HW3])
    return np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)))


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Panels below each other; narrower ones are filled with black."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def panel_tiles(rgb_HW3: np.ndarray, shape_HW: tuple[int, int]) -> list[list[np.ndarray]]:
    """The tiles of a picture that `grid` made of `slice_panel`s of (H, W) slices, row by row, without their captions.

    Raises ValueError if the picture's size is not of that kind.
    """
    columns, (width, height) = len(MODALITIES) + 3, shape_HW  # upright, a slice's rows run from left to right
    pitch = _CAPTION + height + _GAP
    if rgb_HW3.shape[1] != columns * (width + _GAP) or rgb_HW3.shape[0] % pitch:
        raise ValueError(f"{rgb_HW3.shape[:2]}: no rows of {columns} tiles of {height} x {width} pixels")
    return [
        [
            rgb_HW3[top + _CAPTION : top + _CAPTION + height, left : left + width]
            for left in range(0, rgb_HW3.shape[1], width + _GAP)
        ]
        for top in range(0, rgb_HW3.shape[0], pitch)
    ]


def save_png(path: Path | str, rgb_HW3: np.ndarray) -> None:
    """Write an RGB array as a PNG file, atomically; its folder is made if need be."""
    from PIL import Image

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(rgb_HW3).save(temporary, format="PNG")
