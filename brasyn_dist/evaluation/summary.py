"""From scores of cases to the table that people read: means with confidence intervals, methods side by side.

    CaseResults --> rows (case, modality, method, scores) --> cases.csv
                --> means by method and modality          --> summary.json, table

The best copy is chosen for each target modality by its mean MAE over the very cases that are scored: hindsight, in the
baseline's favour.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brasyn_dist.brats import MODALITIES
from brasyn_dist.evaluation.baselines import COPY, MEAN
from brasyn_dist.evaluation.cases import SYNTHETIC, CaseResult
from brasyn_dist.evaluation.regression import REGRESSION

BEST_COPY = "best copy"
METHODS = (SYNTHETIC, MEAN, BEST_COPY, REGRESSION)
ALL = "all"
HEADLINES = (
    "mae/brain",
    "psnr/brain",
    "ssim/healthy",
    "ssim/tumour",
    "challenge_ssim/healthy",
    "challenge_ssim/tumour",
)
"""Image scores of the printed table."""
OVERLAP_HEADLINES = tuple(f"{m}/{r}" for m in ("dice", "nsd", "hd95") for r in ("ET", "TC", "WT"))
"""Scores of the second table, if there are segmentations."""


@dataclass(frozen=True)
class Row:
    """Scores of one method on one case and modality."""

    case: str
    cohort: str
    modality: str
    method: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Mean:
    """Mean over cases and its 95 % confidence interval (Student's t); the interval is None for a single case."""

    mean: float
    low: float | None
    high: float | None
    cases: int


def rows_of(results: Iterable[CaseResult]) -> list[Row]:
    """One row for each scored prediction and method, with the best copy in place of all copies.

    All rows have the same scores by name; what a method has no score for is None.
    """
    results = list(results)
    names = list(dict.fromkeys(n for r in results for scores in r.scores.values() for n in scores))
    rows = [
        Row(r.prediction.case, r.cohort, r.prediction.modality, method, {n: scores.get(n) for n in names})
        for r in results
        for method, scores in r.scores.items()
    ]
    chosen = {m: best_copy([r for r in rows if r.modality == m]) for m in MODALITIES}
    kept = [r for r in rows if not r.method.startswith(COPY)]
    kept += [
        Row(r.case, r.cohort, r.modality, BEST_COPY, r.scores) for r in rows if r.method == chosen[r.modality]
    ]
    return sorted(kept, key=lambda r: (r.modality, r.case, METHODS.index(r.method)))


def best_copy(rows: Sequence[Row]) -> str | None:
    """The copy with the smallest mean MAE over these rows."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        if row.method.startswith(COPY) and (value := row.scores["mae/brain"]) is not None:
            errors.setdefault(row.method, []).append(value)
    return min(errors, key=lambda m: float(np.mean(errors[m])), default=None)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean with t-interval of independent values."""
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Mean(mean, None, None, n)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Mean]]]:
    """[modality or `all`][method][score name] -> Mean; scores that no case has are absent."""
    summary: dict[str, dict[str, dict[str, Mean]]] = {}
    for modality in (ALL, *MODALITIES):
        for method in METHODS:
            chosen = [r for r in rows if r.method == method and modality in (ALL, r.modality)]
            names = chosen[0].scores if chosen else ()
            known = {n: [v for r in chosen if (v := r.scores[n]) is not None] for n in names}
            means = {n: mean_of(values) for n, values in known.items() if values}
            if means:
                summary.setdefault(modality, {})[method] = means
    return summary


def summary_json(summary: dict[str, dict[str, dict[str, Mean]]]) -> dict[str, Any]:
    return {
        modality: {
            method: {name: asdict(mean) for name, mean in means.items()} for method, means in methods.items()
        }
        for modality, methods in summary.items()
    }


def summary_of(values: dict[str, Any]) -> dict[str, dict[str, dict[str, Mean]]]:
    """The inverse of `summary_json`."""
    return {
        modality: {
            method: {name: Mean(**mean) for name, mean in means.items()} for method, means in methods.items()
        }
        for modality, methods in values.items()
    }


def rows_csv(rows: Sequence[Row]) -> str:
    """cases.csv: one line for each case, modality and method; unknown scores are empty."""
    names = list(rows[0].scores) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "cohort", "modality", "method", *names])
    for row in rows:
        values = (row.scores[n] for n in names)
        writer.writerow(
            [
                row.case,
                row.cohort,
                row.modality,
                row.method,
                *("" if v is None else f"{v:.6g}" for v in values),
            ]
        )
    return text.getvalue()


def number(mean: Mean | None) -> str:
    """`0.893 ± 0.012`: mean and half the 95 % interval."""
    if mean is None:
        return "-"
    digits = 3 if abs(mean.mean) < 2 else 2 if abs(mean.mean) < 100 else 1
    text = f"{mean.mean:.{digits}f}"
    return text if mean.high is None else f"{text} ± {mean.high - mean.mean:.{digits}f}"


def text_table(summary: dict[str, dict[str, dict[str, Mean]]]) -> str:
    """The headline scores as text, methods below each other for each target modality; overlaps in a table of their own."""
    lines = _lines(summary, HEADLINES, "mae/brain", 24)
    lines.append(
        "± half of the 95 % confidence interval over cases. Challenge SSIM is dominated by background."
    )
    if any(m.get(OVERLAP_HEADLINES[0]) for methods in summary.values() for m in methods.values()):
        lines += ["", *_lines(summary, OVERLAP_HEADLINES, OVERLAP_HEADLINES[0], 17)]
        lines.append("Of segmentations of the completed cases; regions, not single lesions; HD95 in mm.")
    return "\n".join(lines)


def _lines(
    summary: dict[str, dict[str, dict[str, Mean]]], names: Sequence[str], counted: str, width: int
) -> list[str]:
    """One table; methods without a mean of `counted` are left out."""
    lines = [f"{'target':<8}{'method':<20}{'cases':>6}" + "".join(f"{n:>{width}}" for n in names)]
    for modality, methods in summary.items():
        for method, means in methods.items():
            if counted in means:
                cells = "".join(f"{number(means.get(n)):>{width}}" for n in names)
                lines.append(f"{modality:<8}{method:<20}{means[counted].cases:>6}{cells}")
    return lines
