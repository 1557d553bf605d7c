"""Score synthesised volumes against the real ones: `python -m brasyn_dist.evaluate --predictions DIR --references DIR --out DIR`.

Writes summary.json, cases.csv and report.html (one file, no network). With segmentations of the completed cases, Dice, normalised
surface distance and HD95 too: see docs/evaluation.md.

Processes that are given the same command share the predictions: `--workers 8`, `torchrun`, `accelerate launch`, `srun`, the tasks
of a job array. One of them writes the tables. Exit status 1 if any prediction could not be scored, or segmented.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import brasyn_dist
from brasyn_dist.brats import LABEL_ORDERS, Case, find_cases
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.errors import BrasynError, ConfigError, DataError
from brasyn_dist.evaluation.regression import Regression, fit_regression
from brasyn_dist.evaluation.score_queue import score_predictions
from brasyn_dist.evaluation.scoring import (
    CaseScores,
    CaseSegmenter,
    Prediction,
    ScoringSettings,
    find_predictions,
    modality_set_of,
)
from brasyn_dist.evaluation.segmentation_metrics import TOLERANCE
from brasyn_dist.evaluation.segmentation_sources import (
    TIMEOUT,
    ProjectSegmenter,
    find_segmentations,
    parse_command,
)
from brasyn_dist.evaluation.tables import (
    score_table,
    summarise,
    summary_json,
    summary_of,
    table_csv,
    text_table,
)
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from brasyn_dist.workqueue.worker_processes import worker_processes


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
    add("--workers", type=int, default=1, help="processes to share the predictions")
    add(
        "--lease",
        type=float,
        metavar="SECONDS",
        help="without a sign of life for so long, a process' predictions are given to others (default: 60)",
    )
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
    set_up_logging()
    options = parser().parse_args(arguments)
    try:
        with ending_on_signals(STOPPED):
            return evaluate(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def evaluate(options: argparse.Namespace) -> int:
    predictions = find_predictions(options.predictions, modality_set_of(options.predictions))
    cases = {case.name: case for case in find_cases(options.references)}
    evaluation = Evaluation(options, cases, predictions, scoring_of(options, predictions))
    options.out.mkdir(parents=True, exist_ok=True)
    with worker_processes(options.workers, launch_context(), score, evaluation) as context:
        score(evaluation, context)
    # The first process of the node speaks for all; a launcher would end it when another fails before.
    return say_results(options.out) if context.local_rank == 0 else 0


@dataclass(frozen=True)
class Evaluation:
    """All that a process needs to take part in one."""

    options: argparse.Namespace
    cases: dict[str, Case]
    predictions: list[Prediction]
    scoring: ScoringSettings


def score(evaluation: Evaluation, context: LaunchContext) -> None:
    """One process' part of the work; one of them writes the tables and the report."""
    own = ("workers", "lease", "out", "curves")
    settings = {k: str(v) for k, v in sorted(vars(evaluation.options).items()) if k not in own}
    score_predictions(
        evaluation.predictions,
        evaluation.cases,
        evaluation.scoring,
        partial(write_results, evaluation),
        out=evaluation.options.out,
        settings={
            "brasyn_dist": brasyn_dist.__version__,
            **settings,
            "basis": evaluation.scoring.fingerprint,
        },
        context=context,
        lease=evaluation.options.lease,
    )


def write_results(evaluation: Evaluation, results: Sequence[CaseScores]) -> None:
    """summary.json, cases.csv and report.html."""
    from brasyn_dist.report.evaluation_report import write_report

    options, regression = evaluation.options, evaluation.scoring.regression
    problems = [r for r in results if r.problem is not None]
    table = score_table(results)
    summary = summarise(table)
    if regression is not None:
        regression.save(options.out / "regression.json")
    atomic_write_text(options.out / "cases.csv", table_csv(table))
    write_json(
        options.out / "summary.json",
        {
            "means": summary_json(summary),
            "problems": [
                {"prediction": r.prediction.path.name, "scored": bool(r.scores), "reason": r.problem}
                for r in problems
            ],
        },
    )
    if len(table):
        write_report(
            options.out / "report.html",
            results,
            table,
            evaluation.cases,
            options.predictions,
            options.curves,
            evaluation.scoring.modality_set,
        )


def say_results(out: Path) -> int:
    """The table and the problems of a finished evaluation, for people; the exit status.

    Raises DataError if no prediction could be scored.
    """
    values = json.loads((out / "summary.json").read_text())
    for problem in values["problems"]:
        print(
            f"{'scored in part' if problem['scored'] else 'not scored'}: {problem['reason']}", file=sys.stderr
        )
    if not values["means"]:
        raise DataError(f"no prediction could be scored; the reasons are in {out / 'summary.json'}, too")
    print(text_table(summary_of(values["means"])))
    print(f"every case is in {out / 'cases.csv'}; look at {out / 'report.html'}")
    return 1 if values["problems"] else 0


def scoring_of(options: argparse.Namespace, predictions: Sequence[Prediction]) -> ScoringSettings:
    """What the options ask for; everything that can be wrong with them is found here, before anything is scored."""
    if not options.tolerance >= 0:
        raise ConfigError(f"--tolerance {options.tolerance}: must be at least 0 mm")
    if options.no_baselines and (options.regression or options.regression_cases):
        raise ConfigError("--no-baselines and a regression contradict each other; leave one out")
    modality_set = modality_set_of(options.predictions)
    segment = segment_of(options, predictions)
    if options.no_baselines:
        return ScoringSettings(segment=segment, tolerance_mm=options.tolerance, modality_set=modality_set)
    published = options.statistics == "published"
    statistics = PUBLISHED if published else Statistics.load(options.statistics)
    regression = regression_of(options, statistics)
    if regression is not None and (seen := sorted({p.case for p in predictions} & set(regression.cases))):
        print(f"note: the regression was fitted on evaluated cases: {', '.join(seen)}", file=sys.stderr)
    return ScoringSettings(statistics, regression, segment, options.tolerance, modality_set)


def segment_of(options: argparse.Namespace, predictions: Sequence[Prediction]) -> CaseSegmenter | None:
    if options.segmenter is not None:
        segmenter = ProjectSegmenter(options.segmenter)
        segmenter.load()
        return segmenter
    if options.segmentations is not None:
        return find_segmentations(options.segmentations, predictions, options.label_order)
    if options.segment_command is not None:
        return parse_command(
            options.segment_command,
            options.label_order,
            options.segment_timeout,
            modality_set_of(options.predictions),
        )
    return None


def regression_of(options: argparse.Namespace, statistics: Statistics) -> Regression | None:
    if options.regression is not None:
        return Regression.load(options.regression, statistics)
    if options.regression_cases:
        cases = [case for folder in options.regression_cases for case in find_cases(folder)]
        return fit_regression(cases, statistics, options.workers)
    return None


if __name__ == "__main__":
    sys.exit(main())
