"""Score synthesised volumes against the real ones: `python -m brasyn_dist.evaluate --predictions DIR --references DIR --out DIR`.

Writes summary.json, cases.csv and report.html (one file, no network). Exit status 1 if any prediction could not be scored.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from brasyn_dist.brats import Case, find_cases
from brasyn_dist.data.statistics import PUBLISHED, Statistics
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.evaluation.cases import CaseResult, Prediction, by_name, evaluate_case, find_predictions
from brasyn_dist.evaluation.summary import rows_csv, rows_of, summarise, summary_json, text_table
from brasyn_dist.files import atomic_write_text, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictions", type=Path, required=True, help="folder of CASE-MODALITY.nii.gz")
    parser.add_argument("--references", type=Path, required=True, help="folder of complete cases")
    parser.add_argument("--out", type=Path, required=True, help="gets summary.json, cases.csv, report.html")
    parser.add_argument(
        "--statistics", default="published", help="statistics.json of the baselines' z-scores"
    )
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--curves", type=Path, help="run folder whose training curves the report shows")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    try:
        return evaluate(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def evaluate(options: argparse.Namespace) -> int:
    from brasyn_dist.evaluation.report import write_report

    statistics = None
    if not options.no_baselines:
        published = options.statistics == "published"
        statistics = PUBLISHED if published else Statistics.load(options.statistics)
    cases = by_name(find_cases(options.references))
    results = list(score_all(find_predictions(options.predictions), cases, statistics, options.workers))
    problems = [r for r in results if r.problem is not None]
    if len(problems) == len(results):
        raise DataError("no prediction could be scored:\n  " + "\n  ".join(str(r.problem) for r in problems))
    rows = rows_of(results)
    summary = summarise(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out / "cases.csv", rows_csv(rows))
    write_json(
        options.out / "summary.json",
        {
            "means": summary_json(summary),
            "problems": [{"prediction": r.prediction.path.name, "reason": r.problem} for r in problems],
        },
    )
    write_report(
        options.out / "report.html", results, rows, summary, cases, options.predictions, options.curves
    )
    print(text_table(summary))
    print(f"{len(rows)} rows in {options.out / 'cases.csv'}; look at {options.out / 'report.html'}")
    for result in problems:
        print(f"not scored: {result.problem}", file=sys.stderr)
    return 1 if problems else 0


def score_all(
    predictions: Sequence[Prediction], cases: dict[str, Case], statistics: Statistics | None, workers: int
) -> Iterator[CaseResult]:
    """Results in the order of the predictions, with a progress bar on a terminal."""
    from tqdm import tqdm

    arguments = (predictions, [cases.get(p.case) for p in predictions])
    work = partial(evaluate_case, statistics=statistics)
    bar = partial(tqdm, total=len(predictions), desc="evaluate", disable=None)
    if workers <= 1:
        yield from bar(map(work, *arguments))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield from bar(executor.map(work, *arguments))


if __name__ == "__main__":
    sys.exit(main())
