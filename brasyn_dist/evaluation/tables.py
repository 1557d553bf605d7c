"""From scores of cases to the table that people read: means with confidence intervals, methods side by side.

    CaseResults --> rows (case, modality, method, scores) --> cases.csv, which has every copy, too
                --> means by method and modality          --> summary.json, table

The best copy is chosen for each target modality by its mean MAE over the very cases that are scored: hindsight, in the
baseline's favour.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import MODALITIES
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.baselines import COPY, MEAN
from brasyn_dist.evaluation.regression import REGRESSION
from brasyn_dist.evaluation.scoring import SYNTHETIC, CaseResult

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
_KEYS = ("case", "cohort", "modality", "method")


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
    """One row for each scored prediction and method, the best copy among them (see `with_best_copy`).

    All rows have the same scores by name; what a method has no score for is None.
    """
    results = list(results)
    names = list(dict.fromkeys(n for r in results for scores in r.scores.values() for n in scores))
    return with_best_copy(
        Row(r.prediction.case, r.cohort, r.prediction.modality, method, {n: scores.get(n) for n in names})
        for r in results
        for method, scores in r.scores.items()
    )


def with_best_copy(rows: Iterable[Row]) -> list[Row]:
    """Sorted rows in which the best copy is chosen anew, for instance over the folds of a cross-validation."""
    rows = [r for r in rows if r.method != BEST_COPY]
    chosen = {m: best_copy([r for r in rows if r.modality == m]) for m in MODALITIES}
    rows += [replace(r, method=BEST_COPY) for r in rows if r.method == chosen[r.modality]]
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(rows, key=lambda r: (r.modality, r.case, order.get(r.method, len(order)), r.method))


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
    writer.writerow([*_KEYS, *names])
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


def read_table(path: Path) -> list[Row]:
    """The inverse of `rows_csv`, of a file or of the folder it is in. Raises DataError if it is not such a table."""
    path = path / "cases.csv" if path.is_dir() else path
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a cases.csv that brasyn_dist.evaluate wrote"
        ) from None
    if not lines or not set(_KEYS) <= set(lines[0]):
        raise DataError(f"{path}: no table of brasyn_dist.evaluate: columns {', '.join(_KEYS)} are expected")
    try:
        return [
            Row(
                *key,
                {name: float(text) if text else None for name, text in line.items() if name not in _KEYS},
            )
            for line in lines
            for key in [(line["case"], line["cohort"], line["modality"], line["method"])]
        ]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged table ({error}); evaluate again") from None


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
