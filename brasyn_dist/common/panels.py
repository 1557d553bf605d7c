"""Panels of slices as RGB arrays: inputs, target, synthetic slice, difference, outline of the tumour.

    slice_panel --> one row of tiles      grid --> rows below each other      save_png --> a file

The grey window is an argument and is never derived from the image, so that panels with the same window can
be compared.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.common.files import atomic_path

OUTLINE_COLOUR = (255, 196, 0)
LABEL_COLOURS = ((230, 80, 60), (70, 180, 90), (60, 120, 230), (220, 180, 60), (160, 90, 200))
"""Of labels 1, 2, ...; repeated for larger ones."""
_CAPTION = 16
"""Height of the caption of a tile in pixels."""
_GAP = 2
"""Pixels between tiles."""


def upright(image: np.ndarray, view: str = "axial") -> np.ndarray:
    """A slice (H, W) or (H, W, 3) in radiological display.

    Anterior (or superior) is at the top, the patient's right on the left.
    """
    image = image.swapaxes(0, 1)
    return image if view == "axial" else image[::-1]


def slice_panel(
    inputs_MHW: np.ndarray,
    target_HW: np.ndarray,
    synthetic_HW: np.ndarray,
    labels_HW: np.ndarray | None,
    available_M: np.ndarray,
    window: tuple[float, float],
    view: str,
    modalities: Sequence[str],
) -> np.ndarray:
    """The available inputs, the target, the synthetic slice and their difference, side by side.

    Args:
        inputs_MHW: Slices of all modalities.
        target_HW: Real slice of the target modality.
        synthetic_HW: Synthetic slice.
        labels_HW: Tumour labels; their outline is drawn on the target and on the synthetic slice.
        available_M: Whether each modality is an input.
        window: (black, white) intensity. The difference runs from blue (synthetic darker) through white to
        red.
        view: Of the slices.
        modalities: Captions of the inputs.

    Returns:
        (height, width, 3) uint8.
    """
    edge = None if labels_HW is None else outline(labels_HW > 0)
    tiles = [
        captioned(grey(image, window), name)
        if given
        else captioned(np.full((*image.shape, 3), 24, np.uint8), f"{name}: missing")
        for image, name, given in zip(
            (upright(x, view) for x in inputs_MHW), modalities, available_M, strict=True
        )
    ]
    for image, name in ((target_HW, "target"), (synthetic_HW, "synthetic")):
        tile = grey(image, window)
        if edge is not None:
            tile[edge] = OUTLINE_COLOUR
        tiles.append(captioned(upright(tile, view), name))
    error = difference_image(synthetic_HW - target_HW, window[1] - window[0])
    tiles.append(captioned(upright(error, view), "synthetic - target"))
    return np.concatenate(tiles, axis=1)


def label_panel(
    slices_MHW: np.ndarray,
    labels_HW: np.ndarray,
    predicted_HW: np.ndarray,
    window: tuple[float, float],
    view: str,
    modalities: Sequence[str],
) -> np.ndarray:
    """(height, width, 3) uint8: all modalities, then the first with reference and predicted labels."""
    tiles = [
        captioned(upright(grey(image, window), view), name)
        for image, name in zip(slices_MHW, modalities, strict=True)
    ]
    for labels, caption in ((labels_HW, "reference"), (predicted_HW, "predicted")):
        tile = grey(slices_MHW[0], window)
        for label in np.unique(labels[labels > 0]):
            inside, colour = labels == label, LABEL_COLOURS[(int(label) - 1) % len(LABEL_COLOURS)]
            tile[inside] = (tile[inside].astype(int) + np.array(colour)) // 2
        tiles.append(captioned(upright(tile, view), caption))
    return np.concatenate(tiles, axis=1)


def grey(image_HW: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) uint8, `window` from black to white."""
    scaled = np.clip((image_HW.astype(np.float64) - window[0]) / (window[1] - window[0]), 0, 1)
    return np.repeat(np.rint(255 * scaled).astype(np.uint8)[..., None], 3, axis=-1)


def difference_image(error_HW: np.ndarray, full_scale: float) -> np.ndarray:
    """(H, W, 3) uint8: blue below 0, white at 0, red above 0; saturated at a quarter of `full_scale`."""
    strength = np.clip(error_HW.astype(np.float64) / (full_scale / 4), -1, 1)
    red, blue = 1 + np.minimum(strength, 0), 1 - np.maximum(strength, 0)
    return np.rint(255 * np.stack([red, np.minimum(red, blue), blue], -1)).astype(np.uint8)


def outline(mask_HW: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of the mask with a 4-neighbour outside it."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner


def captioned(tile_HW3: np.ndarray, text: str) -> np.ndarray:
    """The tile with a line of text above it and a gap at the right and below."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (tile_HW3.shape[1], _CAPTION))
    ImageDraw.Draw(strip).text((3, 2), text, fill=(235, 235, 235))
    tile = np.concatenate([np.asarray(strip), tile_HW3])
    return np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)))


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Panels below each other; narrower ones are padded with black."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def panel_tiles(rgb_HW3: np.ndarray, shape_HW: tuple[int, int], columns: int) -> list[list[np.ndarray]]:
    """Tiles of a grid of panels, row by row, without their captions.

    Args:
        rgb_HW3: Result of `grid` of panels of (H, W) slices.
        shape_HW: Shape of the slices.
        columns: Tiles in a row.

    Raises:
        ValueError: The image has another size.
    """
    width, height = shape_HW  # in radiological display, the rows of a slice run from left to right
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
    """Write an RGB array as a PNG file atomically; its folder is created."""
    from PIL import Image

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(rgb_HW3).save(temporary, format="PNG")
