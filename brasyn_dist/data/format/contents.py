"""Contents of a shard set as a table."""

import numpy as np

from brasyn_dist.brats import VIEWS
from brasyn_dist.common.text_table import render_text_table
from brasyn_dist.data.format.index import ShardIndex


def summary(index: ShardIndex) -> str:
    """Table of cases, slices and size by cohort and split, and the cases that were left out, as text."""
    header, (head, *rows) = index.header, table_rows(index)
    lines = [
        render_text_table(head, rows, text_columns=2).rstrip(),
        f"{len(index)} slices in {len(index.shards)} shards, {header.codec}, {header.dtype}",
    ]
    lines += [
        f"left out: {skipped['cohort']}/{line}"
        for skipped in header.skipped
        for line in skipped["reason"].splitlines()
    ]
    return "\n".join(lines)


def table_rows(index: ShardIndex) -> list[tuple[str, ...]]:
    """Cells: names of the columns, one row for each cohort and split, one row for all."""
    header = index.header
    groups = sorted({(c.cohort, c.split) for c in header.cases})
    group_of_case = np.array([groups.index((c.cohort, c.split)) for c in header.cases])
    rows = [("cohort", "split", "cases", "unlabelled", *header.views, "MB")]
    rows += [
        (cohort, split, *_counts(index, group_of_case == number))
        for number, (cohort, split) in enumerate(groups)
    ]
    rows.append(("all", "", *_counts(index, np.ones(len(header.cases), bool))))
    return rows


def _counts(index: ShardIndex, chosen_cases: np.ndarray) -> tuple[str, ...]:
    """Cells of one row; `chosen_cases` is (cases,) bool."""
    columns = index.columns
    chosen = chosen_cases[columns["case"]]
    cases = [case for case, wanted in zip(index.header.cases, chosen_cases) if wanted]
    slices = [np.count_nonzero(columns["view"][chosen] == VIEWS.index(view)) for view in index.header.views]
    unlabelled = sum(not case.segmentation for case in cases)
    return (
        *(str(n) for n in (len(cases), unlabelled, *slices)),
        f"{columns['size'][chosen].sum() / 1e6:.1f}",
    )
