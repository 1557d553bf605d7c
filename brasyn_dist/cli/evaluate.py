"""Score synthesised volumes against real ones.

    brasyn evaluate --predictions DIR --references DIR --out DIR

Writes summary.json, cases.csv and report.html (one file, no network). With segmentations of the completed
cases also Dice, normalised surface distance and HD95; see docs/how-to/evaluate.md.

Processes with the same command share the predictions: `--workers 8`, `torchrun`, `accelerate launch`, `srun`,
the tasks of a job array. One of them writes the tables. Exit status 1 if a prediction could not be scored or
segmented.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import BadParameter, Option

import brasyn_dist
from brasyn_dist.cli.command import Command, LabelEditionOption, SkipBadOption, at_most_one
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.optional_packages import require
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.workqueue.worker_processes import worker_processes

if TYPE_CHECKING:
    from brasyn_dist.brats import Case
    from brasyn_dist.evaluation.regression import Regression
    from brasyn_dist.evaluation.scoring import CaseScores, CaseSegmenter, Prediction, ScoringSettings
    from brasyn_dist.modality_set import ModalitySet
    from brasyn_dist.preprocessing.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `brasyn evaluate`."""

    predictions: Annotated[Path, Option("--predictions", help="Folder of CASE-MODALITY.nii.gz.")]
    references: Annotated[Path, Option("--references", help="Folder of complete cases.")]
    out: Annotated[Path, Option("--out", help="Folder for summary.json, cases.csv and report.html.")]
    statistics: Annotated[
        str,
        Option(
            "--statistics", metavar="FILE", help="statistics.json of the baselines' z-scores, or `published`."
        ),
    ] = "published"
    no_baselines: Annotated[bool, Option("--no-baselines", help="Score no baselines.")] = False
    curves: Annotated[
        Path | None,
        Option("--curves", metavar="RUN", help="Run folder whose training curves the report shows."),
    ] = None
    workers: Annotated[int, Option("--workers", min=1, help="Processes that share the predictions.")] = 1
    lease: Annotated[
        float | None,
        Option(
            "--lease",
            metavar="SECONDS",
            help="Heartbeat timeout after which another process takes over predictions.  [default: 60]",
        ),
    ] = None
    regression_cases: Annotated[
        list[Path] | None,
        Option(
            "--regression-cases",
            metavar="DIR...",
            help="Folders of training cases of a linear regression baseline; saved as OUT/regression.json.",
        ),
    ] = None
    regression: Annotated[
        Path | None, Option("--regression", metavar="FILE", help="A regression.json, instead.")
    ] = None
    segmenter: Annotated[
        Path | None,
        Option(
            "--segmenter", metavar="PATH", help="Segment the completed cases by this run or export folder."
        ),
    ] = None
    segmentations: Annotated[
        Path | None,
        Option(
            "--segmentations", metavar="DIR", help="Segmentations of the completed cases: CASE-seg.nii.gz."
        ),
    ] = None
    segment_command: Annotated[
        str | None,
        Option(
            "--segment-command",
            metavar="'PROGRAM {input} {output}'",
            help="Segment by a program, from the folder {input}; also {case}, {t1c}, {t1n}, {t2f}, {t2w}.",
        ),
    ] = None
    reference_segmentation: Annotated[
        Literal["given", "pseudo"],
        Option(
            "--reference-segmentation",
            help="Compare with the segmentation in --references, or with the one that the same segmenter or "
            "command makes of the complete real case.",
        ),
    ] = "given"
    label_order: Annotated[
        Literal["brats", "nnunet", "brats2021", "brats2023", "brats2024", "ped"],
        Option(
            "--label-order",
            help="Labels of given or a program's segmentations. brats: as in the references; "
            "nnunet: 1 oedema, 2 necrosis, 3 enhancing; or an edition.",
        ),
    ] = "brats"
    label_edition: LabelEditionOption = "auto"
    skip_bad: SkipBadOption = False
    segment_timeout: Annotated[
        float, Option("--segment-timeout", metavar="SECONDS", min=0, help="Limit of the program for a case.")
    ] = 3600.0
    tolerance: Annotated[
        float, Option("--tolerance", metavar="MM", help="Tolerance of the normalised surface distance.")
    ] = 1.0

    def __post_init__(self) -> None:
        at_most_one(regression_cases=self.regression_cases, regression=self.regression)
        at_most_one(
            segmenter=self.segmenter, segmentations=self.segmentations, segment_command=self.segment_command
        )
        if self.reference_segmentation == "pseudo" and not (self.segmenter or self.segment_command):
            raise BadParameter("--reference-segmentation pseudo needs --segmenter or --segment-command")
        if not self.tolerance >= 0:
            raise BadParameter(f"--tolerance {self.tolerance}: must be at least 0 mm")


def run(options: EvaluateOptions) -> int:
    """Score all predictions together with worker processes; the exit status."""
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.label_editions import with_label_editions
    from brasyn_dist.evaluation.scoring import find_predictions, modality_set_of

    for package in ("monai", "skimage"):
        require(package, "eval", "brasyn evaluate")
    with ending_on_signals(STOPPED):
        modality_set = modality_set_of(options.predictions)
        predictions = find_predictions(options.predictions, modality_set)
        found, bad = find_cohorts([options.references], modality_set)
        found, _ = with_label_editions(found, options.label_edition, options.workers)
        cases = {case.name: case for case in found}
        scoring = replace(
            scoring_of(options, predictions), bad_references={b.folder.name: b.reason for b in bad}
        )
        evaluation = Evaluation(options, cases, predictions, scoring)
        options.out.mkdir(parents=True, exist_ok=True)
        with worker_processes(options.workers, launch_context(), score, evaluation) as context:
            score(evaluation, context)
        # The first process of a node reports for all; a launcher ends it when another one fails earlier.
        return print_results(options.out, modality_set) if context.local_rank == 0 else 0


@dataclass(frozen=True)
class Evaluation:
    """What a process needs to take part in an evaluation."""

    options: EvaluateOptions
    cases: "dict[str, Case]"
    predictions: "list[Prediction]"
    scoring: "ScoringSettings"


def score(evaluation: Evaluation, context: LaunchContext) -> None:
    """Work of one process; one of them writes the tables and the report."""
    from brasyn_dist.evaluation.score_queue import score_predictions

    own = ("workers", "lease", "out", "curves")
    settings = {k: str(v) for k, v in sorted(asdict(evaluation.options).items()) if k not in own}
    score_predictions(
        evaluation.predictions,
        evaluation.cases,
        evaluation.scoring,
        partial(write_results, evaluation),
        out=evaluation.options.out,
        settings={
            "brasyn_dist": brasyn_dist.__version__,
            **settings,
            "fingerprint": evaluation.scoring.fingerprint,
            "label_orders": sorted({case.label_order for case in evaluation.cases.values()}),
        },
        context=context,
        lease=evaluation.options.lease,
    )


def write_results(evaluation: Evaluation, results: "Sequence[CaseScores]") -> None:
    """Write summary.json, cases.csv and report.html."""
    from brasyn_dist.common.files import atomic_write_text, write_json
    from brasyn_dist.evaluation.tables import (
        by_cohort,
        reference_note,
        score_table,
        summarise,
        summary_json,
        table_csv,
    )
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
            "predictions": str(options.predictions.resolve()),
            "references": str(options.references.resolve()),
            "means": summary_json(summary),
            "cohorts": {name: summary_json(summarise(part)) for name, part in by_cohort(table).items()},
            "reference_segmentation": options.reference_segmentation,
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
            reference_note(options.reference_segmentation),
        )


def print_results(out: Path, modality_set: "ModalitySet") -> int:
    """Print the table and the problems of a finished evaluation; the exit status.

    Raises:
        DataError: No prediction could be scored.
    """
    from brasyn_dist.evaluation.tables import summary_of, text_table

    values = json.loads((out / "summary.json").read_text())
    for problem in values["problems"]:
        print(
            f"{'scored in part' if problem['scored'] else 'not scored'}: {problem['reason']}", file=sys.stderr
        )
    if not values["means"]:
        raise DataError(f"no prediction could be scored; {out / 'summary.json'} has the reasons, too")
    print(text_table(summary_of(values["means"]), modality_set))
    print(f"every case is in {out / 'cases.csv'}; look at {out / 'report.html'}")
    return 1 if values["problems"] else 0


def scoring_of(options: EvaluateOptions, predictions: "Sequence[Prediction]") -> "ScoringSettings":
    """Settings of the scoring. All problems of the options are found here, before anything is scored."""
    from brasyn_dist.evaluation.scoring import ScoringSettings, modality_set_of
    from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics

    if options.no_baselines and (options.regression or options.regression_cases):
        raise ConfigError("--no-baselines and a regression exclude each other; leave one out")
    modality_set = modality_set_of(options.predictions)
    segment = segment_of(options, predictions)
    if options.no_baselines:
        return ScoringSettings(
            segment=segment,
            pseudo_reference=options.reference_segmentation == "pseudo",
            tolerance_mm=options.tolerance,
            modality_set=modality_set,
        )
    published = options.statistics == "published"
    statistics = PUBLISHED if published else Statistics.load(options.statistics)
    regression = regression_of(options, statistics, modality_set)
    if regression is not None and (seen := sorted({p.case for p in predictions} & set(regression.cases))):
        print(f"note: the regression was fitted on evaluated cases: {', '.join(seen)}", file=sys.stderr)
    return ScoringSettings(
        statistics,
        regression,
        segment,
        options.reference_segmentation == "pseudo",
        options.tolerance,
        modality_set,
    )


def segment_of(options: EvaluateOptions, predictions: "Sequence[Prediction]") -> "CaseSegmenter | None":
    """Source of the completed cases' segmentations."""
    from brasyn_dist.evaluation.scoring import modality_set_of
    from brasyn_dist.evaluation.segmentation_sources import (
        ProjectSegmenter,
        find_segmentations,
        parse_command,
    )

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


def regression_of(
    options: EvaluateOptions, statistics: "Statistics", modality_set: "ModalitySet"
) -> "Regression | None":
    """Regression that is read or fitted."""
    from brasyn_dist.data.case_folders import usable_cases
    from brasyn_dist.evaluation.regression import Regression, fit_regression

    if options.regression is not None:
        return Regression.load(options.regression, statistics)
    if options.regression_cases:
        cases = usable_cases(options.regression_cases, modality_set, options.skip_bad, complete=True)
        return fit_regression(cases, statistics, options.workers, options.skip_bad)
    return None


main = Command("evaluate", EvaluateOptions, run, lists=("--regression-cases",))
