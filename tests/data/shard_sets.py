"""Small shard sets with known voxels."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.data.format.codec import DEFAULT_CODEC, encode_slice
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.format.metadata import CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import EncodedSample, sample_key, write_shard
from brasyn_dist.data.loading.storage import open_shard_set

SHAPES = {"axial": (24, 24), "sagittal": (24, 15), "coronal": (24, 15)}
STATISTICS = {"version": 1, "cases": 3, "clip_max": [8664.0, 7315.0], "mean": [1066.3375, 781.2247]}


def planes_of(
    case: str, view: str, index: int, segmentation: bool, shape: tuple[int, int], dtype: str = "int16"
) -> np.ndarray:
    """(5 or 4, H, W): random, but the same for the same name."""
    rng = np.random.RandomState(zlib.crc32(f"{case}/{view}/{index}".encode()))
    images = rng.randint(-50, 32767, (4, *shape))
    if dtype == "int32":
        images += 100_000
    labels = rng.randint(0, 4, (1, *shape))
    return np.concatenate([images, labels] if segmentation else [images]).astype(dtype)


def case_table(train: int, val: int = 0) -> tuple[CaseEntry, ...]:
    """Cases of two cohorts; every third has no segmentation."""
    return tuple(
        CaseEntry(
            name=f"BraTS-{'MET' if i % 2 else 'GLI'}-{i:05d}-000",
            cohort="met" if i % 2 else "gli",
            split="train" if i < train else "val",
            patient=f"BraTS-{'MET' if i % 2 else 'GLI'}-{i:05d}",
            segmentation=i % 3 != 2,
        )
        for i in range(train + val)
    )


def write_set(
    folder: Path,
    train: int = 4,
    val: int = 1,
    slices: int = 5,
    views: Sequence[str] = ("axial",),
    shards: int = 3,
    codec: str = DEFAULT_CODEC,
    dtype: str = "int16",
    shapes: dict[str, tuple[int, int]] = SHAPES,
    cases: tuple[CaseEntry, ...] | None = None,
) -> ShardIndex:
    """Write a set of train + val cases with `slices` slices a view; returns its index, loaded "
    "from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = cases or case_table(train, val)
    splits = sorted({case.split for case in cases})
    counts = {split: shards if split == "train" else 1 for split in splits}
    header = SetHeader(codec, dtype, 7, tuple(views), counts, cases, STATISTICS)
    entries = []
    for split in splits:
        samples = [
            (number, view, index)
            for number, case in enumerate(cases)
            if case.split == split
            for view in views
            for index in range(slices)
        ]
        np.random.RandomState(3).shuffle(samples)
        for number in range(counts[split]):
            part = samples[number :: counts[split]]
            entries.append(
                write_shard(
                    folder, header, split, number, (encode(cases, *s, shapes, dtype, codec) for s in part)
                )
            )
    ShardIndex(header, tuple(entries)).save(folder)
    return open_shard_set(folder)


def encode(
    cases: tuple[CaseEntry, ...],
    number: int,
    view: str,
    index: int,
    shapes: dict[str, tuple[int, int]],
    dtype: str,
    codec: str,
) -> EncodedSample:
    case = cases[number]
    planes = planes_of(case.name, view, index, case.segmentation, shapes[view], dtype)
    tumour = int((planes[4] > 0).sum()) if case.segmentation else 0
    return EncodedSample(number, view, index, tumour, encode_slice(planes, codec))


def truth_by_key(
    index: ShardIndex, shapes: dict[str, tuple[int, int]] = SHAPES, slices: int = 5
) -> dict[str, np.ndarray]:
    """Key -> planes of every sample that write_set puts into a set."""
    return {
        sample_key(case.name, view, i): planes_of(
            case.name, view, i, case.segmentation, shapes[view], index.header.dtype
        )
        for case in index.header.cases
        for view in index.header.views
        for i in range(slices)
    }
