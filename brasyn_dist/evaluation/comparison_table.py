"""Scores of several evaluations in the layout of the thesis (Table 5.1).

    evaluations --comparison--> rows metric x validation set x class, a column for each run
                --markdown, csv, latex--> text

Similarities, Dice and NSD are percentages. The best run of each row is bold.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from brasyn_dist.brats import BRATS
from brasyn_dist.evaluation.image_metrics import direction
from brasyn_dist.evaluation.scoring import SYNTHETIC
from brasyn_dist.evaluation.tables import ALL, by_cohort, mean_of, metrics_of, number

TITLES = {
    "challenge_ssim": "SSIM (challenge)",
    "dice": "Dice",
    "nsd": "NSD",
    "voxel_nsd": "NSD (border voxels)",
    "hd95": "HD95 (mm)",
    "ssim": "SSIM (region)",
    "ms_ssim": "MS-SSIM",
    "gmsd": "GMSD",
    "psnr": "PSNR (dB)",
    "mae": "MAE",
    "nmae": "normalised MAE",
    "matched_psnr": "PSNR, scale matched (dB)",
    "matched_nmae": "normalised MAE, scale matched",
}
"""Metrics in the order of the table; the first three are those of Table 5.1."""
CLASSES = {"tumour": "WT", "healthy": "HT", "brain": "brain", "ET": "ET", "TC": "TC", "WT": "WT"}
"""Title of each region of BraTS, in the order of the rows of a metric. Regions of other modality sets follow,
and their own names are the titles."""
LEFT_OUT = ("NETC", "ED", "tutorial")
"""Masks of BraTS that Table 5.1 does not have."""
PERCENT = ("challenge_ssim", "dice", "nsd", "voxel_nsd", "ssim", "ms_ssim")
LEVELS = ("metric", "validation set", "class")


def rows_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(metric, region) of the known scores, in the order of the comparison."""
    found = [tuple(name.partition("/")[::2]) for name in metrics_of(table) if table[name].notna().any()]
    regions = dict.fromkeys([*CLASSES, *(r for _, r in found if r not in LEFT_OUT)])
    return [(m, r) for m in TITLES for r in regions if (m, r) in found]


def class_titles(table: pd.DataFrame) -> dict[str, str]:
    """Titles of the regions of a score table; of sets other than BraTS their names."""
    return CLASSES if set(table.modality) <= set(BRATS.modalities) else {}


def comparison(evaluations: Mapping[str, pd.DataFrame], method: str = SYNTHETIC) -> pd.DataFrame:
    """Means of several score tables.

    Args:
        evaluations: Score table of each run, by its name.
        method: Method of which the scores are taken.

    Returns:
        Index: (metric, validation set, class) in the order of Table 5.1, metrics by their name; columns:
        runs; NaN where a run has no such score.
    """
    chosen = {name: table[table.method == method] for name, table in evaluations.items()}
    everything = pd.concat(chosen.values())
    sets = [ALL, *by_cohort(everything)]
    titles, rows = class_titles(everything), rows_of(everything)
    values = {
        (metric, which, titles.get(region, region)): [
            mean_in(({ALL: t} | by_cohort(t)).get(which), f"{metric}/{region}") for t in chosen.values()
        ]
        for metric in dict.fromkeys(metric for metric, _ in rows)
        for which in sets
        for region in (region for other, region in rows if other == metric)
    }
    index = pd.MultiIndex.from_tuples(list(values), names=LEVELS)
    return pd.DataFrame(list(values.values()), index=index, columns=list(chosen)).dropna(how="all")


def mean_in(table: pd.DataFrame | None, name: str) -> float:
    """Mean of a metric, in per cent where the comparison shows per cent; NaN if it is unknown."""
    if table is None or name not in table or table[name].isna().all():
        return np.nan
    return mean_of(table[name]).mean * (100 if name.partition("/")[0] in PERCENT else 1)


def titled(frame: pd.DataFrame) -> pd.DataFrame:
    """The comparison with the titles of metrics."""
    names = [
        (TITLES[m] + " %" * (m in PERCENT), which.upper() if which == ALL else which, title)
        for m, which, title in frame.index
    ]
    return frame.set_axis(pd.MultiIndex.from_tuples(names, names=LEVELS))


def best_of(frame: pd.DataFrame) -> pd.DataFrame:
    """True at the best run of each row, if there are several runs."""
    signs = np.array([[direction(metric)] for metric, _, _ in frame.index])
    values = frame * signs
    return values.eq(values.max(axis=1), axis=0) & (frame.shape[1] > 1)


def markdown(frame: pd.DataFrame) -> str:
    """The comparison as a Markdown table."""
    shown = cells(frame, "**{}**")
    head = [*LEVELS, *frame.columns]
    lines = [head, ["---"] * 3 + ["---:"] * frame.shape[1]]
    lines += [[*names, *row] for names, row in zip(shown.index, shown.to_numpy())]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def latex(frame: pd.DataFrame) -> str:
    """The comparison as a LaTeX table, for the packages booktabs and multirow."""
    style = (
        cells(frame, "\\textbf{{{}}}").style.format_index(escape="latex").format_index(escape="latex", axis=1)
    )
    return style.to_latex(hrules=True, clines="skip-last;data", column_format="lll" + "r" * frame.shape[1])


def cells(frame: pd.DataFrame, bold: str) -> pd.DataFrame:
    """Text of each mean with two decimals, the best of each row as `bold`."""
    best = best_of(frame)
    texts = frame.map(lambda v: "-" if np.isnan(v) else f"{v:.2f}")
    return titled(texts.where(~best, texts.map(bold.format)))


def cohort_rows(cohorts: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    """Cells of a table of one evaluation: metric, class, and the mean in each cohort with its interval."""
    parts = [table[table.method == SYNTHETIC] for table in cohorts.values()]
    titles = class_titles(parts[0])
    return [
        [
            TITLES[metric],
            titles.get(region, region),
            *(number(mean_of(p[name])) if p[name].notna().any() else "-" for p in parts),
        ]
        for metric, region in rows_of(parts[0])
        for name in [f"{metric}/{region}"]
    ]
