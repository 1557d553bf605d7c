"""Small cohorts of the robustness tests."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from brasyn_dist.data.sharding.write_shards import ShardOptions
from tests.data.case_files import save, write_case

SHAPE = (40, 36, 28)
OPTIONS = ShardOptions(views=("axial",), minimum_foreground=50, validation_fraction=0.5)


def cohort(root: Path, *names: str, **how) -> Path:
    for seed, name in enumerate(names):
        write_case(root, name, seed, shape=SHAPE, **how)
    return root


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], dtype: type | None = None) -> None:
    image = nibabel.load(path)
    array = change(np.asanyarray(image.dataobj))
    save(path, array, image.affine, dtype or array.dtype)
