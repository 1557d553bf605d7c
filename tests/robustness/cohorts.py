"""Small cohorts of the robustness tests."""

import shutil
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


def damaged_validation(shards: Path, folder: Path) -> Path:
    """A copy of a shard set whose validation samples are damaged: a training fails at its first validation."""
    shutil.copytree(shards, folder)
    for path in folder.glob("val-*.tar"):
        data = bytearray(path.read_bytes())
        data[256::512] = bytes(byte ^ 0x10 for byte in data[256::512])
        path.write_bytes(data)
    return folder
