"""BraTS cases on disk with known voxels, written by nibabel alone."""

from pathlib import Path

import nibabel
import numpy as np

NAMES_2023 = {"t1c": "-t1c", "t1n": "-t1n", "t2f": "-t2f", "t2w": "-t2w", "seg": "-seg"}
NAMES_2021 = {"t1c": "_t1ce", "t1n": "_t1", "t2f": "_flair", "t2w": "_t2", "seg": "_seg"}
MODALITIES = ("t1c", "t1n", "t2f", "t2w")
SHAPE = (36, 40, 28)

LPS = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])
"""As BraTS has it."""


def brain(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Modalities (int16, ellipsoid of random values, 0 outside) and labels (uint8, canonical), "
    "(x, y, z) in LPS order."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grid))
    images = {
        m: np.where(radius < 1, rng.integers(1, 900 + 300 * i, shape), 0).astype(np.int16)
        for i, m in enumerate(MODALITIES)
    }
    labels = np.select([radius < 0.15, radius < 0.3, radius < 0.45], [1, 3, 2], 0).astype(np.uint8)
    return images, labels


def save(path: Path, array: np.ndarray, affine: np.ndarray = LPS, dtype: type | str = np.int16) -> Path:
    """One NIfTI file of this data type, without scaling."""
    image = nibabel.Nifti1Image(array.astype(dtype), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def to_ras(array_lps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same brain as somebody stores it in RAS order: the array flipped, and the affine that "
    "goes with it."""
    affine = LPS.copy()
    for axis in (0, 1):
        affine[:, 3] += affine[:, axis] * (array_lps.shape[axis] - 1)
        affine[:, axis] *= -1
    return array_lps[::-1, ::-1], affine


def write_case(
    root: Path,
    name: str,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = SHAPE,
    names: dict[str, str] = NAMES_2023,
    suffix: str = ".nii.gz",
    dtype: type | str = np.int16,
    ras: bool = False,
    enhancing: int = 3,
    segmentation: bool = True,
) -> Path:
    """Write `brain(seed)` in the manner of an edition. Returns the case's folder."""
    images, labels = brain(seed, shape)
    volumes = {**images, **({"seg": np.where(labels == 3, enhancing, labels)} if segmentation else {})}
    for kind, array in volumes.items():
        array, affine = to_ras(array) if ras else (array, LPS)
        save(root / name / f"{name}{names[kind]}{suffix}", array, affine, dtype)
    return root / name
