"""Shard sets of other modalities than BraTS' four: from folders to batches."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import BRATS
from brasyn_dist.config import AugmentationConfig, PatchConfig
from brasyn_dist.data.format.chunks import select_chunks
from brasyn_dist.data.format.index import rebuild_index
from brasyn_dist.data.loading.augmentation import sample_augmentation
from brasyn_dist.data.loading.loader import SliceStream, read_samples
from brasyn_dist.data.loading.patches import PatchOrder, PatchStream
from brasyn_dist.data.loading.sampler import SampleOrder, targets_and_masks
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.qc.anomalies import find_anomalies
from brasyn_dist.data.qc.measurements import inspect_case
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from tests.data.case_files import SHAPE, save

TWO = ModalitySet("pd-t2", ("pd", "t2"))
FIVE = ModalitySet("five", ("a", "b", "c", "d", "e"), labels={7: "lesion"}, regions={"whole": (7,)})


def volume(modality: str, case: int) -> np.ndarray:
    rng = np.random.default_rng([case, *modality.encode()])
    array = np.zeros(SHAPE, np.int16)
    array[4:-4, 4:-4, 4:-4] = rng.integers(1, 900, np.array(SHAPE) - 8)
    return array


def write_cases(root: Path, modality_set: ModalitySet, count: int = 3) -> Path:
    for number in range(count):
        folder = root / "cohort" / f"case-{number}"
        for m in modality_set.modalities:
            save(folder / f"{folder.name}-{m}.nii.gz", volume(m, number))
        # Without labels in the set this file is no part of the case.
        save(folder / f"{folder.name}-seg.nii.gz", 7 * (volume("seg", number) > 450))
    return root / "cohort"


@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
@pytest.mark.parametrize("modality_set", [TWO, FIVE], ids=lambda s: s.name)
def test_from_folders_to_batches(tmp_path, modality_set, codec):
    cohort, m = write_cases(tmp_path, modality_set), len(modality_set)
    options = ShardOptions(
        views=("axial",), validation_fraction=0.3, samples_per_shard=9, codec=codec,
        modality_set=modality_set, minimum_foreground=100,
    )  # fmt: skip
    index = make_shards([cohort], tmp_path / "out", options)
    assert index.header.modality_set == modality_set
    assert rebuild_index(tmp_path / "out").fingerprint == index.fingerprint
    assert list(Statistics.from_dict(index.header.statistics, "", modality_set).modalities) == list(
        modality_set.modalities
    )
    selection = index.select("train")
    assert selection.medians is not None and selection.medians.shape[1] == m
    order = SampleOrder(0, selection.shard, 6)
    with SliceStream(selection, order, slice(0, 6), 0, 2, image_size=SHAPE[:2]) as stream:
        for batch in stream:
            assert batch.planes.shape == (6, m, *SHAPE[:2])
            assert batch.has_labels.all() == bool(modality_set.labels)
            for row, key in enumerate(batch.keys):
                case, _, k = key.split("/")
                number = int(case[-1])
                expected = np.stack([volume(name, number)[:, :, int(k)] for name in modality_set.modalities])
                np.testing.assert_array_equal(batch.planes[row], expected)
                labels = 7 * (volume("seg", number)[:, :, int(k)] > 450) if modality_set.labels else 0
                np.testing.assert_array_equal(batch.labels[row], np.broadcast_to(labels, SHAPE[:2]))
    assert read_samples(selection, [0, 1], SHAPE[:2]).planes.shape[1] == m
    assert "complete" not in str(make_shards([cohort], tmp_path / "out", options).header.skipped)


@pytest.mark.parametrize("modality_set", [TWO, FIVE], ids=lambda s: s.name)
def test_patches_of_volumes(tmp_path, modality_set):
    cohort = write_cases(tmp_path, modality_set, 2)
    options = ShardOptions(views=(), chunks=16, validation_fraction=0, modality_set=modality_set)
    chunks = select_chunks(make_shards([cohort], tmp_path / "out", options), "train")
    order = PatchOrder(PatchConfig(size=(20, 20, 20), tumour_share=1), 0, chunks, 4)
    with PatchStream(chunks, order, slice(0, 4), 0, 2) as stream:
        for batch in stream:
            assert batch.has_labels.all() == bool(modality_set.labels)
            for row in range(4):
                number, corner = int(batch.cases[row]), batch.corners[row].tolist()
                box = tuple(slice(first, first + 20) for first in corner)
                expected = np.stack([volume(name, number)[box] for name in modality_set.modalities])
                np.testing.assert_array_equal(batch.volumes[row], expected)
                labels = 7 * (volume("seg", number)[box] > 450) if modality_set.labels else 0
                np.testing.assert_array_equal(batch.labels[row], np.broadcast_to(labels, (20, 20, 20)))


def test_another_set_is_another_shard_set(tmp_path):
    cohort = write_cases(tmp_path, TWO)
    options = ShardOptions(views=("axial",), minimum_foreground=100, modality_set=TWO)
    make_shards([cohort], tmp_path / "out", options)
    renamed = ModalitySet("renamed", TWO.modalities)
    with pytest.raises(DataError, match=r"made otherwise .*modality_set: there .*'pd-t2'.*here .*'renamed'"):
        make_shards(
            [cohort],
            tmp_path / "out",
            ShardOptions(views=("axial",), minimum_foreground=100, modality_set=renamed),
        )
    with pytest.raises(DataError, match=r"statistics of t1c, t1n, t2f, t2w, but the modality set pd-t2"):
        make_shards([cohort], tmp_path / "other", options, statistics=PUBLISHED)
    with pytest.raises(DataError, match="no volume for t1c"):
        make_shards([cohort], tmp_path / "other", ShardOptions())


def test_sets_of_brats_cases_do_not_store_the_preset(made):
    index = open_shard_set(made)
    assert index.header.modality_set == BRATS
    assert "modality_set" not in index.header.to_dict() and "modality_set" not in index.header.options


def test_inspection(tmp_path):
    from brasyn_dist.brats import find_cases

    facts = [inspect_case(case) for case in find_cases(write_cases(tmp_path, FIVE, 2), modality_set=FIVE)]
    assert all(f.labels is not None and f.labels["lesion"] > 0 for f in facts)
    assert set(facts[0].modalities) == set("abcde")
    assert not [f for f in find_anomalies(facts) if f.kind in ("segmentation", "geometry")]


@pytest.mark.parametrize("modalities", [2, 3, 5, 9])
def test_targets_and_masks(modalities):
    batch, rows = 20 * modalities, np.arange(20 * modalities)
    for availability in ("three", "any"):
        masks = [
            targets_and_masks(1, k, u, batch, availability, modalities)
            for k in range(30)
            for u in range(modalities)
        ]
        assert (
            np.sort([m.target for m in masks[:modalities]], axis=0) == np.arange(modalities)[:, None]
        ).all()
        for m in masks:
            assert (np.bincount(m.target, minlength=modalities) == 20).all(), "targets are balanced"
            assert not m.available[rows, m.target].any() and m.available[rows, m.cycle_target].all()
            assert (
                m.cycle_available[rows, m.target].all() and not m.cycle_available[rows, m.cycle_target].any()
            )
        size = np.concatenate([m.available.sum(1) for m in masks])
        if availability == "three":
            assert (size == modalities - 1).all()
        else:
            share = np.bincount(size, minlength=modalities)[1:] / len(size)
            expected = [0.5, *[0.5 / (modalities - 2)] * (modalities - 2)] if modalities > 2 else [1]
            np.testing.assert_allclose(share, expected, atol=0.02)
            available = np.concatenate([m.available for m in masks])
            np.testing.assert_allclose(available.mean(0), available.mean(), atol=0.02)


def test_augmentation_has_a_factor_for_each_modality():
    config = AugmentationConfig(mirror=0.5, intensity=0.7, contrast=0.1)
    nine, four = (sample_augmentation(config, 3, 5, 12, m) for m in (9, 4))
    assert nine is not None and four is not None and nine.factor_BM.shape == (12, 9)
    np.testing.assert_array_equal(nine.factor_BM[:, :4], four.factor_BM)
    assert len(np.unique(nine.factor_BM)) == 12 * 9
