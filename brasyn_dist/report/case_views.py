"""Slices of single cases: three planes through the tumour as tiles (inputs, target, synthetic, difference).

Tiles are pictures within the grid of the page, which wrap on a small screen. Outlines of the tumour's
regions are SVG on top of them; they are sharp at any size and can be switched off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from brasyn_dist.brats import BRATS, PREDICTIONS_MANIFEST, VIEW_AXES, VIEWS, Case
from brasyn_dist.common.panels import difference_image, grey, upright
from brasyn_dist.errors import BrasynError
from brasyn_dist.evaluation.image_metrics import bounding_box
from brasyn_dist.evaluation.scoring import SYNTHETIC, CaseScores, load_volumes
from brasyn_dist.inference.manifest import read_manifest
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.slicing import extract_slices
from brasyn_dist.report.rendering import NO_OVERLAY, Tile
from brasyn_dist.report.score_tables import title_of

SHOWN = 2
"""Number of cases with the lowest score, and of cases with the highest."""
MARGIN = 4
"""Margin around the brain in pixels."""
SMALLEST_TILE = 72
"""Smallest side of a tile in pixels, so that a slice at the brain's edge is not enlarged."""
ORDER_BY = "psnr/brain"
QUOTED = ("psnr/brain", "mae/brain", "ssim/healthy", "ssim/tumour")
_OUTLINE_COLOURS = ("#ffc400", "#35d0ff", "#ff5fd2", "#7dff6b")
_REGION_TITLES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}


@dataclass(frozen=True)
class Plane:
    """Tiles of one slice."""

    title: str
    tiles: list[Tile]


@dataclass(frozen=True)
class CaseView:
    """One case in three planes; `rank` is `worst`, `best`, `only` or empty."""

    name: str
    modality: str
    rank: str
    scores: str
    planes: list[Plane]


def outline_colours(modality_set: ModalitySet = BRATS) -> dict[str, str]:
    """Colour of each region's outline, largest region first, since the others are drawn over it."""
    regions = sorted(modality_set.regions, key=lambda r: -len(modality_set.regions[r]))
    return dict(zip(regions, _OUTLINE_COLOURS))


def region_legend(modality_set: ModalitySet = BRATS) -> dict[str, str]:
    """Colour of each region by its title."""
    return {_REGION_TITLES.get(r, r): c for r, c in outline_colours(modality_set).items()}


def case_views(
    results: Sequence[CaseScores],
    cases: Mapping[str, Case],
    predictions: Path,
    modality_set: ModalitySet = BRATS,
) -> tuple[CaseView | None, list[CaseView]]:
    """(the case with the median PSNR of the brain, the cases with the lowest and highest PSNR).

    All cases, once, if there are few; (None, []) if no case was scored.
    """
    known = [r for r in results if r.scores.get(SYNTHETIC, {}).get(ORDER_BY) is not None]
    if not known:
        return None, []
    ordered = sorted(known, key=lambda r: r.scores[SYNTHETIC][ORDER_BY] or 0.0)
    chosen = [("worst", r) for r in ordered[:SHOWN]] + [("best", r) for r in ordered[SHOWN:][::-1][:SHOWN]]
    if len(ordered) <= SHOWN:
        chosen = [("only" if len(ordered) == 1 else "", r) for r in ordered]
    available = available_modalities(predictions)

    def view(rank: str, result: CaseScores, views: Sequence[str] = VIEWS) -> CaseView:
        case = cases[result.prediction.case]
        return case_view(result, case, rank, available.get(case.name), modality_set, views)

    return view("", ordered[len(ordered) // 2], VIEWS[:1]), [view(rank, r) for rank, r in chosen]


def available_modalities(predictions: Path) -> dict[str, tuple[str, ...]]:
    """Modalities from which each case was synthesised, as far as the predictions' manifest lists them."""
    try:
        manifest = read_manifest(predictions / PREDICTIONS_MANIFEST)
    except BrasynError:
        return {}
    records = manifest["records"] if manifest else {}
    return {name: record.available for name, record in records.items() if record.available}


def case_view(
    result: CaseScores,
    case: Case,
    rank: str,
    available: Sequence[str] | None = None,
    modality_set: ModalitySet = BRATS,
    views: Sequence[str] = VIEWS,
) -> CaseView:
    """One case, each plane through the slice with most tumour (without labels: most brain)."""
    synthetic, volumes = load_volumes(result.prediction, case, modality_set)
    modality = result.prediction.modality
    target = volumes.modalities.index(modality)
    # One grey scale for each modality, from the real volumes: they differ by orders of magnitude.
    peaks = [max(1.0, float(np.percentile(v[v > 0], 99.5))) if (v > 0).any() else 1.0 for v in volumes.images]
    scaled = np.stack([v / p for v, p in zip(volumes.images, peaks)]).astype(np.float32)
    stacked = np.concatenate([scaled, [synthetic / peaks[target]]]).astype(np.float32)
    real, labels = volumes.images[target], volumes.labels
    centre = busiest_slices(real if labels is None or not labels.any() else labels)
    inputs = [m for m in available or volumes.modalities if m != modality]
    planes = []
    for view in views:
        number = centre[VIEW_AXES[view]]
        slices = dict(zip((*volumes.modalities, SYNTHETIC), extract_slices(stacked, view)[number]))
        labels_HW = None if labels is None else extract_slices(labels[None], view)[number][0]
        title = f"{view.capitalize()}, slice {number}"
        tiles = plane_tiles(slices, labels_HW, view, f"{view} slice {number}", modality, inputs, modality_set)
        planes.append(Plane(title, tiles))
    scores = result.scores[SYNTHETIC]
    quoted = [f"{title_of(n)} {value:.4g}" for n in QUOTED if (value := scores.get(n)) is not None]
    return CaseView(case.name, modality_set.title(modality), rank, " · ".join(quoted), planes)


def plane_tiles(
    slices: Mapping[str, np.ndarray],
    labels_HW: np.ndarray | None,
    view: str,
    where: str,
    modality: str,
    inputs: Sequence[str],
    modality_set: ModalitySet = BRATS,
) -> list[Tile]:
    """Tiles of one plane. `slices`: (H, W) of each modality and of `synthetic`, scaled to [0, 1]."""
    cut = {name: upright(s, view) for name, s in slices.items()}
    shape = cut[SYNTHETIC].shape
    box = bounding_box(np.max(list(cut.values()), axis=0) > 0, MARGIN)
    inside = tuple(at_least(s, SMALLEST_TILE, n) for s, n in zip(box, shape))
    cut = {name: s[inside] for name, s in cut.items()}
    outlines = NO_OVERLAY
    if labels_HW is not None:
        outlines = outline_layer(upright(labels_HW, view)[inside], modality_set)
    window, real, synthetic = (0.0, 1.0), cut[modality], cut[SYNTHETIC]
    brain = real > 0
    error = float(np.abs(synthetic - real)[brain].mean()) if brain.any() else 0.0
    # White stands for no difference, but only within the brain.
    difference = difference_image(synthetic - real, 1.0)
    difference = np.where((brain | (synthetic > 0))[..., None], difference, np.uint8(0))
    title = modality_set.title(modality)
    tiles = [
        Tile.of(grey(cut[m], window), modality_set.title(m), f"Input {modality_set.title(m)}, {where}")
        for m in inputs
    ]
    for image, caption, alt in (
        (grey(real, window), "target", f"Real {title}, {where}"),
        (grey(synthetic, window), SYNTHETIC, f"Synthetic {title}, {where}"),
        (difference, "difference", f"Synthetic minus real {title}, {where}: mean absolute "
                                   f"difference {error:.3f} of the grey scale"),
    ):  # fmt: skip
        tiles.append(Tile.of(image, caption, alt, outlines, main=True))
    return tiles


def outline_layer(labels_HW: np.ndarray, modality_set: ModalitySet = BRATS) -> Markup:
    """SVG of the regions' outlines, in the pixels of a tile; empty without a tumour."""
    height, width = labels_HW.shape
    paths = "".join(
        f'<path d="{path}" stroke="{colour}"/>'
        for region, colour in outline_colours(modality_set).items()
        if (path := contour_path(np.isin(labels_HW, modality_set.regions[region])))
    )
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{paths}</svg>' if paths else "")


def contour_path(mask_HW: np.ndarray) -> str:
    """SVG path along the border of a mask, through the middle between pixels inside and outside."""
    from skimage.measure import find_contours

    # Pixel centres lie at half coordinates; a border of zeros closes contours at the edge of the image.
    lines = find_contours(np.pad(mask_HW, 1).astype(float), 0.5)
    return "".join("M" + "L".join(f"{x - 0.5:g} {y - 0.5:g}" for y, x in line[:-1]) + "Z" for line in lines)


def at_least(span: slice, size: int, limit: int) -> slice:
    """The span, widened about its centre to `size` pixels, within 0 and `limit`."""
    missing = size - (span.stop - span.start)
    if missing <= 0:
        return span
    start = max(0, min(span.start - missing // 2, limit - size))
    return slice(start, min(limit, start + size))


def busiest_slices(volume: np.ndarray) -> list[int]:
    """Along each axis, the slice with most foreground."""
    counts = [np.count_nonzero(volume, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [int(np.argmax(c)) for c in counts]
