"""Single cases to look at: three planes through the tumour, each as tiles (inputs, target, synthetic, difference).

Tiles are images within the page's grid, so that they wrap on a small screen; outlines of the tumour's regions are SVG on top of
them, sharp at any size, and can be switched off.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.brats import (
    MODALITIES,
    MODALITY_NAMES,
    PREDICTIONS_MANIFEST,
    REGIONS,
    VIEW_AXES,
    VIEWS,
    Case,
    region_mask,
)
from brasyn_dist.common.panels import difference, grey, upright
from brasyn_dist.errors import BrasynError
from brasyn_dist.evaluation.image_metrics import crop_to
from brasyn_dist.evaluation.scoring import SYNTHETIC, CaseResult, load
from brasyn_dist.inference.manifest import read_manifest
from brasyn_dist.preprocessing.slicing import extract_slices
from brasyn_dist.report.page import escape, note
from brasyn_dist.report.pictures import tile, tiles
from brasyn_dist.report.score_tables import title_of

SHOWN = 2
"""Cases shown at each end."""
MARGIN = 4
"""Pixels around the brain."""
BACKDROP = 72
"""Smallest side of a tile, in pixels: a slice at the brain's edge is not blown up."""
ORDER_BY = "psnr/brain"
QUOTED = ("psnr/brain", "mae/brain", "ssim/healthy", "ssim/tumour")
OUTLINES = {"WT": "#ffc400", "TC": "#35d0ff", "ET": "#ff5fd2"}
"""Outer region first; inner ones are drawn over it."""
_REGION_NAMES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}

CONTROLS = (
    '<label class="toggle"><input type="checkbox" id="outlines" checked> Outlines of the tumour</label><ul class="legend">'
    + "".join(f'<li><i style="background:{OUTLINES[r]}"></i>{_REGION_NAMES[r]}</li>' for r in OUTLINES)
    + '<li>synthetic darker<span class="ramp"></span>brighter, by a quarter of the real 99.5th percentile or more</li></ul>'
)


def extremes(results: Sequence[CaseResult], cases: Mapping[str, Case], predictions: Path) -> str:
    """HTML of the worst and the best cases by PSNR of the brain; all of them, once, where there are few."""
    known = [r for r in results if r.scores.get(SYNTHETIC, {}).get(ORDER_BY) is not None]
    ordered = sorted(known, key=quality)
    worst, rest = ordered[:SHOWN], ordered[SHOWN:]
    chosen = [("worst", r) for r in worst] + [("best", r) for r in rest[::-1][:SHOWN]]
    if len(ordered) <= SHOWN:
        chosen = [("only" if len(ordered) == 1 else "", r) for r in ordered]
    available = given_modalities(predictions)
    parts = [case_view(result, cases[result.prediction.case], kind, available) for kind, result in chosen]
    return CONTROLS + "".join(parts) if parts else note("No case could be scored.")


def quality(result: CaseResult) -> float:
    return result.scores[SYNTHETIC][ORDER_BY] or 0.0


def given_modalities(predictions: Path) -> dict[str, tuple[str, ...]]:
    """From which modalities each case was synthesised, as far as the predictions' manifest tells."""
    try:
        manifest = read_manifest(predictions / PREDICTIONS_MANIFEST)
    except BrasynError:
        return {}
    records = manifest["records"] if manifest else {}
    return {name: record.available for name, record in records.items() if record.available}


def case_view(
    result: CaseResult, case: Case, kind: str, available: Mapping[str, Sequence[str]] | None = None
) -> str:
    """One case in three planes, each through the slice with most tumour (most brain, without labels)."""
    synthetic, volumes = load(result.prediction, case)
    modality = result.prediction.modality
    target = MODALITIES.index(modality)
    given = (available or {}).get(case.name) or [m for m in MODALITIES if m != modality]
    # One window a modality, from the real volumes: they differ by orders of magnitude.
    peaks = [max(1.0, float(np.percentile(v[v > 0], 99.5))) if (v > 0).any() else 1.0 for v in volumes.images]
    scaled = np.stack([v / p for v, p in zip(volumes.images, peaks)]).astype(np.float32)
    planes = np.concatenate([scaled, [synthetic / peaks[target]]]).astype(np.float32)
    real, labels = volumes.images[target], volumes.labels
    centre = busiest(real if labels is None or not labels.any() else labels)
    rows = [
        plane_view(
            extract_slices(planes, view)[centre[VIEW_AXES[view]]],
            None if labels is None else extract_slices(labels[None], view)[centre[VIEW_AXES[view]]][0],
            view,
            f"slice {centre[VIEW_AXES[view]]}",
            modality,
            given,
        )
        for view in VIEWS
    ]
    scores = result.scores[SYNTHETIC]
    quoted = [f"{title_of(n)} {value:.4g}" for n in QUOTED if (value := scores.get(n)) is not None]
    badge = f'<span class="badge {"bad" if kind == "worst" else "good"}">{kind}</span>' if kind else ""
    return (
        f'<article class="case"><h3>{badge}{escape(case.name)}: synthetic {MODALITY_NAMES[modality]}</h3>'
        f'<p class="note">{escape(" · ".join(quoted))}</p>{"".join(rows)}</article>'
    )


def plane_view(
    slices_PHW: np.ndarray,
    labels_HW: np.ndarray | None,
    view: str,
    where: str,
    modality: str,
    given: Sequence[str],
) -> str:
    """Tiles of one plane. `slices_PHW`: the four modalities and the synthetic slice, scaled to [0, 1]."""
    target = MODALITIES.index(modality)
    inside = crop_to(upright(slices_PHW.max(0) > 0, view), MARGIN)
    inside = tuple(at_least(s, BACKDROP, n) for s, n in zip(inside, upright(slices_PHW[0], view).shape))
    cut = [upright(s, view)[inside] for s in slices_PHW]
    outlines = "" if labels_HW is None else outline_layer(upright(labels_HW, view)[inside])
    window, real, synthetic = (0.0, 1.0), cut[target], cut[-1]
    place = f"{view} {where}"
    parts = [
        tile(grey(cut[MODALITIES.index(m)], window), MODALITY_NAMES[m], f"Input {MODALITY_NAMES[m]}, {place}")
        for m in MODALITIES
        if m in given and m != modality
    ]
    parts += [
        tile(grey(real, window), "target", f"Real {MODALITY_NAMES[modality]}, {place}", outlines, True),
        tile(
            grey(synthetic, window),
            "synthetic",
            f"Synthetic {MODALITY_NAMES[modality]}, {place}",
            outlines,
            True,
        ),
        tile(
            on_black(difference(synthetic - real, 1.0), (real > 0) | (synthetic > 0)),
            "difference",
            f"Synthetic minus real {MODALITY_NAMES[modality]}, {place}: mean absolute difference "
            f"{float(np.abs(synthetic - real)[real > 0].mean()) if (real > 0).any() else 0.0:.3f} of the window",
            outlines,
            True,
        ),
    ]
    return f'<div class="plane"><h4>{view.capitalize()}, {where}</h4>{tiles(parts)}</div>'


def on_black(image_HW3: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    """The picture with black around what is inside: white stands for no difference within the brain alone."""
    return np.where(inside_HW[..., None], image_HW3, np.uint8(0))


def outline_layer(labels_HW: np.ndarray) -> str:
    """SVG of the regions' outlines, in the pixels of a tile; nothing where there is no tumour."""
    height, width = labels_HW.shape
    paths = "".join(
        f'<path d="{path}" stroke="{OUTLINES[region]}"/>'
        for region in OUTLINES
        if (path := contour_path(region_mask(labels_HW, region)))
    )
    assert set(OUTLINES) == set(REGIONS)
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{paths}</svg>' if paths else ""


def contour_path(mask_HW: np.ndarray) -> str:
    """SVG path along the border of a mask, through the middle between pixels inside and outside."""
    from skimage.measure import find_contours

    # Pixel centres lie at half coordinates; a border of zeros closes contours at the picture's edge.
    lines = find_contours(np.pad(mask_HW, 1).astype(float), 0.5)
    return "".join("M" + "L".join(f"{x - 0.5:g} {y - 0.5:g}" for y, x in line[:-1]) + "Z" for line in lines)


def at_least(span: slice, size: int, limit: int) -> slice:
    """The span, widened about its centre to `size` as far as there is room."""
    missing = size - (span.stop - span.start)
    if missing <= 0:
        return span
    start = max(0, min(span.start - missing // 2, limit - size))
    return slice(start, min(limit, start + size))


def busiest(volume: np.ndarray) -> list[int]:
    """Along each axis, the slice with most foreground."""
    counts = [np.count_nonzero(volume, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [int(np.argmax(c)) for c in counts]
