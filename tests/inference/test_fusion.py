"""Fusions: weights against numpy and scipy, the network on an example that no weights can solve, files that are whole."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from brasyn_dist.brats import MODALITIES
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.fusion import (
    LearnedFusion,
    WeightedFusion,
    build_network,
    describe_members,
    load_fusion,
)
from brasyn_dist.inference.fusion_fitting import (
    NetworkOptions,
    Sample,
    compare,
    draw,
    error_moments,
    fit_network,
    fit_weights,
    simplex_weights,
)
from brasyn_dist.inference.synthesis import Member, mean_of_members, synthesise_case
from brasyn_dist.models.generator import Generator
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.inference.small import brain, four

CPU = torch.device("cpu")
THREE = ("t1c", "t1n", "t2w")


def members(*views: str, weights: str = "a" * 64) -> list[Member]:
    return [Member(view, None, Path("x"), weights) for view in views]  # type: ignore[arg-type]


def samples_of(cases: int, errors: Sequence[float], seed: int = 0, voxels: int = 500) -> list[Sample]:
    """Views that are the truth plus independent noise of these deviations; every case and target."""
    rng = np.random.default_rng(seed)
    samples = []
    for case in range(cases):
        for number, target in enumerate(MODALITIES):
            inputs = rng.integers(100, 2000, (voxels, 4))
            noise = rng.normal(0, 1, (voxels, len(errors))) * np.array(errors)
            views = (inputs[:, number : number + 1] + noise).astype(np.float32)
            samples.append(Sample(f"case{case}", target, views, inputs))
    return samples


def switching(cases: int, seed: int) -> list[Sample]:
    """View 0 is right where T1 native (T2 where that is asked for) is bright, view 1 where it is dark: no weights can tell."""
    rng = np.random.default_rng(seed)
    samples = []
    for case in range(cases):
        for number, target in enumerate(MODALITIES):
            inputs = rng.integers(100, 2000, (2000, 4))
            real = inputs[:, number].astype(np.float32)
            bright = inputs[:, 3 if target == "t1n" else 1] > 1050
            wrong = real + rng.normal(0, 300, len(real)).astype(np.float32)
            views = np.stack([np.where(bright, real, wrong), np.where(bright, wrong, real)], 1)
            samples.append(Sample(f"case{case}", target, views, inputs))
    return samples


# ---- weights


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_the_constrained_least_squares_solution(seed: int) -> None:
    """Against a general optimiser on the residuals themselves, with noise that is correlated and biased."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 3
    mixing = rng.normal(0, 1, (count, count))
    noise = rng.normal(0, 30, (400, count)) @ mixing + rng.normal(0, 20, count)
    real = rng.integers(100, 2000, (400, 4))
    views = (real[:, :1] + noise).astype(np.float32)
    sample = Sample("a", "t1c", views, real)
    found = simplex_weights(error_moments(sample))

    def mean_squared(w: np.ndarray) -> float:
        return float(np.square(views.astype(float) @ w - real[:, 0]).mean())

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
    assert simplex_weights(error_moments(Sample("a", "t1c", twins, one.inputs_NM))) == pytest.approx(
        [0.5, 0.5], abs=1e-4
    )
    worse = np.concatenate([one.views_NV, 3 * one.views_NV], 1)
    assert simplex_weights(error_moments(Sample("a", "t1c", worse, one.inputs_NM)))[1] == 0
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
    images = torch.zeros(4, 5, 4, 3)
    for target, (a, b) in rows.items():
        fused = WeightedFusion(rows)(torch.from_numpy(volumes), images, THREE, target)
        np.testing.assert_allclose(fused.numpy(), a * volumes[0] + b * volumes[1], rtol=1e-6)


# ---- network


def test_before_training_the_network_is_the_mean() -> None:
    fusion = LearnedFusion(build_network(3, 16, 0).eval(), PUBLISHED)
    volumes = torch.rand(3, 6, 5, 4) * 2000 + 1
    images = torch.randint(1, 2000, (4, 6, 5, 4))
    fused = fusion(volumes, images, THREE, "t2f")
    torch.testing.assert_close(fused, mean_of_members(volumes, images, THREE, "t2f"), rtol=1e-4, atol=0.05)


def test_the_network_beats_mean_and_weights_where_no_weights_can() -> None:
    """Scored on cases that neither fit has seen; the mean is off by half of the noise's mean absolute value everywhere."""
    train, unseen = switching(3, 0), switching(2, 9)
    learned, weighted = fit_network(train, PUBLISHED), fit_weights(train)

    def error(fusion: LearnedFusion | WeightedFusion) -> float:
        made = [
            fusion(
                torch.from_numpy(s.views_NV.T[..., None, None].copy()),
                torch.from_numpy(s.inputs_NM.T[..., None, None].copy()),
                tuple(m for m in MODALITIES if m != s.target),
                s.target,
            ).flatten()
            for s in unseen
        ]
        return float(np.mean([np.abs(m.numpy() - s.real_N).mean() for m, s in zip(made, unseen)]))

    mean = float(np.mean([np.abs(s.views_NV.mean(1) - s.real_N).mean() for s in unseen]))
    assert mean == pytest.approx(300 * np.sqrt(2 / np.pi) / 2, rel=0.05)
    assert error(weighted) > 0.95 * mean
    assert error(learned) < 0.6 * mean


def test_fitting_a_network_is_a_function_of_the_seed() -> None:
    train = switching(1, 0)
    options = [NetworkOptions(steps=5, seed=seed) for seed in (0, 0, 1)]
    torch.manual_seed(7)
    states = [fit_network(train, PUBLISHED, o).network.state_dict() for o in options[:1]]
    torch.manual_seed(8)
    states += [fit_network(train, PUBLISHED, o).network.state_dict() for o in options[1:]]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_the_target_itself_is_hidden_from_the_network() -> None:
    fusion = fit_network(switching(1, 0), PUBLISHED, NetworkOptions(steps=20))
    sample = switching(1, 3)[2]
    spoilt = sample.inputs_NM.copy()
    spoilt[:, 2] = 1
    made = [
        fusion.fuse_rows(torch.from_numpy(sample.views_NV), torch.from_numpy(x), "t2f")
        for x in (sample.inputs_NM, spoilt)
    ]
    assert torch.equal(*made)


def test_a_network_refuses_cases_with_fewer_modalities() -> None:
    fusion = LearnedFusion(build_network(2, 16, 0), PUBLISHED)
    with pytest.raises(DataError, match=r"only t1c, t1n given.*--kind weights"):
        fusion(torch.ones(2, 3, 3, 3), torch.ones(4, 3, 3, 3), ("t1c", "t1n"), "t2f")


# ---- comparison and files


def test_the_comparison_scores_unseen_cases() -> None:
    samples = samples_of(3, (10, 20))
    seen: list[set[str]] = []

    def fit(part: Sequence[Sample]) -> WeightedFusion:
        seen.append({s.case for s in part})
        return WeightedFusion(dict.fromkeys(MODALITIES, (1.0, 0.0)))

    errors = compare(samples, ["axial", "sagittal"], fit)
    assert errors is not None
    assert seen == [{"case1", "case2"}, {"case0", "case2"}, {"case0", "case1"}]
    for target in MODALITIES:
        chosen = [s for s in samples if s.target == target]
        expected = np.mean([np.abs(s.views_NV[:, 1] - s.real_N).mean() for s in chosen])
        assert errors[target]["sagittal"] == pytest.approx(expected, rel=1e-5)
        assert errors[target]["fused"] == pytest.approx(errors[target]["axial"], rel=1e-5)
        assert errors[target]["mean"] < errors[target]["sagittal"]
    assert compare(samples_of(1, (1, 2)), ["a", "b"], fit) is None


def test_draw_is_a_function_of_seed_and_name() -> None:
    candidates = np.arange(100, 200)
    chosen = draw(candidates, 10, 0, "a")
    assert len(set(chosen.tolist())) == 10 and set(chosen) <= set(candidates)
    assert chosen.tolist() == draw(candidates, 10, 0, "a").tolist() != draw(candidates, 10, 0, "b").tolist()
    assert chosen.tolist() != draw(candidates, 10, 1, "a").tolist()
    assert draw(candidates, 1000, 0, "a").tolist() == candidates.tolist()
    assert len(draw(candidates[:0], 5, 0, "a")) == 0


@pytest.mark.parametrize("kind", ["weights", "network"])
def test_files_bring_back_the_same_fusion(kind: str, tmp_path: Path) -> None:
    samples, path, two = switching(1, 0), tmp_path / "fusion.json", members("axial", "sagittal")
    fusion = (
        fit_weights(samples)
        if kind == "weights"
        else fit_network(samples, PUBLISHED, NetworkOptions(steps=10))
    )
    fusion.save(path, {"members": describe_members(two)})
    loaded = load_fusion(path, two, CPU)
    volumes = torch.rand(2, 6, 5, 4) * 2000
    images = torch.randint(0, 2000, (4, 6, 5, 4))
    assert torch.equal(loaded(volumes, images, THREE, "t2f"), fusion(volumes, images, THREE, "t2f"))
    for others in (
        members("axial", "coronal"),
        members("axial"),
        members("axial", "sagittal", weights="b" * 64),
    ):
        with pytest.raises(CheckpointError, match="fitted for other members"):
            load_fusion(path, others, CPU)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    path, two = tmp_path / "fusion.json", members("axial", "sagittal")
    with pytest.raises(CheckpointError, match="no fusion"):
        load_fusion(path, two, CPU)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="fit_fusion"):
        load_fusion(path, two, CPU)
    WeightedFusion(dict.fromkeys(MODALITIES, (0.7, 0.7))).save(path, {"members": describe_members(two)})
    with pytest.raises(CheckpointError, match="adding up to 1"):
        load_fusion(path, two, CPU)
    fit_network(switching(1, 0), PUBLISHED, NetworkOptions(steps=1)).save(
        path, {"members": describe_members(two)}
    )
    tensors = path.with_suffix(".safetensors")
    other = build_network(2, 16, 5)
    whole = tensors.read_bytes()
    LearnedFusion(other, PUBLISHED).save(tmp_path / "b.json", {})
    tensors.write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is not the file that fusion.json describes"):
        load_fusion(path, two, CPU)
    tensors.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_fusion(path, two, CPU)
    values = json.loads(path.read_text()) | {"format_version": 2}
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="format_version|format brasyn_dist.fusion 2"):
        load_fusion(path, two, CPU)


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
