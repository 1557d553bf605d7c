"""Two evaluations of the same cases: paired differences, ranks as the challenge forms them, permutation tests.

    cases.csv of A --\\
                      pairs (case, modality) --> by score: mean difference B - A and its p
    cases.csv of B --/                       --> ranks within each pair and score --> mean rank of A and of B, and their p

The ranking is BraTS': for every case and every score both runs are ranked (1 better, 2 worse, 1.5 each where equal), a run's
rank is the mean over cases and scores, all alike, and whether the difference may be chance is asked by permutation: under the
null hypothesis the two runs are exchangeable within each patient, so each patient's results may change sides.

A patient is what changes sides: several volumes of one patient (each modality dropped in turn, several time points) are averaged
first, as they do not count as independent. Tests are two-sided. Where there are at most as many sign patterns (2 ^ patients) as
resamples they are all counted and p is exact; else random ones, and p = (count + 1) / (resamples + 1), never 0. P values are not
corrected for the number of scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import REGIONS, Case
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import better
from brasyn_dist.evaluation.tables import read_table

CHALLENGE_SCORES = ("challenge_ssim/healthy", "challenge_ssim/tumour", *(f"dice/{r}" for r in REGIONS))
"""What the challenge ranks by."""
RESAMPLES = 99_999

Key = tuple[str, str]
"""(case, modality)"""
Scored = Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """Scores of the same case and modality in both evaluations."""

    case: str
    modality: str
    a: Scored
    b: Scored

    @property
    def patient(self) -> str:
        return Case(self.case, Path()).patient


@dataclass(frozen=True)
class Difference:
    """Of one score: means over patients, B - A, and how often chance alone gives as much."""

    score: str
    patients: int
    mean_a: float
    mean_b: float
    difference: float
    p: float


@dataclass(frozen=True)
class Ranking:
    """Mean rank (1 to 2, less is better) over patients and `scores`."""

    scores: tuple[str, ...]
    patients: int
    rank_a: float
    rank_b: float
    p: float


@dataclass(frozen=True)
class Comparison:
    pairs: int
    differences: tuple[Difference, ...]
    ranking: Ranking | None
    """None if no score that the ranking counts is known."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_rows(path: Path, method: str) -> dict[Key, dict[str, float | None]]:
    """Scores of one method by case and modality. Raises DataError if there are none, naming the methods that there are."""
    rows = read_table(path)
    chosen = {(r.case, r.modality): r.scores for r in rows if r.method == method}
    if not chosen:
        raise DataError(
            f"{path}: no method {method!r}; there are {', '.join(sorted({r.method for r in rows}))}"
        )
    return chosen


def pair_rows(a: Mapping[Key, Scored], b: Mapping[Key, Scored], common: bool = False) -> list[Pair]:
    """Pairs sorted by case and modality. Raises DataError if one side has others than the other, unless `common`."""
    both = sorted(set(a) & set(b))
    single = sorted(set(a) ^ set(b))
    if not both:
        raise DataError("the two evaluations have no case and modality in common")
    if single and not common:
        names = ", ".join(f"{c} {m} ({'A' if (c, m) in a else 'B'})" for c, m in single[:5])
        raise DataError(
            f"{len(single)} volumes are in one evaluation only: {names}{', ...' * (len(single) > 5)}; "
            "--common compares the rest, which may favour the one that failed on hard cases"
        )
    return [Pair(*key, a[key], b[key]) for key in both]


def compare(
    pairs: Sequence[Pair],
    rank_by: Sequence[str] = CHALLENGE_SCORES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Raises DataError if `rank_by` is not the default and names a score that no pair has."""
    known = [s for s in pairs[0].a if any(_both(p, s) for p in pairs)]
    unknown = [s for s in rank_by if s not in known]
    if unknown and tuple(rank_by) != CHALLENGE_SCORES:
        raise DataError(
            f"no volume has {', '.join(unknown)} in both evaluations; there are {', '.join(known)}"
        )
    ranked = tuple(s for s in rank_by if s in known)
    return Comparison(
        len(pairs),
        tuple(difference(pairs, s, resamples, seed) for s in known),
        ranking(pairs, ranked, resamples, seed) if ranked else None,
    )


def difference(pairs: Sequence[Pair], score: str, resamples: int, seed: int) -> Difference:
    """Paired difference of one score, over the pairs that have it on both sides."""
    values = by_patient([(p.patient, both) for p in pairs if (both := _both(p, score))])
    differences = values[:, 1] - values[:, 0]
    mean_a, mean_b = values.mean(axis=0).tolist()
    p = sign_flip_p(differences, resamples, seed)
    return Difference(score, len(values), mean_a, mean_b, float(differences.mean()), p)


def ranking(pairs: Sequence[Pair], scores: Sequence[str], resamples: int, seed: int) -> Ranking:
    """Ranks within each pair and score, averaged over the scores of the pair, then over the pairs of the patient."""
    ranks = []
    for pair in pairs:
        known = [(s, both) for s in scores if (both := _both(pair, s))]
        if known:
            each = [rank_of(a, b, s) for s, (a, b) in known]
            ranks.append((pair.patient, (float(np.mean(each)), 3.0 - float(np.mean(each)))))
    values = by_patient(ranks)
    rank_a, rank_b = values.mean(axis=0).tolist()
    p = sign_flip_p(values[:, 1] - values[:, 0], resamples, seed)
    return Ranking(tuple(scores), len(values), rank_a, rank_b, p)


def rank_of(a: float, b: float, score: str) -> float:
    """Rank of a against b: 1 if it is better, 2 if worse, 1.5 if equal."""
    return 1.5 - 0.5 * float(np.sign((a - b) * better(score)))


def by_patient(values: Sequence[tuple[str, tuple[float, float]]]) -> np.ndarray:
    """(patients, 2): means over each patient's volumes, sorted by patient."""
    volumes: dict[str, list[tuple[float, float]]] = {}
    for patient, pair in values:
        volumes.setdefault(patient, []).append(pair)
    return np.array([np.mean(volumes[p], axis=0) for p in sorted(volumes)])


def sign_flip_p(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences, when each may have either sign; exact if 2 ^ n <= resamples."""
    from scipy.stats import permutation_test

    def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(values, axis=axis)

    if not differences.any():
        return 1.0
    if len(differences) == 1:
        return 1.0  # either sign gives as much
    tested = permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(tested.pvalue))


def _both(pair: Pair, score: str) -> tuple[float, float] | None:
    a, b = pair.a.get(score), pair.b.get(score)
    return None if a is None or b is None else (a, b)


def comparison_table(comparison: Comparison) -> str:
    """As text; `*` marks the better side where p < 0.05."""
    lines = [f"{'score':<26}{'patients':>9}{'A':>12}{'B':>12}{'B - A':>12}{'p':>10}  better"]
    for d in comparison.differences:
        lines.append(
            f"{d.score:<26}{d.patients:>9}{d.mean_a:>12.5g}{d.mean_b:>12.5g}{d.difference:>12.3g}{d.p:>10.4f}  "
            + _verdict(d.difference * better(d.score), d.p)
        )
    ranked = comparison.ranking
    if ranked is not None:
        lines.append(
            f"{'mean rank':<26}{ranked.patients:>9}{ranked.rank_a:>12.5g}{ranked.rank_b:>12.5g}"
            f"{ranked.rank_b - ranked.rank_a:>12.3g}{ranked.p:>10.4f}  "
            + _verdict(ranked.rank_a - ranked.rank_b, ranked.p)
        )
        lines.append(
            f"ranked by {', '.join(ranked.scores)}, all alike, within each of {comparison.pairs} volumes"
        )
    lines.append(
        "p: paired permutation test over patients, two-sided, not corrected for the number of scores; * p < 0.05"
    )
    return "\n".join(lines)


def _verdict(in_favour_of_b: float, p: float) -> str:
    if in_favour_of_b == 0:
        return "-"
    return ("B" if in_favour_of_b > 0 else "A") + (" *" if p < 0.05 else "")
