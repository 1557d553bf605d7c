"""Intensity scales of cases: medians, and the conditional distribution of one modality's scale, against plain numpy."""

import numpy as np
import pytest
import torch

from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.intensity_scale import (
    DEGREES_OF_FREEDOM,
    PRIOR_CASES,
    IntensityScaleModel,
    foreground_counts,
    median_of_counts,
)
from brasyn_dist.preprocessing.normalisation import foreground_medians

MEAN = np.array([6.0, 6.4, 5.8, 6.1])
MIX = np.array([[0.6, 0.2, 0, 0], [0.5, 0, 0.3, 0], [0.5, 0.1, 0, 0.2], [0.4, 0, 0.1, 0.4]])


def cases(count: int) -> np.ndarray:
    """(count, 4) scales whose logarithms have mean MEAN and covariance MIX MIX'."""
    return np.exp(MEAN + np.random.default_rng(0).standard_normal((count, 4)) @ MIX.T)


@pytest.mark.parametrize("values", [[3], [1, 2], [5, 5, 1, 9], [7, 0, 0, -3, 2, 2, 30000]])
def test_medians_are_the_lower_ones_of_the_foreground(values):
    volume = np.array(values, np.int32)
    expected = int(np.percentile(volume[volume > 0], 50, method="lower"))
    assert median_of_counts(foreground_counts(volume, volume > 0)) == expected
    images = torch.from_numpy(np.stack([volume * 0, volume, volume, volume])[:, None, None])
    assert foreground_medians(images, (0, 1, 3)).tolist() == [[1, expected, 1, expected]]


def test_many_cases_show_their_own_distribution():
    scales = IntensityScaleModel.fit(cases(100_000))
    np.testing.assert_allclose(scales.mean, MEAN, atol=0.01)
    np.testing.assert_allclose(scales.covariance, MIX @ MIX.T, atol=0.01)
    assert scales.cases == 100_000


@pytest.mark.parametrize(("available", "target"), [((0, 1, 3), 2), ((1, 2), 0), ((3,), 1)])
def test_ordinary_cases_have_the_estimate_of_a_regression_of_logarithms(available, target):
    known = cases(100_000)
    terms = np.column_stack([np.ones(len(known)), np.log(known[:, list(available)])])
    weights = np.linalg.lstsq(terms, np.log(known[:, target]), rcond=None)[0]
    given = np.exp(MEAN + [0.2, 0.15, 0.3, 0.1])
    expected = np.exp(weights @ [1, *np.log(given[list(available)])])
    predicted = IntensityScaleModel.fit(known).predict(available, given[list(available)].tolist(), target)
    assert predicted == pytest.approx(expected, rel=0.01)
    residuals = np.log(known[:, target]) - terms @ weights
    assert IntensityScaleModel.fit(known).log_error(available, target) == pytest.approx(
        residuals.std(), rel=0.1
    )


@pytest.mark.parametrize("residual", [(0.1, 0.2, 0.0), (-1.5, 0.0, -0.1), (2.0, -2.0, 0.3), (3.0, 2.8, -3.0)])
def test_a_sequence_out_of_line_does_not_drag_the_others_along(residual):
    """By brute force: the common factor f is most probable, f normal, each residual beyond one deviation with Student's tails."""
    shared, own, nu = 0.3, 0.05, DEGREES_OF_FREEDOM
    scales = IntensityScaleModel(tuple(MEAN), tuple(map(tuple, shared + own * np.eye(4))), 9)
    factor = np.linspace(-4, 4, 400_001)
    e2 = (np.array(residual)[:, None] - factor) ** 2 / own
    tails = 0.5 + (nu + 1) / 2 * np.log((nu + e2) / (nu + 1))
    minus_log = factor**2 / (2 * shared) + np.where(e2 < 1, e2 / 2, tails).sum(0)
    predicted = scales.predict((0, 1, 2), np.exp(MEAN[:3] + residual).tolist(), 3)
    found = np.log(predicted) - MEAN[3]
    # The nearest minimum: with contradictory evidence there may be several.
    falls = np.diff(minus_log)
    minima = factor[1:-1][(falls[:-1] < 0) & (falls[1:] >= 0)]
    assert np.abs(minima - found).min() < 1e-3


def test_few_cases_are_pulled_towards_modalities_alike():
    """By hand: two cases, of which every modality of the second counts twice as much as the first's."""
    scales = IntensityScaleModel.fit(np.array([[100.0] * 4, [200.0] * 4]))
    step = np.log(2)
    variance = step**2 / 2
    np.testing.assert_allclose(scales.mean, [np.log(100) + step / 2] * 4)
    simple = variance + 0.01 * np.eye(4)
    expected = (variance + PRIOR_CASES * simple) / (1 + PRIOR_CASES)
    np.testing.assert_allclose(scales.covariance, expected)
    # Nearly all that there is is shared: a case that counts four times as much does so in the missing modality.
    assert scales.predict((0, 1, 2), [400.0] * 3, 3) == pytest.approx(400, rel=0.05)


def test_means_that_differ_by_chance_become_one_and_others_stay():
    noise = np.random.default_rng(1).standard_normal((6, 4))
    chance = IntensityScaleModel.fit(np.exp(6 + 0.5 * noise))
    assert np.ptp(chance.mean) < 0.2 * np.ptp(6 + 0.5 * noise.mean(0))
    apart = np.array([4.0, 5, 6, 8])
    np.testing.assert_allclose(IntensityScaleModel.fit(np.exp(apart + 0.1 * noise)).mean, apart, atol=0.15)


def test_one_case_is_enough_to_predict_something():
    predicted = IntensityScaleModel.fit(np.array([[100.0, 200, 300, 400]])).predict(
        (0, 2, 3), [100, 300, 400], 1
    )
    assert 100 < predicted < 400


def test_they_are_stored_and_damage_is_named():
    scales = IntensityScaleModel.fit(cases(9))
    assert IntensityScaleModel.from_dict(scales.to_dict(), "here") == scales
    damaged = [
        {},
        None,
        scales.to_dict() | {"mean": [1, 2, 3]},
        scales.to_dict() | {"covariance": [[0.0] * 4] * 4},
        scales.to_dict() | {"cases": "many"},
    ]
    for values in damaged:
        with pytest.raises(DataError, match=r"config\.json: .*scales.*export again"):
            IntensityScaleModel.from_dict(values, "config.json")
