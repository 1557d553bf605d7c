"""Overlap scores against distance transforms, marching cubes and counting: none of MONAI's code in the truth."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt
from skimage.measure import marching_cubes

from brasyn_dist.brats import ED, ET, NETC
from brasyn_dist.data.nifti import read_labels
from brasyn_dist.evaluation.image_metrics import bounding_box
from brasyn_dist.evaluation.segmentation_metrics import (
    HD95_PENALTY,
    metric_names,
    score_labels,
    score_mask,
    tutorial_dice,
)

SHAPE = (26, 30, 24)
Spacing = tuple[float, float, float]


def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(SHAPE)
    return sum((g - c) ** 2 for g, c in zip(grid, centre)) < radius**2


def tumour(centre: tuple[float, ...]) -> np.ndarray:
    """Labels: oedema around enhancement around necrosis."""
    rings = [ball(centre, r) for r in (3.2, 5.1, 9.3)]
    return np.select(rings, [NETC, ET, ED], 0).astype(np.uint8)


def distances_of_voxels(a: np.ndarray, b: np.ndarray, spacing: Spacing) -> np.ndarray:
    """From the border voxels of a to those of b, by an exact distance transform."""
    edge_a, edge_b = (m & ~binary_erosion(m) for m in (a, b))
    return distance_transform_edt(~edge_b, sampling=spacing)[edge_a]


def surface_pieces(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Area of the marching-cubes surface within each cell of eight voxel centres, float (x+1, y+1, z+1)."""
    vertices, faces, _, _ = marching_cubes(
        np.pad(mask, 1).astype(float), 0.5, method="lorensen", allow_degenerate=False
    )
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    cells = np.floor((a + b + c) / 3).astype(int)
    areas = np.linalg.norm(np.cross((b - a) * spacing, (c - a) * spacing), axis=1) / 2
    pieces = np.zeros([n + 1 for n in mask.shape])
    np.add.at(pieces, tuple(cells.T), areas)
    return pieces


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("tolerance", [1.0, 2.5])
def test_surface_scores_against_distance_transforms(spacing: Spacing, tolerance: float):
    x, y = ball((12, 14, 11), 7.4), ball((13, 16, 11), 8.2) & ~ball((18, 16, 11), 3.0)
    scores = score_mask(x, y, spacing, tolerance)
    there, back = distances_of_voxels(x, y, spacing), distances_of_voxels(y, x, spacing)
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    assert scores["voxel_nsd"] == pytest.approx(near / (len(there) + len(back)), abs=1e-6)
    assert scores["hd95"] == pytest.approx(max(np.percentile(d, 95) for d in (there, back)), abs=1e-5)
    assert scores["dice"] == pytest.approx(2 * np.count_nonzero(x & y) / (x.sum() + y.sum()), abs=1e-6)
    area_x, area_y = surface_pieces(x, spacing), surface_pieces(y, spacing)
    to_y = distance_transform_edt(area_y == 0, sampling=spacing)
    to_x = distance_transform_edt(area_x == 0, sampling=spacing)
    near_area = area_x[to_y <= tolerance].sum() + area_y[to_x <= tolerance].sum()
    assert scores["nsd"] == pytest.approx(near_area / (area_x.sum() + area_y.sum()), abs=1e-4)
    assert abs(scores["nsd"] - scores["voxel_nsd"]) > 0.01  # a test that cannot tell them apart tests nothing


def test_regions_and_labels_are_the_right_ones():
    """Each disturbed label lowers exactly the scores that contain it."""
    reference = tumour((12, 14, 11))
    expected = {
        NETC: {"ET": 1, "TC": 0, "WT": 0, "NETC": 0, "ED": 1},
        ED: {"ET": 1, "TC": 1, "WT": 0, "NETC": 1, "ED": 0},
        ET: {"ET": 0, "TC": 0, "WT": 0, "NETC": 1, "ED": 1},
    }
    for label, right in expected.items():
        segmented = np.where((reference == label) & (np.indices(SHAPE)[0] > 12), 0, reference)
        scores = score_labels(segmented, reference)
        assert tuple(scores) == metric_names()
        for region, value in right.items():
            assert (scores[f"dice/{region}"] == 1) == bool(value), (label, region)


def test_empty_masks_follow_the_stated_convention():
    nothing, something = np.zeros(SHAPE, np.uint8), tumour((12, 14, 11))
    both = score_labels(nothing, nothing)
    assert all(v == (0 if n.startswith("hd95") else 1) for n, v in both.items())
    for one in (score_labels(something, nothing), score_labels(nothing, something)):
        assert all(
            one[f"{m}/{r}"] == 0 for m in ("dice", "nsd", "voxel_nsd") for r in ("ET", "TC", "WT", "ED")
        )
        assert one["hd95/WT"] == HD95_PENALTY == 374


def test_no_enhancement_in_both_counts_as_right():
    reference = np.where(tumour((12, 14, 11)) == ET, NETC, tumour((12, 14, 11)))
    scores = score_labels(np.roll(reference, 1, 0), reference)
    assert scores["dice/ET"] == 1 and scores["hd95/ET"] == 0 and scores["dice/TC"] < 1


def test_a_tumour_at_the_edge_of_the_volume_has_a_surface_there():
    """Cut off by the volume's end, half a ball: the cut is surface as well."""
    x = np.zeros((20, 20, 10), bool)
    x[4:14, 5:15, 0:8] = True
    y = np.zeros_like(x)
    y[4:14, 5:15, 3:8] = True
    scores = score_mask(x, y, (1, 1, 1), 1.0)
    padded = score_mask(np.pad(x, 5), np.pad(y, 5), (1, 1, 1), 1.0)
    assert scores == padded and scores["nsd"] < 1


def test_tutorial_dice_by_counting():
    reference = np.zeros((10, 10, 1), np.uint8)
    reference[:2, :, 0], reference[2:4, :, 0], reference[4:5, :, 0] = 1, 2, 3
    segmented = np.roll(reference, 1, 0)
    # Background 50 of 50 + 50 voxels less one row each way, the labels half, half and none.
    assert tutorial_dice(segmented, reference) == pytest.approx((0.8 + 0.5 + 0.5 + 0.0) / 4, abs=1e-6)
    assert tutorial_dice(np.zeros_like(reference), np.zeros_like(reference)) == pytest.approx(1)


@pytest.mark.real
def test_a_real_tumour_against_distance_transforms(shared: Path):
    """An irregular mask of 50,000 voxels, moved and eroded in part."""
    name = "BraTS-GLI-00000-000"
    reference = read_labels(shared / f"data/{name}/{name}-seg.nii.gz").array > 0
    segmented = np.roll(reference, 2, axis=0)
    segmented[::9] = False
    scores = score_mask(segmented, reference, (1, 1, 1), 1.0)
    inside = bounding_box(segmented | reference, 3)
    x, y = segmented[inside], reference[inside]
    there, back = distances_of_voxels(x, y, (1, 1, 1)), distances_of_voxels(y, x, (1, 1, 1))
    near = np.count_nonzero(there <= 1) + np.count_nonzero(back <= 1)
    assert scores["voxel_nsd"] == pytest.approx(near / (len(there) + len(back)), abs=1e-6)
    assert scores["hd95"] == pytest.approx(max(np.percentile(d, 95) for d in (there, back)), abs=1e-5)
    area_x, area_y = surface_pieces(x, (1, 1, 1)), surface_pieces(y, (1, 1, 1))
    to_y, to_x = (distance_transform_edt(a == 0) for a in (area_y, area_x))
    near_area = area_x[to_y <= 1].sum() + area_y[to_x <= 1].sum()
    # Marching cubes splits a few ambiguous cells otherwise than the table of areas does.
    assert scores["nsd"] == pytest.approx(near_area / (area_x.sum() + area_y.sum()), abs=5e-3)
