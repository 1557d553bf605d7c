"""report.html of an evaluation: what the numbers look like, in one file that needs no network.

standing beside the baselines --> tables --> spread of the cases --> worst and best cases in three planes --> training --> provenance
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from brasyn_dist.brats import MODALITIES, MODALITY_NAMES, Case
from brasyn_dist.evaluation.scoring import CaseResult
from brasyn_dist.evaluation.tables import Mean, Row
from brasyn_dist.report.case_views import ORDER_BY, extremes
from brasyn_dist.report.curves import training_curves, validation_curves
from brasyn_dist.report.page import Section, bullets, facts, fold, note, table, write_page
from brasyn_dist.report.provenance import manifest_facts, run_facts, this_program
from brasyn_dist.report.score_distributions import distributions
from brasyn_dist.report.score_tables import standing, tables, title_of
from brasyn_dist.report.training_report import configuration
from brasyn_dist.report.training_report import data as run_data
from brasyn_dist.training.loggers import METRICS, read_lines


def write_report(
    path: Path,
    results: Sequence[CaseResult],
    rows: Sequence[Row],
    summary: Mapping[str, Mapping[str, Mapping[str, Mean]]],
    cases: Mapping[str, Case],
    predictions: Path,
    run_dir: Path | None = None,
) -> None:
    """Write the report of an evaluation; `run_dir` adds the training curves of that run."""
    scored = [r for r in results if r.scores]
    people = len({r.prediction.case for r in scored})
    sections = [
        *problems(results),
        Section("Scores", tables(summary), "Means over cases, with half of the 95 % confidence interval."),
        Section(
            "Spread",
            distributions(rows),
            "Each point is a case; the bar is the mean, the box the middle half of the cases.",
        ),
        Section(
            "Cases",
            extremes(scored, cases, predictions),
            f"Worst and best by {title_of(ORDER_BY)}. Each plane cuts through most of the tumour; real and synthetic are shown "
            "through the same window.",
        ),
        Section("Data", data_table(results)),
    ]
    if run_dir is not None:
        sections.append(Section("Training", training(run_dir), f"The run {run_dir.resolve().name}."))
    sections.append(Section("Provenance", provenance(predictions, run_dir)))
    write_page(
        path,
        "Synthesis of missing brain MRI sequences",
        f"{plural(len(scored), 'synthetic volume')} of {plural(people, 'case')}, compared with the real ones",
        standing(summary),
        sections,
    )


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def problems(results: Sequence[CaseResult]) -> list[Section]:
    """What could not be scored, or only in part, first of all; no section where there is nothing."""
    bad = [r for r in results if r.problem is not None]
    texts = [f"{r.prediction.path.name}{' (scored in part)' if r.scores else ''}: {r.problem}" for r in bad]
    return [Section(f"Not scored: {len(bad)}", bullets(texts))] if bad else []


def data_table(results: Sequence[CaseResult]) -> str:
    """Volumes by cohort and target."""
    cohorts = sorted({r.cohort or "unknown" for r in results})
    lines = []
    for cohort in cohorts:
        chosen = [r for r in results if (r.cohort or "unknown") == cohort]
        counts = [sum(r.prediction.modality == m and bool(r.scores) for r in chosen) for m in MODALITIES]
        people, bad = len({r.prediction.case for r in chosen}), sum(not r.scores for r in chosen)
        lines.append([cohort, people, *counts, bad])
    head = ["cohort", "cases", *(MODALITY_NAMES[m] for m in MODALITIES), "not scored"]
    return note("Synthetic volumes that were scored, by cohort and target.") + table(head, lines)


def training(run_dir: Path) -> str:
    path = run_dir / METRICS
    lines = read_lines(path) if path.exists() else []
    if not lines:
        return note(f"{path} has no lines.")
    parts = [f"<h3>Validation</h3>{validation_curves(lines)}<h3>Loss terms</h3>{training_curves(lines)}"]
    if (path := run_dir / "config.yaml").exists():
        parts.append(fold("Configuration of the run", configuration(path.read_text())))
        parts.append(fold("Data of the run", run_data(run_dir)))
    return "".join(parts)


def provenance(predictions: Path, run_dir: Path | None) -> str:
    made = manifest_facts(predictions / "manifest.json")
    parts = [facts(this_program())]
    parts.append(
        f"<h3>Synthesis</h3>{facts(made)}"
        if made
        else note(f"{predictions} has no manifest.json: by what it was made is unknown.")
    )
    if run_dir is not None and (trained := run_facts(run_dir)):
        parts.append(f"<h3>Training</h3>{facts(trained)}")
    return "".join(parts)
