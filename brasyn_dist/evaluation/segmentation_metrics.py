"""How well a segmentation agrees with the reference: Dice, normalised surface distance and HD95 of tumour regions and labels.

    dice/R        twice the common voxels over all voxels of both
    nsd/R         share of both surfaces that lies within the tolerance of the other one (1 mm unless told)
    voxel_nsd/R   the same with another idea of a surface, see below
    hd95/R        95th percentile of the distances from one surface to the other, the worse direction, in mm

R is a region in the challenge's form (ET; TC = NETC + ET; WT = all three) or, in the form of its tutorial, a single label (NETC,
ED; ET is both). `dice/tutorial` is the number that the tutorial's script prints: the mean over the labels 0 to 3, background
included, each smoothed by 1e-6. Background agrees with background, so it is near 1/4 or more for any segmentation.

All are computed by MONAI, which knows two kinds of surface. `nsd` takes pieces of surface between the voxels, weighed by their
area, as DeepMind's code and the BraTS scripts since 2024 do. `voxel_nsd` counts the mask's voxels that have a face neighbour
outside it, as the thesis' script did: compare the thesis' numbers with these alone. The two differ much: 0.86 and 0.70 for the
tumour of a real subject moved by two voxels. HD95 is that of border voxels.

Both empty: Dice and NSD 1, HD95 0. One of them empty: Dice and NSD 0, HD95 374 mm (the diagonal of a BraTS volume, rounded up:
the penalty of the challenge since 2023). Scores are of the whole region, not lesion by lesion.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brasyn_dist.brats import BACKGROUND, ED, ET, NETC, REGIONS, region_mask
from brasyn_dist.evaluation.image_metrics import Scores, crop_to

HD95_PENALTY = 374.0
"""mm; what HD95 counts where only one of both masks is empty."""
TOLERANCE = 1.0
"""mm; of the normalised surface distance."""
LABELS = {"NETC": NETC, "ED": ED}
"""The tutorial's labels that are no region as well."""
MEASURES = ("dice", "nsd", "voxel_nsd", "hd95")
NAMES = (*(f"{m}/{r}" for m in MEASURES for r in (*REGIONS, *LABELS)), "dice/tutorial")
"""All scores of a segmentation, in the order of the table."""
DESCRIPTIONS: Mapping[str, str] = {
    "dice": "overlap of the segmentation of the completed case with the reference, 1 where both are empty",
    "nsd": "share of both surfaces within the tolerance of the other, surfaces by area as BraTS since 2024",
    "voxel_nsd": "the same, surfaces by border voxels as in the thesis",
    "hd95": f"95th percentile of the distances between the surfaces, in mm; {HD95_PENALTY:g} where one is empty",
}


def score_labels(
    segmented_xyz: np.ndarray,
    reference_xyz: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    tolerance_mm: float = TOLERANCE,
) -> Scores:
    """Every score in NAMES of one segmentation; both in canonical labels."""
    masks = {name: tuple(region_mask(v, name) for v in (segmented_xyz, reference_xyz)) for name in REGIONS}
    masks |= {
        name: tuple(v == label for v in (segmented_xyz, reference_xyz)) for name, label in LABELS.items()
    }
    scores: Scores = {}
    for name, (segmented, reference) in masks.items():
        for measure, value in score_mask(segmented, reference, spacing_mm, tolerance_mm).items():
            scores[f"{measure}/{name}"] = value
    scores["dice/tutorial"] = tutorial_dice(segmented_xyz, reference_xyz)
    return {name: scores[name] for name in NAMES}


def score_mask(
    segmented: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """The measures of two boolean masks (x, y, z)."""
    if not segmented.any() and not reference.any():
        return {"dice": 1.0, "nsd": 1.0, "voxel_nsd": 1.0, "hd95": 0.0}
    if not segmented.any() or not reference.any():
        return {"dice": 0.0, "nsd": 0.0, "voxel_nsd": 0.0, "hd95": HD95_PENALTY}
    # MONAI's imports take seconds, which evaluations without segmentations need not wait for.
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    # Padded: at the border of the volume, a mask ends as it does anywhere else.
    inside = crop_to(segmented | reference, 0)
    x, y = (torch.from_numpy(np.pad(m[inside], 2)[None, None]) for m in (segmented, reference))
    whole: dict[str, Any] = {"include_background": True}
    metric = {**whole, "spacing": [float(s) for s in spacing_mm]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of changes in its own defaults
        values = {
            "dice": compute_dice(x, y, **whole),
            "nsd": compute_surface_dice(x, y, [tolerance_mm], use_subvoxels=True, **metric),
            "voxel_nsd": compute_surface_dice(x, y, [tolerance_mm], **metric),
            "hd95": compute_hausdorff_distance(x, y, percentile=95, **metric),
        }
    return {name: value.item() for name, value in values.items()}


def tutorial_dice(segmented_xyz: np.ndarray, reference_xyz: np.ndarray, smooth: float = 1e-6) -> float:
    """Mean smoothed Dice of the four labels, background included, as the challenge's tutorial has it."""
    values = []
    for label in (BACKGROUND, NETC, ED, ET):
        x, y = segmented_xyz == label, reference_xyz == label
        both, either = np.count_nonzero(x & y), np.count_nonzero(x) + np.count_nonzero(y)
        values.append((2 * both + smooth) / (either + smooth))
    return float(np.mean(values))
