"""Phantom cases: BraTS conventions in files, the contrasts of real sequences in pictures."""

import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label as components

from brasyn_dist.brats import ED, ET, MODALITIES, NETC, VOLUME_SHAPE, find_case
from brasyn_dist.cli.phantom import main
from brasyn_dist.data.nifti import read_case
from brasyn_dist.phantom import make_case, write_case
from brasyn_dist.phantom.anatomy import TISSUES, make_anatomy
from brasyn_dist.phantom.grid import make_grid
from brasyn_dist.phantom.scanner import scan_all
from brasyn_dist.preprocessing.slicing import kept_slices
from tests.conftest import REPOSITORY

SMALL = (48, 48, 40)


@pytest.fixture(scope="module")
def glioma():
    """Full-size volumes (4, x, y, z) and labels."""
    volumes, labels = make_case(0, "GLI")
    return np.stack([volumes[m] for m in MODALITIES]), labels


@pytest.fixture(scope="module")
def tissues():
    """Mean signal of voxels that are nearly all one tissue, by modality and tissue, over several "
    "small heads."""
    sums: dict[tuple[str, str], list[float]] = {}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        anatomy = make_anatomy(rng, "GLI", (120, 120, 78))
        for modality, volume in scan_all(rng, anatomy, "GLI").items():
            signal = volume[anatomy.brain] / np.median(volume[anatomy.brain])
            for tissue, fraction in zip(TISSUES, anatomy.fractions):
                if (pure := fraction > 0.8).any():
                    sums.setdefault((modality, tissue), []).append(float(signal[pure].mean()))
    return {key: float(np.mean(values)) for key, values in sums.items()}


def test_form_of_the_data(glioma):
    volumes, labels = glioma
    assert volumes.shape == (4, *VOLUME_SHAPE) and volumes.dtype == np.int16
    assert labels.shape == VOLUME_SHAPE and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, NETC, ED, ET}
    brain = volumes[1] > 0
    for volume in volumes:
        np.testing.assert_array_equal(volume > 0, brain)
        assert volume[~brain].max() == volume[~brain].min() == 0
    assert not labels[~brain].any()


def test_brain_is_as_large_as_real_ones_and_where_they_are(glioma):
    """Ten real subjects: 1.24 to 1.58 litres, x 49..189, y 40..216, z 0..149."""
    brain = glioma[0][1] > 0
    assert 1.2e6 < brain.sum() < 1.75e6
    assert components(brain)[1] == 1
    where = np.argwhere(brain)
    assert (where.min(0) >= (44, 34, 0)).all() and (where.max(0) <= (194, 222, 152)).all()
    # Slices that training keeps, each view: a real case has about 125, 125, 153.
    counts = [len(kept_slices(glioma[0] > 0, view)) for view in ("axial", "sagittal", "coronal")]
    assert all(abs(count - real) < 25 for count, real in zip(counts, (125, 125, 153)))


def test_sequences_have_the_contrasts_of_real_ones(tissues):
    def order(modality: str, *names: str) -> None:
        values = [tissues[modality, name] for name in names]
        assert values == sorted(values), dict(zip(names, values))

    order("t1n", "csf", "grey", "white")
    order("t1n", "oedema", "white")
    order("t1c", "csf", "grey", "white", "enhancing")
    order("t2w", "white", "grey", "oedema", "csf")
    order("t2f", "csf", "white", "grey", "oedema")
    assert tissues["t1c", "enhancing"] > 1.5 * tissues["t1n", "enhancing"], (
        "contrast agent shows in t1c alone"
    )
    assert tissues["t1c", "necrosis"] < tissues["t1c", "white"] < 0.7 * tissues["t1c", "enhancing"]
    assert (
        tissues["t2w", "csf"] > 2 * tissues["t2w", "white"]
        and tissues["t2f", "csf"] < 0.6 * tissues["t2f", "white"]
    )


def test_one_sequence_is_predictable_from_the_others_but_not_trivially(glioma):
    """A linear map explains a part only (in ten real subjects 4 to 82 %); the rest is for a network."""
    volumes, _ = glioma
    voxels = volumes[:, volumes[1] > 0][:, ::7].astype(float)
    voxels = (voxels - voxels.mean(1, keepdims=True)) / voxels.std(1, keepdims=True)
    for target in range(4):
        others = np.vstack([np.delete(voxels, target, 0), np.ones(voxels.shape[1])])
        weights = np.linalg.lstsq(others.T, voxels[target], rcond=None)[0]
        explained = 1 - np.mean((voxels[target] - weights @ others) ** 2)
        assert 0.04 < explained < 0.93, MODALITIES[target]


def test_intensities_spread_as_between_real_scanners():
    """Medians of ten real subjects lie between 101 and 1993, with a standard deviation of the "
    "logarithm of 0.4 to 0.9."""
    medians = np.array([
        [np.median(v[v > 0]) for v in make_case(seed, "GLI", SMALL)[0].values()] for seed in range(30)
    ])  # fmt: skip
    assert medians.min() > 80 and medians.max() < 3000
    spread = np.log(medians).std(0)
    assert (spread > 0.25).all() and (spread < 0.6).all()
    assert np.corrcoef(np.log(medians).T).min() > 0.4, "scans of one subject go up and down together"


def test_gliomas_are_one_large_mass_and_metastases_several_small_ones():
    def lesions(kind: str, seed: int) -> np.ndarray:
        """Sizes in voxels of connected tumour cores, largest first; specks left out."""
        core = np.isin(make_case(seed, kind, (120, 120, 78))[1], (NETC, ET))  # type: ignore[arg-type]
        sizes = np.bincount(components(core)[0].ravel())[1:]
        return np.sort(sizes[sizes > 8])[::-1]

    gliomas = [lesions("GLI", seed) for seed in range(5)]
    metastases = [lesions("MET", seed) for seed in range(5)]
    # Two-millimetre voxels: 1 ml is 125.
    assert all(sizes[0] > 4 * 125 and sizes[0] > 0.9 * sizes.sum() for sizes in gliomas)
    assert all(sizes[0] < 12 * 125 for sizes in metastases)
    assert np.median([len(sizes) for sizes in metastases]) >= 3


def test_some_gliomas_do_not_enhance():
    enhancing = [bool((make_case(seed, "GLI", SMALL)[1] == ET).any()) for seed in range(30)]
    assert 0 < enhancing.count(False) < 15


def test_masks_differ_between_scans_of_metastases_only():
    def masks(kind: str) -> list[np.ndarray]:
        return [v > 0 for v in make_case(4, kind, (120, 120, 78))[0].values()]  # type: ignore[arg-type]

    assert all((m == masks("GLI")[0]).all() for m in masks("GLI"))
    different = masks("MET")
    assert any((m != different[0]).any() for m in different)
    assert all(abs(m.sum() / different[0].sum() - 1) < 0.2 for m in different)


def test_a_seed_is_a_subject():
    for kind in ("GLI", "MET"):
        first, again, other = (make_case(seed, kind, SMALL) for seed in (1, 1, 2))
        for modality in MODALITIES:
            np.testing.assert_array_equal(first[0][modality], again[0][modality])
            assert (first[0][modality] != other[0][modality]).any()
        np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("shape", [(32, 32, 24), (48, 48, 40), (64, 80, 30)])
def test_any_shape_holds_a_whole_head(shape):
    volumes, labels = make_case(1, "GLI", shape)
    brain = volumes["t1c"] > 0
    assert brain.shape == shape
    assert 0.1 < brain.mean() < 0.3
    assert labels.any()


def test_lesions_push_tissue_away():
    from brasyn_dist.phantom.lesions import Lesion, push_away

    grid = make_grid(np.random.default_rng(0), VOLUME_SHAPE)
    moved = push_away(grid, [Lesion((30.0, 0.0, 10.0), 20.0, 3.0, 8.0, 5.0)])
    i, j, k = (int(np.abs(a - at).argmin()) for a, at in ((grid.x, 6.0), (grid.y, 0.0), (grid.z, 10.0)))
    # 24 mm towards the midline of the centre lies what was further out: tissue went that way.
    assert moved.x[i, j, k] > grid.x[i, 0, 0] + 1
    far = moved.x[0, 0, 0] - grid.x[0, 0, 0]
    assert far == 0


def test_files_follow_brats_conventions(tmp_path):
    folder = write_case(tmp_path, "BraTS-GLI-00000-000", 0, shape=SMALL)
    assert sorted(p.name for p in folder.iterdir()) == [
        f"BraTS-GLI-00000-000-{kind}.nii.gz" for kind in ("seg", *MODALITIES)
    ]
    volumes, labels = make_case(0, shape=SMALL)
    for modality in MODALITIES:
        image = nibabel.load(folder / f"BraTS-GLI-00000-000-{modality}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), volumes[modality])
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(
            image.affine, [[-1, 0, 0, 0], [0, -1, 0, 47], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        assert [int(image.header[c]) for c in ("qform_code", "sform_code", "xyzt_units")] == [1, 1, 2]
    case = read_case(find_case(folder))
    np.testing.assert_array_equal(case.images, [volumes[m] for m in MODALITIES])
    np.testing.assert_array_equal(case.labels, labels)


def test_without_segmentation(tmp_path):
    assert "seg" not in find_case(write_case(tmp_path, "a", 0, shape=SMALL, segmentation=False)).files


@pytest.mark.real
def test_headers_equal_a_real_subjects(shared, tmp_path):
    name = "BraTS-GLI-00000-000"
    ours = nibabel.load(write_case(tmp_path, name, 0) / f"{name}-t1n.nii.gz").header
    theirs = nibabel.load(shared / "data" / name / f"{name}-t1n.nii.gz").header
    for field in theirs:
        np.testing.assert_array_equal(ours[field], theirs[field], err_msg=field)


def test_command_line_writes_cohorts_and_goes_on(tmp_path):
    arguments = [str(tmp_path), "--gli", "2", "--met", "1", "--seed", "3", "--shape", "32", "32", "24"]
    assert main([*arguments, "--workers", "1"]) == 0
    folders = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*"))
    assert folders == [
        "train_gli/BraTS-GLI-00000-000", "train_gli/BraTS-GLI-00001-000", "train_met/BraTS-MET-00000-000",
    ]  # fmt: skip
    files = {p: p.read_bytes() for p in tmp_path.glob("*/*/*.nii.gz")}
    (tmp_path / "train_gli" / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-seg.nii.gz").unlink()
    times = {p: p.stat().st_mtime_ns for p in files if p.exists()}
    # As people run it: a module's own functions do not reach the workers of another process by themselves.
    command = [sys.executable, "-m", "brasyn_dist", "phantom", *arguments, "--workers", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert {p: p.read_bytes() for p in tmp_path.glob("*/*/*.nii.gz")} == files, (
        "what was cut off is written again"
    )
    written = {p.parent.name for p, time in times.items() if p.stat().st_mtime_ns != time}
    assert written == {"BraTS-GLI-00001-000"}
    assert "3 cases" in done.stdout and "phantom cases: 3/3" in done.stderr
