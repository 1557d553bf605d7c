"""Weighted fusion against numpy and scipy, its cross-validation, and files that are complete."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from brasyn_dist.brats import MODALITIES
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.fusion import (
    VoxelSample,
    WeightedFusion,
    cross_validate,
    describe_members,
    error_moments,
    load_fusion,
    random_subset,
    simplex_weights,
)
from brasyn_dist.inference.fusion import (
    fit_weights as fit_targets,
)
from brasyn_dist.inference.synthesis import Member, synthesise_case
from brasyn_dist.models.registry import Generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.inference.small import brain, four

THREE = ("t1c", "t1n", "t2w")


fit_weights = partial(fit_targets, targets=MODALITIES)


def members(*views: str, weights: str = "a" * 64) -> list[Member]:
    generator = SimpleNamespace(preprocessing=Preprocessing(PUBLISHED))
    return [Member(view, generator, Path("x"), weights) for view in views]  # type: ignore[arg-type]


def samples_of(cases: int, errors: Sequence[float], seed: int = 0, voxels: int = 500) -> list[VoxelSample]:
    """Views that are the truth plus independent noise of these deviations; every case and target."""
    rng = np.random.default_rng(seed)
    samples = []
    for case in range(cases):
        for number, target in enumerate(MODALITIES):
            real = rng.integers(100, 2000, (voxels, 4))[:, number : number + 1].astype(np.float32)
            noise = rng.normal(0, 1, (voxels, len(errors))) * np.array(errors)
            samples.append(VoxelSample(f"case{case}", target, (real + noise).astype(np.float32), real[:, 0]))
    return samples


# ---- weights


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_the_constrained_least_squares_solution(seed: int) -> None:
    """Against a general optimiser on the residuals themselves, with noise that is correlated and biased."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 3
    mixing = rng.normal(0, 1, (count, count))
    noise = rng.normal(0, 30, (400, count)) @ mixing + rng.normal(0, 20, count)
    real = rng.integers(100, 2000, 400).astype(np.float32)
    views = (real[:, None] + noise).astype(np.float32)
    sample = VoxelSample("a", "t1c", views, real)
    found = simplex_weights(error_moments(sample))

    def mean_squared(w: np.ndarray) -> float:
        return float(np.square(views.astype(float) @ w - real).mean())

    best = minimize(
        mean_squared,
        np.full(count, 1 / count),
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    assert mean_squared(found) <= best.fun * (1 + 1e-6)
    np.testing.assert_allclose(found, best.x, atol=2e-3)


def test_independent_noise_gives_inverse_variances() -> None:
    fusion = fit_weights(samples_of(3, (10, 20), voxels=20000))
    for target in MODALITIES:
        assert fusion.weights[target] == pytest.approx((0.8, 0.2), abs=0.01)


def test_equal_members_share_and_a_useless_one_gets_nothing() -> None:
    one = samples_of(1, (10,))[0]
    twins = np.repeat(one.views_NV, 2, 1)
    assert simplex_weights(error_moments(VoxelSample("a", "t1c", twins, one.real_N))) == pytest.approx(
        [0.5, 0.5], abs=1e-4
    )
    worse = np.concatenate([one.views_NV, 3 * one.views_NV], 1)
    assert simplex_weights(error_moments(VoxelSample("a", "t1c", worse, one.real_N)))[1] == 0
    perfect = np.zeros((2, 2))
    assert simplex_weights(perfect).sum() == pytest.approx(1)


def test_cases_count_alike_whatever_their_size() -> None:
    few, many = samples_of(1, (5, 50), voxels=100), samples_of(1, (50, 5), seed=1, voxels=9000)
    pooled = [error_moments(s) for s in (few[0], many[0])]
    expected = simplex_weights((pooled[0] + pooled[1]) / 2)
    assert fit_weights(few + many).weights["t1c"] == pytest.approx(tuple(expected))
    assert expected == pytest.approx([0.5, 0.5], abs=0.1)
    with pytest.raises(DataError, match="no case to fit the weights of t1n"):
        fit_weights(few[:1])


def test_weights_are_applied_to_their_target() -> None:
    rows = {"t1c": (0.25, 0.75), "t1n": (1.0, 0.0), "t2f": (0.5, 0.5), "t2w": (0.0, 1.0)}
    volumes = np.random.default_rng(0).random((2, 5, 4, 3)).astype(np.float32)
    for target, (a, b) in rows.items():
        fused = WeightedFusion(rows)(torch.from_numpy(volumes), target)
        np.testing.assert_allclose(fused.numpy(), a * volumes[0] + b * volumes[1], rtol=1e-6)


# ---- comparison and files


def test_the_comparison_scores_unseen_cases() -> None:
    samples = samples_of(3, (10, 20))
    seen: list[set[str]] = []

    def fit(part: Sequence[VoxelSample]) -> WeightedFusion:
        seen.append({s.case for s in part})
        return WeightedFusion(dict.fromkeys(MODALITIES, (1.0, 0.0)))

    errors = cross_validate(samples, ["axial", "sagittal"], fit)
    assert errors is not None
    assert seen == [{"case1", "case2"}, {"case0", "case2"}, {"case0", "case1"}]
    for target in MODALITIES:
        chosen = [s for s in samples if s.target == target]
        expected = np.mean([np.abs(s.views_NV[:, 1] - s.real_N).mean() for s in chosen])
        assert errors[target]["sagittal"] == pytest.approx(expected, rel=1e-5)
        assert errors[target]["fused"] == pytest.approx(errors[target]["axial"], rel=1e-5)
        assert errors[target]["mean"] < errors[target]["sagittal"]
    assert cross_validate(samples_of(1, (1, 2)), ["a", "b"], fit) is None


def test_draw_is_a_function_of_seed_and_name() -> None:
    candidates = np.arange(100, 200)
    chosen = random_subset(candidates, 10, 0, "a")
    assert len(set(chosen.tolist())) == 10 and set(chosen) <= set(candidates)
    assert (
        chosen.tolist()
        == random_subset(candidates, 10, 0, "a").tolist()
        != random_subset(candidates, 10, 0, "b").tolist()
    )
    assert chosen.tolist() != random_subset(candidates, 10, 1, "a").tolist()
    assert random_subset(candidates, 1000, 0, "a").tolist() == candidates.tolist()
    assert len(random_subset(candidates[:0], 5, 0, "a")) == 0


def test_files_bring_back_the_same_fusion(tmp_path: Path) -> None:
    path, two = tmp_path / "fusion.json", members("axial", "sagittal")
    fusion = fit_weights(samples_of(1, (10, 20)))
    fusion.save(path, {"members": describe_members(two)})
    assert load_fusion(path, two) == fusion
    for others in (
        members("axial", "coronal"),
        members("axial"),
        members("axial", "sagittal", weights="b" * 64),
    ):
        with pytest.raises(CheckpointError, match="fitted for other members"):
            load_fusion(path, others)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path, two = tmp_path / "fusion.json", members("axial", "sagittal")
    with pytest.raises(DataError, match="cannot be read .*make one with `brasyn fit-fusion`"):
        load_fusion(path, two)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="brasyn fit-fusion"):
        load_fusion(path, two)
    WeightedFusion(dict.fromkeys(MODALITIES, (0.7, 0.7))).save(path, {"members": describe_members(two)})
    with pytest.raises(CheckpointError, match="adding up to 1"):
        load_fusion(path, two)
    for damaged in ("NaN", "1e999", "1" + "0" * 400):
        weights = dict.fromkeys(MODALITIES, (0.5, 0.5))
        WeightedFusion(weights).save(path, {"members": describe_members(two)})
        path.write_text(path.read_text().replace("0.5", damaged))
        with pytest.raises(CheckpointError, match="brasyn fit-fusion"):
            load_fusion(path, two)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"kind": "network"}))
    with pytest.raises(CheckpointError, match="kind 'network' are no longer supported"):
        load_fusion(path, two)
    path.write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(CheckpointError, match="format brasyn_dist.fusion 2"):
        load_fusion(path, two)


# ---- in the volume pipeline


def test_whatever_fuses_background_stays_zero_and_nothing_is_negative(generator: Generator) -> None:
    images = four(brain())
    two = [Member(view, generator, Path("x"), "") for view in ("axial", "sagittal")]

    def shifted(volumes: torch.Tensor, *rest: object) -> torch.Tensor:
        return volumes.mean(0) - 400

    plain = synthesise_case(two, images, THREE, ["t2f"])["t2f"]
    fused = synthesise_case(two, images, THREE, ["t2f"], fuse=shifted)["t2f"]
    background = (images[[0, 1, 3]] <= 0).sum(0) >= 2
    assert not fused[background].any() and fused.min() == 0
    np.testing.assert_allclose(fused[~background], np.maximum(plain[~background] - 400, 0), atol=1)


def test_weights_of_one_view_give_that_view(generator: Generator) -> None:
    images = four(brain())
    two = [Member(view, generator, Path("x"), "") for view in ("axial", "sagittal")]
    for number, row in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        fuse = WeightedFusion(dict.fromkeys(MODALITIES, row))
        (fused,) = synthesise_case(two, images, THREE, ["t2f"], fuse=fuse).values()
        (alone,) = synthesise_case([two[number]], images, THREE, ["t2f"]).values()
        np.testing.assert_array_equal(fused, alone)
