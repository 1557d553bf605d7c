"""Six cases for shard sets, with the expected and the actual content."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from brasyn_dist.data.format.codec import decode_slice
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding.write_shards import ShardOptions
from tests.conftest import REPOSITORY
from tests.data.case_files import MODALITIES, brain

OPTIONS = ShardOptions(seed=5, validation_fraction=0.25, minimum_foreground=300, samples_per_shard=40)
SEEDS = {
    "BraTS-GLI-00000-000": 0, "BraTS-GLI-00000-001": 1, "BraTS-GLI-00001-000": 2, "BraTS-GLI-00002-000": 3,
    "BraTS-MET-00000-000": 4, "BraTS-MET-00001-000": 5,
}  # fmt: skip
UNLABELLED = "BraTS-MET-00001-000"


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too, by its path."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def expected_slices() -> dict[str, np.ndarray]:
    """Key -> planes of all slices that belong into the set, straight from the arrays that the "
    "cases were written from."""
    found = {}
    for name, seed in SEEDS.items():
        images, labels = brain(seed)
        planes = np.stack([images[m] for m in MODALITIES] + ([labels] if name != UNLABELLED else [])).astype(
            np.int16
        )
        for view, axis in (("axial", 3), ("sagittal", 1), ("coronal", 2)):
            for k in range(planes.shape[axis]):
                cut = planes.take(k, axis)
                if min((plane > 0).sum() for plane in cut[:4]) >= 300:
                    found[f"{name}/{view}/{k:03d}"] = cut
    return found


def read_all(folder: Path) -> dict[str, np.ndarray]:
    index = open_shard_set(folder)
    found = {}
    for row in range(len(index)):
        column = {name: int(values[row]) for name, values in index.columns.items()}
        with (folder / index.shards[column["shard"]].name).open("rb") as file:
            file.seek(column["offset"])
            found[index.key(row)] = decode_slice(file.read(column["size"]), index.header.codec)
    return found


COMMAND = [sys.executable, str(REPOSITORY / "tools" / "shard_dataset.py")]
ARGUMENTS = [
    "--seed", "5", "--validation-fraction", "0.25", "--minimum-foreground", "300",
    "--samples-per-shard", "40",
]  # fmt: skip


def start(cohorts: list[Path], out: Path, *more: str, **how) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    arguments = [*map(str, cohorts), "--out", str(out), *ARGUMENTS, *more]
    return subprocess.Popen([*COMMAND, *arguments], env=environment, text=True, **how)
