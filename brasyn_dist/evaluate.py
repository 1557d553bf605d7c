"""Score synthesised volumes against the real ones: `python -m brasyn_dist.evaluate --predictions DIR --references DIR --out DIR`.

Writes summary.json, cases.csv and report.html (one file, no network). With segmentations of the completed cases, Dice, normalised
surface distance and HD95 too: see docs/evaluation.md. Exit status 1 if any prediction could not be scored, or segmented.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from brasyn_dist.brats import LABEL_ORDERS, Case, find_cases
from brasyn_dist.data.statistics import PUBLISHED, Statistics
from brasyn_dist.errors import BrasynError, ConfigError, DataError
from brasyn_dist.evaluation.cases import (
    CaseResult,
    Prediction,
    Scoring,
    Segment,
    by_name,
    evaluate_case,
    find_predictions,
)
from brasyn_dist.evaluation.overlap import TOLERANCE
from brasyn_dist.evaluation.regression import Regression, fit
from brasyn_dist.evaluation.segmentations import (
    TIMEOUT,
    ProjectSegmenter,
    find_segmentations,
    parse_command,
)
from brasyn_dist.evaluation.summary import rows_csv, rows_of, summarise, summary_json, text_table
from brasyn_dist.files import atomic_write_text, write_json


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="folder of CASE-MODALITY.nii.gz")
    add("--references", type=Path, required=True, help="folder of complete cases")
    add("--out", type=Path, required=True, help="gets summary.json, cases.csv, report.html")
    add("--statistics", default="published", help="statistics.json of the baselines' z-scores")
    add("--no-baselines", action="store_true")
    add("--curves", type=Path, help="run folder whose training curves the report shows")
    add("--workers", type=int, default=1, help="processes")
    regression = parser.add_argument_group(
        "linear regression, one more baseline"
    ).add_mutually_exclusive_group()
    regression.add_argument(
        "--regression-cases",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of training cases to fit it on; OUT/regression.json keeps the fit",
    )
    regression.add_argument("--regression", type=Path, metavar="FILE", help="a regression.json")
    group = parser.add_argument_group("segmentations of the completed cases, for Dice, NSD and HD95")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--segmenter", type=Path, metavar="PATH", help="made by the segmenter of this run or export folder"
    )
    source.add_argument("--segmentations", type=Path, metavar="DIR", help="made beforehand: CASE-seg.nii.gz")
    source.add_argument(
        "--segment-command",
        metavar="'PROGRAM {input} {output}'",
        help="made by a program from the folder {input}; also {case}, {t1c}, {t1n}, {t2f}, {t2w}",
    )
    group.add_argument(
        "--label-order",
        choices=tuple(LABEL_ORDERS),
        default="brats",
        help="of given or a command's segmentations (default %(default)s); nnunet: 1 oedema, 2 necrosis, 3 enhancing",
    )
    group.add_argument(
        "--segment-timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for one case (default %(default)g)",
    )
    group.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="MM", help="of NSD (default %(default)g)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return evaluate(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def evaluate(options: argparse.Namespace) -> int:
    from brasyn_dist.evaluation.report import write_report

    cases = by_name(find_cases(options.references))
    predictions = find_predictions(options.predictions)
    scoring = scoring_of(options, predictions)
    results = list(score_all(predictions, cases, scoring, options.workers))
    problems = [r for r in results if r.problem is not None]
    if not any(r.scores for r in results):
        raise DataError("no prediction could be scored:\n  " + "\n  ".join(str(r.problem) for r in problems))
    rows = rows_of(results)
    summary = summarise(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    if scoring.regression is not None:
        scoring.regression.save(options.out / "regression.json")
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
        print(f"{'scored in part' if result.scores else 'not scored'}: {result.problem}", file=sys.stderr)
    return 1 if problems else 0


def scoring_of(options: argparse.Namespace, predictions: Sequence[Prediction]) -> Scoring:
    """What the options ask for; everything that can be wrong with them is found here, before anything is scored."""
    if not options.tolerance >= 0:
        raise ConfigError(f"--tolerance {options.tolerance}: must be at least 0 mm")
    if options.no_baselines and (options.regression or options.regression_cases):
        raise ConfigError("--no-baselines and a regression contradict each other; leave one out")
    segment = segment_of(options, predictions)
    if options.no_baselines:
        return Scoring(segment=segment, tolerance_mm=options.tolerance)
    published = options.statistics == "published"
    statistics = PUBLISHED if published else Statistics.load(options.statistics)
    regression = regression_of(options, statistics)
    if regression is not None and (seen := sorted({p.case for p in predictions} & set(regression.cases))):
        print(f"note: the regression was fitted on evaluated cases: {', '.join(seen)}", file=sys.stderr)
    return Scoring(statistics, regression, segment, options.tolerance)


def segment_of(options: argparse.Namespace, predictions: Sequence[Prediction]) -> Segment | None:
    if options.segmenter is not None:
        segmenter = ProjectSegmenter(options.segmenter)
        segmenter.load()
        return segmenter
    if options.segmentations is not None:
        return find_segmentations(options.segmentations, predictions, options.label_order)
    if options.segment_command is not None:
        return parse_command(options.segment_command, options.label_order, options.segment_timeout)
    return None


def regression_of(options: argparse.Namespace, statistics: Statistics) -> Regression | None:
    if options.regression is not None:
        return Regression.load(options.regression, statistics)
    if options.regression_cases:
        cases = [case for folder in options.regression_cases for case in find_cases(folder)]
        return fit(cases, statistics, options.workers)
    return None


def score_all(
    predictions: Sequence[Prediction], cases: dict[str, Case], scoring: Scoring, workers: int
) -> Iterator[CaseResult]:
    """Results in the order of the predictions, with a progress bar on a terminal."""
    from tqdm import tqdm

    arguments = (predictions, [cases.get(p.case) for p in predictions])
    work = partial(evaluate_case, scoring=scoring)
    bar = partial(tqdm, total=len(predictions), desc="evaluate", disable=None)
    if workers <= 1:
        yield from bar(map(work, *arguments))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield from bar(executor.map(work, *arguments))


if __name__ == "__main__":
    sys.exit(main())
