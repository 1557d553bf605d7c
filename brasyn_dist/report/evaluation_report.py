"""report.html of an evaluation.

typical case, comparison with the baselines --> tables --> distributions --> worst and best cases
    --> data --> training --> provenance
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from brasyn_dist.brats import BRATS, Case
from brasyn_dist.common.files import read_json
from brasyn_dist.evaluation.comparison_table import cohort_rows
from brasyn_dist.evaluation.scoring import CaseScores
from brasyn_dist.evaluation.tables import ALL, by_cohort, summarise
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.case_views import case_views, region_legend
from brasyn_dist.report.provenance_facts import environment_facts, manifest_facts, this_program
from brasyn_dist.report.rendering import write_html
from brasyn_dist.report.score_tables import distributions, method_colours, overview, score_tables
from brasyn_dist.report.training_report import describe_run


def write_report(
    path: Path,
    results: Sequence[CaseScores],
    table: pd.DataFrame,
    cases: Mapping[str, Case],
    predictions: Path,
    run_dir: Path | None = None,
    modality_set: ModalitySet = BRATS,
    reference: str = "",
) -> None:
    """Write the report of an evaluation.

    Args:
        path: The HTML file.
        results: Of all predictions, also of those that could not be scored.
        table: Their score table (evaluation/tables.py), not empty.
        cases: Reference cases by name.
        predictions: Folder of the predictions, which may have a manifest.json.
        run_dir: Adds the training curves of this run.
        modality_set: Of predictions and references.
        reference: Sentence about the reference segmentations.
    """
    scored = [r for r in results if r.scores]
    subjects = len({r.prediction.case for r in scored})
    summary = summarise(table)
    cards, beaten = overview(summary, modality_set)
    opening, shown = case_views(scored, cases, predictions, modality_set)
    data_head, data_rows = volumes_by_cohort(results, modality_set)
    write_html(
        path,
        "evaluation.html.j2",
        title="Synthesis of missing brain MRI sequences",
        subtitle=f"{plural(len(scored), 'synthetic volume')} of {plural(subjects, 'case')}, "
        "compared with the real volumes",
        opening=opening,
        cards=cards,
        beaten=beaten,
        problems=[
            f"{r.prediction.path.name}{' (scored in part)' if r.scores else ''}: {r.problem}"
            for r in results
            if r.problem is not None
        ],
        **score_tables(summary, modality_set),
        reference=reference,
        cohort_head=["score", "class", *(cohorts := {ALL: table} | by_cohort(table))],
        cohort_rows=cohort_rows(cohorts),
        method_colours=method_colours(table),
        distributions=distributions(table, modality_set),
        outline_colours=region_legend(modality_set),
        cases=shown,
        data_head=data_head,
        data_rows=data_rows,
        run_name=run_dir.resolve().name if run_dir else "",
        run=describe_run(run_dir) if run_dir else None,
        program=this_program(),
        predictions=str(predictions),
        synthesis=manifest_facts(predictions / "manifest.json"),
        trained=environment_facts(read_json(run_dir / "environment.json")) if run_dir else {},
    )


def plural(count: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def volumes_by_cohort(
    results: Sequence[CaseScores], modality_set: ModalitySet = BRATS
) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table: scored volumes by cohort and target."""
    head = ["cohort", "cases", *map(modality_set.title, modality_set.modalities), "not scored"]
    rows = []
    for cohort in sorted({r.cohort or "unknown" for r in results}):
        chosen = [r for r in results if (r.cohort or "unknown") == cohort]
        scored = [r.prediction.modality for r in chosen if r.scores]
        counts = [scored.count(m) for m in modality_set.modalities]
        rows.append([cohort, len({r.prediction.case for r in chosen}), *counts, len(chosen) - len(scored)])
    return head, rows
