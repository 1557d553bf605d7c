"""Comparison of two evaluations of the same cases: paired differences, ranking, permutation tests.

    cases.csv of A, cases.csv of B --pair_scores--> pairs by (case, modality)
        --> for each metric: mean difference B - A and p
        --> ranks within each pair and metric --> mean rank of A and B, and p

The ranking is that of BraTS. For every case and metric both methods are ranked (1 better, 2 worse, 1.5 each
if equal). The rank of a method is the mean over cases and metrics with equal weights. The permutation test
exchanges the results of both methods within each patient, because under the null hypothesis they are
exchangeable there.

Several volumes of one patient (each modality dropped in turn, several time points) are not independent:
they are averaged first. Tests are two-sided. If there are at most as many sign patterns (2 ^ patients) as
resamples, all are enumerated and p is exact. Otherwise random ones are drawn, and p = (count + 1) /
(resamples + 1), never 0. P values are not corrected for the number of metrics.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brasyn_dist.brats import REGIONS, Case
from brasyn_dist.common.text_table import render_text_table
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import direction
from brasyn_dist.evaluation.tables import metrics_of, read_table

CHALLENGE_SCORES = ("challenge_ssim/healthy", "challenge_ssim/tumour", *(f"dice/{r}" for r in REGIONS))
"""Metrics of the challenge's ranking."""
RESAMPLES = 99_999
KEY = ["case", "modality"]


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Metrics of the same volumes in both evaluations: equal index (case, modality) and equal columns."""

    a: pd.DataFrame
    b: pd.DataFrame

    def values(self, metric: str) -> pd.DataFrame:
        """Columns `a` and `b` of one metric, for the pairs in which both are known."""
        return pd.DataFrame({"a": self.a[metric], "b": self.b[metric]}).dropna()


@dataclass(frozen=True)
class ScoreDifference:
    """Means of one metric over patients, mean of B - A, and the p value of the permutation test."""

    score: str
    patients: int
    mean_a: float
    mean_b: float
    difference: float
    p: float


@dataclass(frozen=True)
class Ranking:
    """Mean ranks (1 to 2, lower is better) over patients and the metrics `scores`."""

    scores: tuple[str, ...]
    patients: int
    rank_a: float
    rank_b: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Differences of all metrics, and the ranking."""

    pairs: int
    differences: tuple[ScoreDifference, ...]
    ranking: Ranking | None
    """None if no metric of the ranking is known."""

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def read_scores(path: Path, method: str) -> pd.DataFrame:
    """Metrics of one method from cases.csv; index (case, modality).

    Raises:
        DataError: The table has no such method.
    """
    table = read_table(path)
    chosen = table[table.method == method]
    if chosen.empty:
        raise DataError(f"{path}: no method {method!r}; there are {', '.join(sorted(set(table.method)))}")
    return chosen.set_index(KEY)[metrics_of(table)]


def pair_scores(a: pd.DataFrame, b: pd.DataFrame, common: bool = False) -> PairedScores:
    """Pair both evaluations by case and modality, sorted.

    Args:
        a: As `read_scores` returns it.
        b: Likewise.
        common: Leave out volumes that only one evaluation has.

    Raises:
        DataError: A volume is in one evaluation only, and `common` is False; or no volume is in both.
    """
    both, single = a.index.intersection(b.index).sort_values(), a.index.symmetric_difference(b.index)
    if both.empty:
        raise DataError("the two evaluations have no case and modality in common")
    if len(single) and not common:
        names = ", ".join(f"{c} {m} ({'A' if (c, m) in a.index else 'B'})" for c, m in single[:5])
        raise DataError(
            f"{len(single)} volumes are in one evaluation only: {names}{', ...' * (len(single) > 5)}; "
            "--common compares the others, which may favour the evaluation that failed on hard cases"
        )
    metrics = [m for m in a.columns if m in b.columns]
    return PairedScores(a.loc[both, metrics], b.loc[both, metrics])


def compare_scores(
    pairs: PairedScores, rank_by: Sequence[str] = CHALLENGE_SCORES, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare all metrics that both evaluations have.

    Args:
        pairs: Of at least one volume.
        rank_by: Metrics of the ranking. Unknown metrics of the default are left out.
        resamples: Largest number of sign patterns of a permutation test.
        seed: Of random sign patterns.

    Raises:
        DataError: `rank_by` is not the default and names a metric that no volume has in both evaluations.
    """
    known = [m for m in pairs.a.columns if len(pairs.values(m))]
    unknown = [m for m in rank_by if m not in known]
    if unknown and tuple(rank_by) != CHALLENGE_SCORES:
        raise DataError(
            f"no volume has {', '.join(unknown)} in both evaluations; there are {', '.join(known)}"
        )
    ranked = [m for m in rank_by if m in known]
    return Comparison(
        len(pairs.a),
        tuple(score_difference(pairs, m, resamples, seed) for m in known),
        ranking(pairs, ranked, resamples, seed) if ranked else None,
    )


def score_difference(pairs: PairedScores, metric: str, resamples: int, seed: int) -> ScoreDifference:
    """Paired difference of one metric over the pairs that have it in both evaluations."""
    patients = mean_of_patients(pairs.values(metric))
    differences = (patients.b - patients.a).to_numpy()
    p = sign_flip_p(differences, resamples, seed)
    return ScoreDifference(
        metric,
        len(patients),
        float(patients.a.mean()),
        float(patients.b.mean()),
        float(differences.mean()),
        p,
    )


def ranking(pairs: PairedScores, metrics: Sequence[str], resamples: int, seed: int) -> Ranking:
    """Ranks within each pair and metric, averaged over metrics, then over the volumes of each patient."""
    ranks = pd.concat([rank_of_a(pairs.values(m), m) for m in metrics], axis=1).mean(axis=1)
    patients = mean_of_patients(pd.DataFrame({"a": ranks, "b": 3 - ranks}))
    p = sign_flip_p((patients.b - patients.a).to_numpy(), resamples, seed)
    return Ranking(tuple(metrics), len(patients), float(patients.a.mean()), float(patients.b.mean()), p)


def rank_of_a(values: pd.DataFrame, metric: str) -> pd.Series:
    """Rank of `a` against `b` in each pair: 1 if it is better, 2 if worse, 1.5 if equal."""
    return 1.5 - 0.5 * np.sign((values.a - values.b) * direction(metric))


def mean_of_patients(values: pd.DataFrame) -> pd.DataFrame:
    """Means over the volumes of each patient, sorted by patient; `values` has the index (case, modality)."""
    return values.groupby([Case(case, Path()).patient for case, _ in values.index]).mean()


def sign_flip_p(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences under sign changes; exact if 2 ^ n <= resamples."""
    from scipy.stats import permutation_test

    if not differences.any() or len(differences) == 1:
        return 1.0  # a single difference is equally far from 0 with either sign
    tested = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(tested.pvalue))


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text; `*` marks p < 0.05."""
    rows: list[tuple[str, int, float, float, float, float, float]] = [
        (d.score, d.patients, d.mean_a, d.mean_b, d.difference, d.p, d.difference * direction(d.score))
        for d in comparison.differences
    ]
    notes = [
        "p: paired permutation test over patients, two-sided, not corrected for several metrics; * p < 0.05"
    ]
    if (r := comparison.ranking) is not None:
        difference = r.rank_b - r.rank_a
        rows.append(("mean rank", r.patients, r.rank_a, r.rank_b, difference, r.p, -difference))
        names = ", ".join(r.scores)
        notes.insert(0, f"ranked by {names} with equal weights, within each of {comparison.pairs} volumes")
    lines = []
    for name, patients, a, b, difference, p, advantage_of_b in rows:
        better = "-" if advantage_of_b == 0 else ("B" if advantage_of_b > 0 else "A") + " *" * (p < 0.05)
        lines.append([name, f"{patients}", f"{a:.5g}", f"{b:.5g}", f"{difference:.3g}", f"{p:.4f}", better])
    head = ["metric", "patients", "A", "B", "B - A", "p", "better"]
    return render_text_table(head, lines) + "\n".join(notes)
