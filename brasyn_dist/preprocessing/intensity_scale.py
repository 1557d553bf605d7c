"""The scale of a case's intensities, and what the scales of three modalities tell of the fourth's.

    volume --foreground_counts, median_of_counts--> its scale
    (cases, 4) scales --IntensityScaleModel.fit--> mean and covariance of their logarithms --predict(available, target)--> a scale

MRI has no unit: a scanner may count four times as much as the next for the same tissue. Normalisation `case` therefore divides
each volume by its scale, the median of its foreground, and a network learns what does not depend on it. At inference the
missing volume's scale is unknown; it is estimated from those of the available ones, as the conditional mean in a distribution
of log-scales: normal, but for the part that each modality has to itself, which has Student's heavy tails (a single sequence
may count a quarter of the others, and must not drag the estimate along).

With few cases the estimate is pulled towards what is simple: variances and covariances alike for all modalities (as strong as
PRIOR_CASES cases would), and means alike as far as they do not differ by more than chance (James and Stein, 1961). On ten
subjects, each predicted from the other nine, the logarithm is off by 0.35 on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet

PRIOR_CASES = 50
DEGREES_OF_FREEDOM = 2
"""Of Student's distribution."""
_ROUNDS = 20
"""Of reweighting; the estimate has settled to a per mille long before."""
_LEAST_VARIANCE = 0.01
"""Of what a modality does not share with the others: 10 per cent. Keeps the covariance invertible whatever the cases."""


@dataclass(frozen=True)
class IntensityScaleModel:
    """Normal distribution of log-scales over training cases, in modality order."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    cases: int

    @classmethod
    def fit(cls, scales_CM: np.ndarray) -> "IntensityScaleModel":
        """From the scales (C, 4), all above 0, of at least one case."""
        logs_CM = np.log(np.asarray(scales_CM, np.float64))
        count, modalities = logs_CM.shape
        mean_M = logs_CM.mean(0)
        offsets_CM = logs_CM - mean_M
        scatter_MM = offsets_CM.T @ offsets_CM
        sample_MM = scatter_MM / max(1, count - 1)
        others = ~np.eye(modalities, dtype=bool)
        shared, own = max(0.0, float(sample_MM[others].mean())), own_variance(sample_MM)
        simple_MM = shared + own * np.eye(modalities)
        covariance_MM = (scatter_MM + PRIOR_CASES * simple_MM) / (count - 1 + PRIOR_CASES)
        spread = float(np.var(mean_M, ddof=1))
        kept = max(0.0, 1 - own / count / spread) if spread else 0.0
        mean_M = mean_M.mean() + kept * (mean_M - mean_M.mean())
        return cls(tuple(mean_M.tolist()), tuple(map(tuple, covariance_MM.tolist())), count)

    def predict(self, available: Sequence[int], scales: Sequence[float], target: int) -> float:
        """Scale of modality `target` where those numbered in `available` have `scales`."""
        mean_M, covariance_MM, given = np.array(self.mean), np.array(self.covariance), list(available)
        among, own = covariance_MM[np.ix_(given, given)], own_variance(covariance_MM)
        residual = np.log(scales) - mean_M[given]
        weight = np.ones(len(given))
        for _ in range(_ROUNDS):
            solved = np.linalg.solve(among + own * np.diag(1 / weight - 1), residual)
            # What each modality has to itself, with its variance own / weight.
            alone = own / weight * solved
            weight = np.minimum(1, (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + alone**2 / own))
        return float(np.exp(mean_M[target] + covariance_MM[given, target] @ solved))

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": list(self.mean),
            "covariance": [list(r) for r in self.covariance],
            "cases": self.cases,
        }

    @classmethod
    def from_dict(
        cls, values: Any, where: object, modality_set: ModalitySet = BRATS
    ) -> "IntensityScaleModel":
        """Inverse of `to_dict`. Raises DataError that contains `where`."""
        size = len(modality_set)
        try:
            mean, covariance = np.array(values["mean"], float), np.array(values["covariance"], float)
            valid = mean.shape == (size,) and covariance.shape == (size, size)
            valid = valid and bool(np.all(np.linalg.eigvalsh(covariance) > 0) and np.isfinite(mean).all())
            cases = int(values["cases"])
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise DataError(f"{where}: no valid scales ({error!r}); export again") from None
        if not valid:
            raise DataError(
                f"{where}: scales need {size} finite means and a positive definite covariance; export again"
            )
        return cls(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())), cases)


def own_variance(covariance_MM: np.ndarray) -> float:
    """Variance of what a modality does not share with the others, on the mean over modalities."""
    variance, others = np.diag(covariance_MM).mean(), covariance_MM[~np.eye(len(covariance_MM), dtype=bool)]
    return max(_LEAST_VARIANCE, float(variance - max(0.0, others.mean())))


def foreground_counts(volume: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """How often each integer occurs where `foreground`, which is where `volume` is above 0, is True."""
    # Transposed, a volume as it is read lies in C order, in which masks are applied fastest.
    return np.bincount(volume.T[foreground.T])


def median_of_counts(counts: np.ndarray) -> int:
    """The (lower) median of the multiset in which integer v occurs counts[v] times; it must not be empty."""
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, (cumulative[-1] - 1) // 2, side="right"))
