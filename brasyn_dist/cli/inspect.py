"""Check a data set before training: histograms, masks, truncation, quality, outliers, duplicates: `brasyn inspect COHORT_DIR --out DIR`.

Writes OUT/inspection.html (start there), inspection.json, cases.csv, histograms.png, spread.png and cases.png. Findings are
hints for a visual check and exclude no case (limits: brasyn_dist/data/qc/anomalies.py).
Exit status 0 even with findings, 1 if no case can be read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command
from brasyn_dist.errors import DataError


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `brasyn inspect`."""

    cohorts: Annotated[list[Path], Argument(metavar="COHORT_DIR", help="Folders of case folders.")]
    out: Annotated[Path, Option("--out", metavar="DIR", help="Folder for the results.")]
    workers: Annotated[int, Option("--workers", min=1, help="Processes.")] = 1


def run(options: InspectOptions) -> None:
    """Measure all cases, report what is unusual."""
    from brasyn_dist.common.process_pool import worker_pool
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.qc.anomalies import Finding, find_anomalies
    from brasyn_dist.data.qc.measurements import inspect_case
    from brasyn_dist.report.dataset_report import text_summary, write_dataset_report

    cases, unrecognised = find_cohorts(options.cohorts)
    with worker_pool(min(options.workers, len(cases))) as pool:
        found = list(pool.run("inspect", inspect_case, cases))
    facts = sorted(found, key=lambda f: (f.case.cohort, f.case.name))
    findings = find_anomalies(facts)
    findings += [Finding(p.folder.name, "unreadable", "", p.reason) for p in unrecognised]
    if not any(f.modalities for f in facts):
        raise DataError("no case can be read:\n  " + "\n  ".join(f.detail for f in findings))
    write_dataset_report(options.out, facts, findings)
    print(text_summary(facts, findings))
    print(f"look at {options.out / 'inspection.html'}")


main = Command("inspect", InspectOptions, run)
