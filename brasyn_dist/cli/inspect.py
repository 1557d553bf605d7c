"""Check a data set before training: histograms, masks, truncation, quality, outliers, duplicates.

    brasyn inspect COHORT_DIR --out DIR

Writes OUT/inspection.html (one file, no network), inspection.json, findings.json and cases.csv, and prints
the tables of chapter 4 of the thesis. Findings are hints for a visual check and exclude no case (limits:
brasyn_dist/data/qc/anomalies.py). To leave cases out, remove the other entries from findings.json and give it
to `brasyn shard --exclude`. Exit status 0 even with findings, 1 if no case can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from brasyn_dist.cli.command import Command, Index, LabelEditionOption, ModalitySetOption, Positive
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND

if TYPE_CHECKING:
    from brasyn_dist.brats import Case
    from brasyn_dist.data.qc.anomalies import Finding
    from brasyn_dist.data.qc.measurements import CaseFacts


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `brasyn inspect`."""

    cohorts: Annotated[list[Path], Argument(metavar="COHORT_DIR")]
    """Folders of case folders."""
    out: Path
    """Folder for the results."""
    workers: Positive = 1
    """Processes."""
    minimum_foreground: Index = MINIMUM_FOREGROUND
    """As of `brasyn shard`, for the numbers of slices."""
    label_edition: LabelEditionOption = "auto"
    modality_set: ModalitySetOption = None


def run(options: InspectOptions) -> None:
    """Measure all cases, print the tables of the cohorts and what is unusual."""
    from brasyn_dist.brats import modality_set_in
    from brasyn_dist.common.files import atomic_write_text, make_folder, write_json
    from brasyn_dist.common.process_pool import parallel_map
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.qc.anomalies import Finding, find_anomalies, to_json
    from brasyn_dist.data.qc.cohort_tables import as_text, cohort_tables
    from brasyn_dist.data.qc.measurements import inspect_case
    from brasyn_dist.report.dataset_report import case_table_csv, write_dataset_report

    make_folder(options.out)
    modality_set = modality_set_in(options.modality_set)
    cases, unrecognised = find_cohorts(options.cohorts, modality_set)
    cases, findings = with_editions(cases, options)
    inspect = partial(inspect_case, minimum_foreground=options.minimum_foreground)
    found = parallel_map("inspect", inspect, cases, options.workers)
    facts = sorted(found, key=lambda f: (f.case.cohort, f.case.name))
    findings += find_anomalies(facts)
    findings += [Finding(p.folder.name, "unreadable", "", p.reason) for p in unrecognised]
    readable = [f for f in facts if f.modalities]
    if not readable:
        raise DataError("no case can be read:\n  " + "\n  ".join(f.detail for f in findings))
    write_json(options.out / "inspection.json", to_json(facts, findings))
    write_json(options.out / "findings.json", [finding.to_dict() for finding in findings])
    atomic_write_text(options.out / "cases.csv", case_table_csv(readable))
    write_dataset_report(options.out / "inspection.html", facts, findings, modality_set)
    print(f"{as_text(cohort_tables(facts, modality_set))}\n")
    print(text_summary(facts, findings))
    print(f"look at {options.out / 'inspection.html'}")


def with_editions(cases: "Sequence[Case]", options: InspectOptions) -> "tuple[list[Case], list[Finding]]":
    """The cases with the label editions of their cohorts; a contradiction is a finding."""
    from brasyn_dist.data.label_editions import with_label_editions
    from brasyn_dist.data.qc.anomalies import Finding

    try:
        return with_label_editions(cases, options.label_edition, options.workers)[0], []
    except DataError as error:
        cohort, _, reason = str(error).partition(": ")
        return list(cases), [Finding(cohort, "segmentation", "", reason)]


def text_summary(facts: "Sequence[CaseFacts]", findings: "Sequence[Finding]") -> str:
    """Counts of findings by kind, and one line for each finding."""
    from brasyn_dist.data.qc.anomalies import summary_counts

    readable = sum(bool(f.modalities) for f in facts)
    lines = [
        f"{len(facts)} cases, {readable} readable; findings by kind (cases): "
        + (", ".join(f"{k} {n}" for k, n in summary_counts(findings).items()) or "none")
    ]
    lines += [f"{f.kind:<13} {f.case:<24} {f.modality:<4} {f.detail}" for f in findings]
    return "\n".join(lines)


main = Command("inspect", InspectOptions, run)
