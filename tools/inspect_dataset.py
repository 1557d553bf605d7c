"""Quality control of a data set before training: intensity histograms, masks, truncation, outliers, duplicates.

    python tools/inspect_dataset.py COHORT_DIR [COHORT_DIR ...] --out inspection [--workers 8]

Writes OUT/inspection.html (one file, no network), inspection.json and cases.csv. Findings are hints for visual inspection: no
case is left out because of them (limits: brasyn_dist/data/qc/anomalies.py). Exit status 0 even with findings, 1 if no case can
be read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.case_folders import find_cohorts
from brasyn_dist.data.qc.anomalies import Finding, find_anomalies, summary_counts, to_json
from brasyn_dist.data.qc.measurements import CaseFacts, inspect_case
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.report.dataset_report import case_table_csv, write_dataset_report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohorts", type=Path, nargs="+", metavar="COHORT_DIR", help="folder of case folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        inspect(options.cohorts, options.out, options.workers)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def inspect(cohorts: Sequence[Path], out: Path, workers: int) -> None:
    cases, named_badly = find_cohorts(cohorts)
    found = parallel_map("inspect", inspect_case, cases, min(workers, len(cases)))
    facts = sorted(found, key=lambda f: (f.case.cohort, f.case.name))
    findings = find_anomalies(facts)
    findings += [Finding(p.folder.name, "unreadable", "", p.reason) for p in named_badly]
    readable = [f for f in facts if f.modalities]
    if not readable:
        raise DataError("no case can be read:\n  " + "\n  ".join(f.detail for f in findings))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "inspection.json", to_json(facts, findings))
    atomic_write_text(out / "cases.csv", case_table_csv(readable))
    write_dataset_report(out / "inspection.html", facts, findings)
    print(text_summary(facts, findings))
    print(f"look at {out / 'inspection.html'}")


def text_summary(facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> str:
    readable = sum(bool(f.modalities) for f in facts)
    lines = [
        f"{len(facts)} cases, {readable} readable; findings by kind (cases): "
        + (", ".join(f"{k} {n}" for k, n in summary_counts(findings).items()) or "none")
    ]
    lines += [f"{f.kind:<13} {f.case:<24} {f.modality:<4} {f.detail}" for f in findings]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
