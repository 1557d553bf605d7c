"""Contents of a shard set as a table."""

import numpy as np

from brasyn_dist.common.text_table import render_text_table
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.format.metadata import CHUNK, KINDS


def contents_summary(index: ShardIndex) -> str:
    """Table of cases, slices and size by cohort and split, and the cases that were left out, as text."""
    header, (head, *rows) = index.header, table_rows(index)
    lines = [
        render_text_table(head, rows, text_columns=2).rstrip(),
        f"{_samples(index)} in {len(index.shards)} shards, {header.codec}, {header.dtype}",
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
    rows = [("cohort", "split", "cases", "unlabelled", *header.kinds, "MB")]
    rows += [
        (cohort, split, *_counts(index, group_of_case == number))
        for number, (cohort, split) in enumerate(groups)
    ]
    rows.append(("all", "", *_counts(index, np.ones(len(header.cases), bool))))
    return rows


def _samples(index: ShardIndex) -> str:
    header = index.header
    if not header.chunk:
        return f"{len(index)} slices"
    chunks = np.count_nonzero(index.columns["view"] == KINDS.index(CHUNK))
    stage1 = " with stage-1 volumes" if header.stage1 else ""
    return f"{len(index) - chunks} slices and {chunks} chunks of {header.chunk} voxels{stage1}"


def _counts(index: ShardIndex, chosen_cases: np.ndarray) -> tuple[str, ...]:
    """Cells of one row; `chosen_cases` is (cases,) bool."""
    columns = index.columns
    chosen = chosen_cases[columns["case"]]
    cases = [case for case, wanted in zip(index.header.cases, chosen_cases) if wanted]
    samples = [np.count_nonzero(columns["view"][chosen] == KINDS.index(kind)) for kind in index.header.kinds]
    unlabelled = sum(not case.segmentation for case in cases)
    return (
        *(str(n) for n in (len(cases), unlabelled, *samples)),
        f"{columns['size'][chosen].sum() / 1e6:.1f}",
    )
