"""Tables of a data set as in the thesis: clipping candidates, statistics, slices, shares of voxels."""

from collections.abc import Sequence

import numpy as np

from brasyn_dist.brats import BRATS, VIEWS
from brasyn_dist.data.qc.measurements import CAVITY_NAME, CaseFacts
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.statistics import CANDIDATES, Histogram, percentile, summarise

Table = tuple[str, list[str], list[list[str]]]
"""Title, names of the columns, rows."""


def cohort_tables(facts: Sequence[CaseFacts], modality_set: ModalitySet = BRATS) -> list[Table]:
    """Tables 4.1, 4.2 and 4.3 of the thesis and the shares of its appendix A, for these cases.

    Statistics are those of all cases; slices and shares are given by cohort.
    """
    readable = [f for f in facts if f.modalities]
    histogram = histogram_of(readable, modality_set)
    known = [(m, counts) for m, counts in zip(modality_set.modalities, histogram.counts) if counts.sum()]
    names = [m for m, _ in known]
    summaries = [summarise(counts) for _, counts in known]
    cohorts = {
        c: [f for f in readable if f.case.cohort == c] for c in sorted({f.case.cohort for f in readable})
    }
    clipping = [[f"{p:g} %", *(f"{percentile(counts, p):g}" for _, counts in known)] for p in CANDIDATES]
    statistics = [
        ["clipping maximum", *(f"{s.clip_max:g}" for s in summaries)],
        ["mean", *(f"{s.mean:.4f}" for s in summaries)],
        ["standard deviation", *(f"{s.std:.4f}" for s in summaries)],
    ]
    slices = [[v, *(f"{sum(f.slices[v] for f in part):,}" for part in cohorts.values())] for v in VIEWS]
    shares = [[name, *shares_of(part)] for name, part in cohorts.items()]
    return [
        ("Clipping candidates: percentiles of the foreground", ["percentile", *names], clipping),
        ("Statistics after clipping at the 99.5th percentile", ["", *names], statistics),
        ("Slices with enough foreground in every modality", ["view", *cohorts], slices),
        ("Share of all voxels", ["cohort", "cases", "brain", "tumour"], shares),
    ]


def histogram_of(facts: Sequence[CaseFacts], modality_set: ModalitySet) -> Histogram:
    """Sum of the histograms of all cases."""
    histogram = Histogram(modality_set)
    for case in facts:
        counts = [np.zeros(1, np.int64) for _ in modality_set.modalities]
        for number, modality in enumerate(modality_set.modalities):
            found = case.modalities.get(modality)
            if found is not None and len(found.values):
                counts[number] = np.bincount(found.values, found.value_counts).astype(np.int64)
        histogram.add(counts)
    return histogram


def shares_of(facts: Sequence[CaseFacts]) -> list[str]:
    """Cells: cases, percentage of brain, percentage of tumour in the cases with segmentation."""
    labelled = [f for f in facts if f.labels is not None]

    def share(part: int, of: Sequence[CaseFacts]) -> str:
        return f"{100 * part / sum(int(np.prod(f.shape)) for f in of):.2f} %" if of else "-"

    tumour = sum(count for f in labelled for name, count in (f.labels or {}).items() if name != CAVITY_NAME)
    return [str(len(facts)), share(sum(f.brain_voxels for f in facts), facts), share(tumour, labelled)]


def as_text(tables: Sequence[Table]) -> str:
    """The tables with aligned columns."""
    parts = []
    for title, head, rows in tables:
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)) for row in (head, *rows)]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)
