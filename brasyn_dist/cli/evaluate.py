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
from brasyn_dist.cli.command import Command, LabelEditionOption, SharingOptions, SkipBadOption, at_most_one
from brasyn_dist.common.files import make_folder
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.optional_packages import require
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.workqueue.worker_processes import worker_processes

if TYPE_CHECKING:
    from brasyn_dist.brats import Case
    from brasyn_dist.evaluation.scoring import CaseScores, CaseSegmenter, Prediction, ScoringSettings
    from brasyn_dist.modality_set import ModalitySet


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SharingOptions):
    """Options of `brasyn evaluate`."""

    predictions: Path
    """Folder of CASE-MODALITY.nii.gz."""
    references: Path
    """Folder of complete cases."""
    out: Path
    """Folder for summary.json, cases.csv and report.html."""
    statistics: str = "published"
    """statistics.json of the baselines' z-scores, or `published`."""
    no_baselines: bool = False
    """Score no baselines."""
    curves: Annotated[Path | None, Option(metavar="RUN")] = None
    """Run folder whose training curves the report shows."""
    regression_cases: Annotated[list[Path] | None, Option(metavar="DIR...")] = None
    """Folders of training cases of a linear regression baseline; saved as OUT/regression.json."""
    regression: Path | None = None
    """A regression.json, instead."""
    segmenter: Path | None = None
    """Segment the completed cases by this run or export folder."""
    segmentations: Path | None = None
    """Segmentations of the completed cases: CASE-seg.nii.gz."""
    segment_command: Annotated[str | None, Option(metavar="'PROGRAM {input} {output}'")] = None
    """Segment by a program, from the folder {input}; also {case} and the modalities: {t1c}, {t1n}, ..."""
    reference_segmentation: Literal["given", "pseudo"] = "given"
    """Compare with the segmentation in --references, or with the one that the same segmenter or command
    makes of the complete real case."""
    label_order: Literal["brats", "nnunet", "brats2021", "brats2023", "brats2024", "ped"] = "brats"
    """Labels of given or a program's segmentations. brats: as in the references; nnunet: 1 oedema, 2
    necrosis, 3 enhancing; or an edition."""
    label_edition: LabelEditionOption = "auto"
    skip_bad: SkipBadOption = False
    segment_timeout: Annotated[float, Option(metavar="SECONDS", min=1, max=1e6)] = 3600.0
    """Limit of the program for a case."""
    tolerance: Annotated[float, Option(metavar="MM")] = 1.0
    """Tolerance of the normalised surface distance."""

    def __post_init__(self) -> None:
        at_most_one(regression_cases=self.regression_cases, regression=self.regression)
        at_most_one(
            segmenter=self.segmenter, segmentations=self.segmentations, segment_command=self.segment_command
        )
        if self.reference_segmentation == "pseudo" and not (self.segmenter or self.segment_command):
            raise BadParameter("--reference-segmentation pseudo needs --segmenter or --segment-command")


def run(options: EvaluateOptions) -> int:
    """Score all predictions together with worker processes; the exit status."""
    from brasyn_dist.data.case_folders import find_cohorts, with_linked_cohorts
    from brasyn_dist.data.label_editions import with_label_editions
    from brasyn_dist.evaluation.scoring import find_predictions, modality_set_of

    for package in ("monai", "skimage"):
        require(package, "eval", "brasyn evaluate")
    with ending_on_signals(STOPPED):
        modality_set = modality_set_of(options.predictions)
        predictions = find_predictions(options.predictions, modality_set)
        found, bad = find_cohorts([options.references], modality_set)
        found = with_linked_cohorts(found)
        found, _ = with_label_editions(found, options.label_edition, options.workers)
        cases = {case.name: case for case in found}
        bad_references = {b.folder.name: b.reason for b in bad}
        scoring = replace(scoring_of(options, predictions, modality_set), bad_references=bad_references)
        evaluation = Evaluation(options, cases, predictions, scoring)
        make_folder(options.out)
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
    from brasyn_dist.evaluation.scoring import score_predictions

    options, scoring = evaluation.options, evaluation.scoring
    own = ("workers", "lease", "out", "curves")
    settings = {k: str(v) for k, v in sorted(asdict(options).items()) if k not in own}
    score_predictions(
        evaluation.predictions,
        evaluation.cases,
        scoring,
        partial(write_results, evaluation),
        out=options.out,
        settings={
            "brasyn_dist": brasyn_dist.__version__,
            **settings,
            "fingerprint": scoring.fingerprint,
            "label_orders": sorted({case.label_order for case in evaluation.cases.values()}),
        },
        context=context,
        lease=options.lease,
    )


def write_results(evaluation: Evaluation, results: "Sequence[CaseScores]") -> None:
    """Write summary.json, cases.csv and report.html."""
    from brasyn_dist.common.files import atomic_write_text, write_json
    from brasyn_dist.evaluation import tables
    from brasyn_dist.report.evaluation_report import write_report

    options, scoring = evaluation.options, evaluation.scoring
    table = tables.score_table(results)
    if scoring.regression is not None:
        scoring.regression.save(options.out / "regression.json")
    atomic_write_text(options.out / "cases.csv", tables.table_csv(table))
    problems = [
        {"prediction": r.prediction.path.name, "scored": bool(r.scores), "reason": r.problem}
        for r in results
        if r.problem is not None
    ]
    summary = {
        "predictions": str(options.predictions.resolve()),
        "references": str(options.references.resolve()),
        "means": tables.summary_json(tables.summarise(table)),
        "cohorts": {
            name: tables.summary_json(tables.summarise(part))
            for name, part in tables.by_cohort(table).items()
        },
        "reference_segmentation": options.reference_segmentation,
        "problems": problems,
    }
    write_json(options.out / "summary.json", summary)
    if len(table):
        report, sources = options.out / "report.html", (options.predictions, options.curves)
        note = tables.reference_note(options.reference_segmentation)
        write_report(report, results, table, evaluation.cases, *sources, scoring.modality_set, note)


def print_results(out: Path, modality_set: "ModalitySet") -> int:
    """Print the table and the problems of a finished evaluation; the exit status.

    Raises:
        DataError: No prediction could be scored.
    """
    from brasyn_dist.evaluation.tables import read_table, summarise, text_table

    values = json.loads((out / "summary.json").read_text())
    for problem in values["problems"]:
        kind = "scored in part" if problem["scored"] else "not scored"
        print(f"{kind}: {problem['reason']}", file=sys.stderr)
    if not values["means"]:
        raise DataError(f"no prediction could be scored; {out / 'summary.json'} has the reasons, too")
    print(text_table(summarise(read_table(out)), modality_set))
    print(f"every case is in {out / 'cases.csv'}; look at {out / 'report.html'}")
    return 1 if values["problems"] else 0


def scoring_of(
    options: EvaluateOptions, predictions: "Sequence[Prediction]", modality_set: "ModalitySet"
) -> "ScoringSettings":
    """Settings of the scoring. All problems of the options are found here, before anything is scored."""
    from brasyn_dist.data.case_folders import usable_cases
    from brasyn_dist.evaluation.baselines import Regression, fit_regression
    from brasyn_dist.evaluation.scoring import ScoringSettings
    from brasyn_dist.preprocessing.statistics import Statistics

    if options.no_baselines and (options.regression or options.regression_cases):
        raise ConfigError("--no-baselines and a regression exclude each other; leave one out")
    segment = segment_of(options, predictions, modality_set)
    statistics = None if options.no_baselines else Statistics.load(options.statistics, modality_set)
    regression = None
    if statistics and options.regression:
        regression = Regression.load(options.regression, statistics)
    elif statistics and options.regression_cases:
        cases = usable_cases(options.regression_cases, modality_set, options.skip_bad, complete=True)
        regression = fit_regression(cases, statistics, options.workers, options.skip_bad)
    if regression is not None and (seen := sorted({p.case for p in predictions} & set(regression.cases))):
        print(f"note: the regression was fitted on evaluated cases: {', '.join(seen)}", file=sys.stderr)
    pseudo = options.reference_segmentation == "pseudo"
    return ScoringSettings(statistics, regression, segment, pseudo, options.tolerance, modality_set)


def segment_of(
    options: EvaluateOptions, predictions: "Sequence[Prediction]", modality_set: "ModalitySet"
) -> "CaseSegmenter | None":
    """Source of the completed cases' segmentations."""
    from brasyn_dist.evaluation import segmentation_sources as sources

    order = options.label_order
    if options.segmenter is not None:
        segmenter = sources.ProjectSegmenter(options.segmenter)
        segmenter.load()
        return segmenter
    if options.segmentations is not None:
        return sources.find_segmentations(options.segmentations, predictions, order)
    if options.segment_command is not None:
        return sources.parse_command(options.segment_command, order, options.segment_timeout, modality_set)
    return None


main = Command("evaluate", EvaluateOptions, run, lists=("--regression-cases",))
