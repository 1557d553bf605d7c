"""Small sets with chunks, and the volumes that they were made from."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from brasyn_dist.data.format.chunks import ChunkSelection
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading.patches import PatchBatch, PatchMemory, PatchReader
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from tests.data.case_files import MODALITIES, brain, save, write_case

SHAPE = (36, 40, 28)
SIDE = 16
NAMES = ("BraTS-GLI-00000-000", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-MET-00003-000")
"""The last has no segmentation."""
HELD_OUT = "BraTS-GLI-00002-000"


def write_cases(root: Path) -> Path:
    """Four cases of one cohort."""
    for seed, name in enumerate(NAMES):
        write_case(root / "gli", name, seed, segmentation=name != NAMES[-1])
    return root / "gli"


def write_stage1(folder: Path) -> Path:
    """Stage-1 volumes of all cases: their own, brighter."""
    for name in NAMES:
        for number, image in enumerate(stage1_of(name)):
            save(folder / f"{name}-{MODALITIES[number]}.nii.gz", image)
    return folder


def write_chunk_set(root: Path, stage1: bool = False, **options: object) -> ShardIndex:
    """Shard the four cases with chunks of 16 voxels; one is held out."""
    values = {
        "chunks": SIDE, "validation_cases": (HELD_OUT,), "minimum_foreground": 300, "samples_per_shard": 60,
        "stage1": write_stage1(root / "stage1") if stage1 else None,
        **options,
    }  # fmt: skip
    return make_shards([write_cases(root)], root / "shards", ShardOptions(**values))


@cache
def images_of(name: str) -> np.ndarray:
    """(M, x, y, z) volumes of a case."""
    images, _ = brain(NAMES.index(name))
    return np.stack([images[m] for m in MODALITIES])


@cache
def labels_of(name: str) -> np.ndarray:
    """(x, y, z) labels of a case; 0 without a segmentation."""
    labels = brain(NAMES.index(name))[1]
    return labels if name != NAMES[-1] else np.zeros_like(labels)


@cache
def stage1_of(name: str) -> np.ndarray:
    """(M, x, y, z) stage-1 volumes of a case."""
    images = images_of(name)
    return np.where(images > 0, images + 7, 0).astype(np.int16)


def cut(volume: np.ndarray, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """(..., X, Y, Z) patch of a volume, voxel by voxel of each axis; 0 beyond it."""
    patch = volume
    for axis, (first, extent) in enumerate(zip(corner, size), start=volume.ndim - 3):
        places = np.arange(first, first + extent)
        inside = (places >= 0) & (places < volume.shape[axis])
        taken = patch.take(np.where(inside, places, 0), axis)
        patch = np.where(inside.reshape(-1, *[1] * (volume.ndim - 1 - axis)), taken, 0)
    return patch


def read_patches(
    chunks: ChunkSelection, cases: Sequence[int], corners: Sequence[Sequence[int]], size: Sequence[int]
) -> PatchBatch:
    """Patches of these cases (b,) at these first voxels (b, 3), which may lie outside the volume."""
    batch = PatchMemory.of(chunks, size).batch(-1, slice(0, len(cases)))
    reader = PatchReader(chunks)
    for row, (case, corner) in enumerate(zip(cases, corners, strict=True)):
        reader.read_into(batch, row, case, corner)
    reader.samples.close()
    return batch
