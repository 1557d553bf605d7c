"""Score tables: metrics of all cases as a data frame, means with confidence intervals, text tables.

    CaseScores --> score_table: a row for each case, modality and method --> cases.csv (with every copy)
               --> summarise: means by target, method and metric         --> summary.json, text table

The best copy is chosen for each target modality by its mean MAE over the very cases that are scored. This
hindsight favours the baseline.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brasyn_dist.brats import BRATS, TUMOUR_TYPES, UNKNOWN_TYPE, tumour_type
from brasyn_dist.common.files import read_text
from brasyn_dist.common.text_table import render_text_table
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.baselines import COPY, MEAN, REGRESSION
from brasyn_dist.evaluation.scoring import SYNTHETIC, CaseScores
from brasyn_dist.modality_set import ModalitySet

BEST_COPY = "best copy"
METHODS = (SYNTHETIC, MEAN, BEST_COPY, REGRESSION)
ALL = "all"
KEYS = ["case", "cohort", "modality", "method"]
"""Columns of a score table; all other columns are metrics, NaN where unknown."""
IMAGE_HEADLINES = (
    "mae/brain", "nmae/brain", "psnr/brain", "matched_psnr/brain", "ssim/healthy", "ssim/tumour",
    "challenge_ssim/healthy", "challenge_ssim/tumour",
)  # fmt: skip
"""Metrics of the printed table."""


class Mean(NamedTuple):
    """Mean over cases and its 95 % confidence interval (Student's t). A single case has no interval: NaN."""

    mean: float
    low: float
    high: float
    cases: int


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Names of the metrics of a score table, in order."""
    return [column for column in table.columns if column not in KEYS]


def score_table(results: Iterable[CaseScores]) -> pd.DataFrame:
    """A row for each scored prediction and method, the best copy included (see `with_best_copy`)."""
    rows = [
        {
            "case": r.prediction.case, "cohort": r.cohort,
            "modality": r.prediction.modality, "method": method,
            **{name: np.nan if value is None else value for name, value in values.items()},
        }
        for r in results
        for method, values in r.scores.items()
    ]  # fmt: skip
    return with_best_copy(pd.DataFrame(rows, columns=None if rows else KEYS))


def with_best_copy(table: pd.DataFrame) -> pd.DataFrame:
    """The sorted table with rows of the best copy, which replace existing ones (for pooled folds)."""
    table = table[table.method != BEST_COPY]
    copies = table[table.method.str.startswith(COPY)]
    if len(copies):
        errors = copies.groupby(["modality", "method"])["mae/brain"].mean().dropna()
        best = errors.groupby("modality").idxmin()
        chosen = copies[[m in set(best) for m in zip(copies.modality, copies.method)]]
        table = pd.concat([table, chosen.assign(method=BEST_COPY)])
    position = table.method.map({method: number for number, method in enumerate(METHODS)}).fillna(
        len(METHODS)
    )
    ordered = table.assign(position=position).sort_values(["modality", "case", "position", "method"])
    return ordered.drop(columns="position").reset_index(drop=True)


def mean_of(values: Sequence[float] | pd.Series) -> Mean:
    """Mean with t-interval of independent values; NaNs are left out."""
    from scipy.stats import t

    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    n, mean = len(known), float(np.mean(known))
    if n < 2:
        return Mean(mean, np.nan, np.nan, n)
    half = float(t.ppf(0.975, n - 1) * np.std(known, ddof=1) / np.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over cases.

    Returns:
        Index: target (`all` first), method, metric; metrics that no case has are absent. Columns: the
        fields of `Mean`.
    """
    chosen = table[table.method.isin(METHODS)]
    both = pd.concat([chosen.assign(modality=ALL), chosen])
    names = ["target", "method", "metric"]
    long = (
        both.melt(id_vars=KEYS, var_name="metric")
        .dropna(subset=["value"])
        .rename(columns={"modality": "target"})
    )
    # Categories keep the order of targets, methods and metrics.
    orders = ([ALL, *sorted(set(table.modality))], list(METHODS), metrics_of(table))
    for name, order in zip(names, orders):
        long[name] = pd.Categorical(long[name], order)
    groups = long.groupby(names, observed=True)["value"]
    means = [mean_of(values) for _, values in groups]
    index = pd.MultiIndex.from_tuples([tuple(map(str, key)) for key, _ in groups], names=names)
    return pd.DataFrame(means, index=index, columns=list(Mean._fields))


def by_cohort(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of a score table by kind of cohort (GLI, MET, ...), sorted by name."""
    kinds = pd.Series(
        [kind_of_cohort(c, n) for c, n in zip(table.cohort, table.case)], table.index, dtype=str
    )
    return dict(iter(table.groupby(kinds)))


def kind_of_cohort(cohort: str, case: str) -> str:
    """Type in the name of the case (`BraTS-MEN-...`: MEN) or of its folder, otherwise the folder's name."""
    if named := re.match(r"BraTS-([A-Z]+)-", case, re.I):
        return named[1].upper()
    number = tumour_type(cohort, case)
    return (cohort or "unknown") if number == UNKNOWN_TYPE else TUMOUR_TYPES[number]


def reference_note(kind: str) -> str:
    """What the segmentations of completed cases are compared with, as a sentence."""
    if kind == "pseudo":
        return (
            "Reference segmentations: pseudo-labels, made of the complete real cases by the same segmenter."
        )
    return "Reference segmentations: those of the cases."


def mean_at(summary: pd.DataFrame, target: str, method: str, metric: str) -> Mean | None:
    """One entry of a summary; None if it is absent."""
    key: Any = (target, method, metric)
    return Mean(*summary.loc[key]) if key in summary.index else None


def summary_json(summary: pd.DataFrame) -> dict[str, Any]:
    """[target][method][metric] -> {mean, low, high, cases}; low and high of a single case are None."""
    values: dict[str, Any] = {}
    for (target, method, metric), *numbers in summary.itertuples():
        entry = dict(zip(Mean._fields, (None if np.isnan(n) else n for n in numbers)))
        values.setdefault(target, {}).setdefault(method, {})[metric] = entry
    return values


def table_csv(table: pd.DataFrame) -> str:
    """Text of cases.csv: a line for each case, modality and method; unknown values are empty."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read_table(path: Path) -> pd.DataFrame:
    """Read cases.csv.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        DataError: The file cannot be read or is no score table.
    """
    path = path / "cases.csv" if path.is_dir() else path
    text = io.StringIO(read_text(path, "give a cases.csv that `brasyn evaluate` wrote"))
    try:
        table = pd.read_csv(text, dtype=dict.fromkeys(KEYS, str), float_precision="round_trip")
    except ValueError as error:
        raise DataError(f"{path}: no score table ({error}); evaluate again") from None
    if not set(KEYS) <= set(table) or table.empty:
        raise DataError(f"{path}: no table of `brasyn evaluate`: columns {', '.join(KEYS)} are expected")
    metrics = metrics_of(table)
    try:
        return table.fillna(dict.fromkeys(KEYS, "")).astype(dict.fromkeys(metrics, float))
    except ValueError as error:
        raise DataError(f"{path}: damaged table ({error}); evaluate again") from None


def number(mean: Mean | None) -> str:
    """`0.893 ± 0.012`: mean and half of the 95 % interval."""
    if mean is None or np.isnan(mean.mean):
        return "-"
    digits = 3 if abs(mean.mean) < 2 else 2 if abs(mean.mean) < 100 else 1
    text = f"{mean.mean:.{digits}f}"
    return text if np.isnan(mean.high) else f"{text} ± {mean.high - mean.mean:.{digits}f}"


def segmentation_headlines(summary: pd.DataFrame, modality_set: ModalitySet = BRATS) -> list[str]:
    """Metrics of the second printed table, as far as they are known: Dice, NSD and HD95 of each region."""
    known = set(summary.index.get_level_values("metric"))
    names = (f"{metric}/{region}" for metric in ("dice", "nsd", "hd95") for region in modality_set.regions)
    return [name for name in names if name in known]


def text_table(summary: pd.DataFrame, modality_set: ModalitySet = BRATS) -> str:
    """Headline metrics as text, a line for each target and method; segmentation metrics in a second table."""
    text = _render(summary, IMAGE_HEADLINES)
    text += "± half of the 95 % confidence interval over cases. Background dominates challenge SSIM."
    if segmentation := segmentation_headlines(summary, modality_set):
        text += f"\n\n{_render(summary, segmentation)}"
        text += "Segmentations of the completed cases; whole regions, not single lesions; HD95 in mm."
    return text


def _render(summary: pd.DataFrame, metrics: Sequence[str]) -> str:
    """One table; methods without a value of the first metric are left out."""
    lines = []
    for target, method in dict.fromkeys((t, m) for t, m, _ in summary.index):
        means = [mean_at(summary, target, method, metric) for metric in metrics]
        if means[0] is not None:
            lines.append([target, method, str(int(means[0].cases)), *map(number, means)])
    return render_text_table(["target", "method", "cases", *metrics], lines, text_columns=2)
