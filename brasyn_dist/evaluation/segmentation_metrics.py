"""Segmentation metrics of tumour regions and labels: Dice, normalised surface distance (NSD) and HD95.

    dice/R        twice the common voxels over all voxels of both masks
    nsd/R         share of both surfaces that lies within the tolerance of the other surface (default 1 mm)
    voxel_nsd/R   the same with another definition of a surface, see below
    hd95/R        95th percentile of the distances from one surface to the other, the larger direction, in mm

R is a region of the modality set (BraTS: ET; TC = NETC + ET; WT = all three) or a single label that is not
a region by itself (BraTS: NETC, ED). `dice/tutorial` is the number that the script of the challenge's
tutorial prints: the mean over all labels, background included, each smoothed by 1e-6. Background agrees
with background, so it is near 1/4 or more for any segmentation.

MONAI computes the metrics. It has two definitions of a surface. `nsd` uses pieces of surface between the
voxels, weighted by their area, as DeepMind's code and the BraTS scripts since 2024 do. `voxel_nsd` counts
the voxels of the mask that have a face neighbour outside of it, as the script of the thesis did; compare
the numbers of the thesis only with these. The two differ much: 0.86 and 0.70 for the tumour of a real
subject moved by two voxels. HD95 uses border voxels.

Both masks empty: Dice and NSD 1, HD95 0. One mask empty: Dice and NSD 0, HD95 374 mm (the diagonal of a
BraTS volume, rounded up; the penalty of the challenge since 2023). Metrics are of the whole region, not of
single lesions.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brasyn_dist.brats import BRATS, ED, LABEL_NAMES, NETC
from brasyn_dist.evaluation.image_metrics import MetricValues, bounding_box
from brasyn_dist.modality_set import ModalitySet

HD95_PENALTY = 374.0
"""HD95 in mm if exactly one of both masks is empty."""
SMOOTH = 1e-6
"""Of the tutorial's Dice."""
TOLERANCE = 1.0
"""Default tolerance of the normalised surface distance, in mm."""
TUTORIAL = "dice/tutorial"
_SHORT_NAMES = {LABEL_NAMES[NETC]: "NETC", LABEL_NAMES[ED]: "ED"}
DESCRIPTIONS: Mapping[str, str] = {
    "dice": "overlap of the segmentation of the completed case with the reference, 1 if both are empty",
    "nsd": "share of both surfaces within the tolerance of the other, surfaces by area as BraTS since 2024",
    "voxel_nsd": "the same, surfaces by border voxels as in the thesis",
    "hd95": "95th percentile of the distances between the surfaces, in mm; "
    f"{HD95_PENALTY:g} if one mask is empty",
}
"""Metrics in the order of the table."""


def masks_of(modality_set: ModalitySet = BRATS) -> dict[str, tuple[int, ...]]:
    """Labels of each mask by name: regions, then labels that are not a region by themselves."""
    single = {label for labels in modality_set.regions.values() if len(labels) == 1 for label in labels}
    labels = {n: label for label, n in modality_set.labels.items() if label not in single}
    return dict(modality_set.regions) | {_SHORT_NAMES.get(n, n): (label,) for n, label in labels.items()}


def metric_names(modality_set: ModalitySet = BRATS) -> tuple[str, ...]:
    """All metrics of a segmentation, in the order of the table."""
    return (*(f"{metric}/{mask}" for metric in DESCRIPTIONS for mask in masks_of(modality_set)), TUTORIAL)


def score_labels(
    segmented_xyz: np.ndarray,
    reference_xyz: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    tolerance_mm: float = TOLERANCE,
    modality_set: ModalitySet = BRATS,
) -> MetricValues:
    """Every metric in `metric_names` of one segmentation; both volumes have canonical labels."""
    values: MetricValues = {}
    for name, labels in masks_of(modality_set).items():
        segmented, reference = (np.isin(v, labels) for v in (segmented_xyz, reference_xyz))
        for metric, value in score_mask(segmented, reference, spacing_mm, tolerance_mm).items():
            values[f"{metric}/{name}"] = value
    values[TUTORIAL] = tutorial_dice(segmented_xyz, reference_xyz, (0, *modality_set.labels))
    return {name: values[name] for name in metric_names(modality_set)}


def score_mask(
    segmented: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """The metrics of two boolean masks (x, y, z)."""
    if not segmented.any() and not reference.any():
        return {"dice": 1.0, "nsd": 1.0, "voxel_nsd": 1.0, "hd95": 0.0}
    if not segmented.any() or not reference.any():
        return {"dice": 0.0, "nsd": 0.0, "voxel_nsd": 0.0, "hd95": HD95_PENALTY}
    # MONAI takes seconds to import; evaluations without segmentations do not need it.
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    # Padded, so that a mask that ends at the border of the volume has a surface there.
    inside = bounding_box(segmented | reference, 0)
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


def tutorial_dice(
    segmented_xyz: np.ndarray,
    reference_xyz: np.ndarray,
    labels: Sequence[int] = (0, *LABEL_NAMES),
) -> float:
    """Mean smoothed Dice of all labels, background included, as the challenge's tutorial computes it."""
    values = []
    for label in labels:
        x, y = segmented_xyz == label, reference_xyz == label
        both, either = np.count_nonzero(x & y), np.count_nonzero(x) + np.count_nonzero(y)
        values.append((2 * both + SMOOTH) / (either + SMOOTH))
    return float(np.mean(values))
