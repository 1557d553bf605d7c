"""Statistics from histograms against numpy on all voxels written out."""

import json

import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_case
from brasyn_dist.data.nifti import read_case
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.intensity_scale import foreground_counts
from brasyn_dist.preprocessing.statistics import (
    PUBLISHED,
    Histogram,
    Statistics,
    case_list_hash,
    percentile,
    summarise,
)


def case(seed: int, dtype=np.int16, high: int = 4000) -> np.ndarray:
    """(4, x, y, z) with background, negative voxels, and another range in each modality."""
    rng = np.random.default_rng(seed)
    images = np.stack([rng.gamma(2, high / 20 * (m + 1), (9, 8, 7)) for m in range(4)])
    return np.where(rng.random(images.shape) < 0.4, rng.integers(-50, 1, images.shape), images).astype(dtype)


def histogram_of(*cases: np.ndarray) -> Histogram:
    histogram = Histogram()
    for images in cases:
        histogram.add([foreground_counts(image, image > 0) for image in images])
    return histogram


def check(found: Statistics, cases: list[np.ndarray], headroom: float = 1.0) -> None:
    for number, name in enumerate(MODALITIES):
        voxels = np.concatenate([c[number][c[number] > 0] for c in cases]).astype(np.float64)
        clip_max = headroom * np.percentile(voxels, 99.5)
        entry, clipped = found.modalities[name], np.minimum(voxels, clip_max)
        assert entry.voxels == len(voxels)
        assert entry.clip_max == pytest.approx(clip_max, rel=1e-12)
        assert entry.mean == pytest.approx(clipped.mean(), rel=1e-12)
        assert entry.std == pytest.approx(clipped.std(), rel=1e-12)


@pytest.mark.parametrize("dtype, high", [(np.int16, 4000), (np.int32, 400_000)])
def test_histograms_give_what_numpy_gives(dtype, high):
    cases = [case(seed, dtype, high) for seed in range(3)]
    histogram = histogram_of(*cases)
    check(histogram.statistics("abc"), cases)
    check(histogram.statistics("abc", headroom=2.5), cases, headroom=2.5)


def test_histograms_add_up_in_any_order_and_can_be_taken_away():
    cases = [case(seed) for seed in range(4)]
    parts = [histogram_of(images) for images in cases]
    forward, backward = Histogram(), Histogram()
    for part in parts:
        forward.add(part.counts)
    for part in reversed(parts):
        backward.add(part.counts)
    assert forward.statistics("abcd") == backward.statistics("dcba")
    forward.add(parts[1].counts, -1)
    check(forward.statistics("acd"), [cases[0], cases[2], cases[3]])


@pytest.mark.parametrize(
    "values",
    [[7], [1, 9], [3, 3, 3], [1, 2, 3, 1000], list(range(1, 202)), [5] * 199 + [900], [1] + [8] * 400],
)
def test_percentiles_are_numpys(values):
    for percent in (0, 0.5, 50, 99.5, 100):
        assert percentile(np.bincount(values), percent) == pytest.approx(
            np.percentile(values, percent), abs=1e-9
        )


def test_standard_deviation_does_not_cancel():
    """Large values with a small spread: the plain sum of squares would lose all digits."""
    values = np.random.default_rng(0).integers(2_000_000, 2_000_004, 5000)
    assert summarise(np.bincount(values)).std == pytest.approx(
        np.minimum(values, np.percentile(values, 99.5)).std(), rel=1e-9
    )


def test_a_modality_without_foreground_is_refused():
    images = case(0)
    images[2] = 0
    with pytest.raises(DataError, match="no foreground in any training volume of t2f"):
        histogram_of(images).statistics(["a"])


def test_file_and_hash(tmp_path):
    statistics = histogram_of(case(0)).statistics(["b", "a"])
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json") == statistics
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert (
        content["version"] == 1 and content["cases"] == 2 and list(content["modalities"]) == list(MODALITIES)
    )
    assert set(content["modalities"]["t1c"]) == {"clip_max", "mean", "std", "voxels"}
    assert statistics.hash == Statistics.load(tmp_path / "statistics.json").hash
    assert statistics.hash != histogram_of(case(1)).statistics(["b", "a"]).hash
    assert case_list_hash(["b", "a"]) == case_list_hash(["a", "b"]) != case_list_hash(["a", "c"])


def test_columns_are_in_modality_order():
    assert PUBLISHED.column("clip_max") == (8664, 7315, 8842, 8233)
    assert PUBLISHED.column("mean") == (1066.3375, 781.2247, 510.9852, 673.4393)
    assert PUBLISHED.column("std") == (1301.7006, 944.3418, 769.4159, 804.3864)


def change(values: dict, path: str, value) -> dict:
    *parents, last = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("version", 9, "version 9"),
        ("modalities.t1n", {"mean": 3}, "no valid statistics"),
        ("modalities", {}, "no valid statistics"),
        ("modalities.t2f.std", 0, "t2f has std 0"),
        ("modalities.t2f.clip_max", float("nan"), "t2f has std"),
    ],
)
def test_impossible_statistics_are_refused(tmp_path, path, value, message):
    (tmp_path / "s.json").write_text(json.dumps(change(PUBLISHED.to_dict(), path, value)))
    with pytest.raises(DataError, match=rf"s\.json: .*{message}"):
        Statistics.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    "text, message", [("{", "not valid JSON"), ("[1]", "no valid statistics"), (None, "cannot be read")]
)
def test_what_is_no_statistics_file_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=rf"s\.json: {message}"):
        Statistics.load(tmp_path / "s.json")


@pytest.mark.real
def test_real_subjects(shared):
    cases = [
        read_case(find_case(shared / "data" / name)).images
        for name in ("BraTS-MET-00110-000", "TCGA-DU-7294")
    ]
    histogram = histogram_of(*cases)
    check(histogram.statistics("ab"), cases)
