"""Small subjects and models, written with nibabel alone: what the code under test reads, made without it."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from brasyn_dist.brats import MODALITIES, VIEWS
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED

SHAPE = (48, 40, 31)
"""No two sides equal, one odd: mixed-up axes and paddings show."""
LPS_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0]) + np.array(
    [[0, 0, 0, 20], [0, 0, 0, 30], [0, 0, 0, -9], [0, 0, 0, 0]]
)


def brain(seed: int = 0, shape: Sequence[int] = SHAPE) -> dict[str, np.ndarray]:
    """int16 volumes (x, y, z) in LPS order: an ellipsoid off centre, with masks that differ a little between modalities."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    radius = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, (0.45, 0.55, 0.5), (0.3, 0.35, 0.4)))
    volumes = {}
    for number, name in enumerate(MODALITIES):
        values = rng.integers(1, 3000, shape) * (radius < 1 + 0.06 * number)
        volumes[name] = values.astype(np.int16)
    return volumes


def four(volumes: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([volumes[m] for m in MODALITIES])


def write_subject(
    root: Path,
    name: str,
    modalities: Sequence[str],
    seed: int = 0,
    order: str = "LPS",
    dtype: type = np.int16,
    volumes: dict[str, np.ndarray] | None = None,
) -> Path:
    """Folder `root`/`name` with the given modalities of `volumes` (`brain(seed)`), stored in `order` (LPS or RAS) as `dtype`."""
    folder = root / name
    folder.mkdir(parents=True)
    volumes = volumes or brain(seed)
    for modality in modalities:
        array, affine = volumes[modality], LPS_AFFINE
        if order == "RAS":
            flip = np.diag([-1.0, -1.0, 1.0, 1.0])
            flip[0, 3], flip[1, 3] = array.shape[0] - 1, array.shape[1] - 1
            array, affine = array[::-1, ::-1], affine @ flip
        image = nibabel.Nifti1Image(array.astype(dtype), affine)
        image.header["descrip"] = b"made for a test"
        nibabel.save(image, folder / f"{name}-{modality}.nii.gz")
    return folder


def small_generator(view_embedding: bool = True, seed: int = 0) -> Generator:
    config = GeneratorConfig(image_size=48, base_channels=8, view_embedding=view_embedding)
    generator = build_generator(config, seed).eval()
    generator.preprocessing = Preprocessing(PUBLISHED)
    return generator


def export(folder: Path, views: Sequence[str] = VIEWS, view_embedding: bool = True, seed: int = 0) -> Path:
    """A folder for `--weights`."""
    generator = small_generator(view_embedding, seed)
    generator.save_pretrained(folder, Preprocessing(PUBLISHED, tuple(views)))
    return folder
