"""Scoring of predictions by several processes, through the work queue.

    predictions --WorkQueue--> score_prediction --> records --one process--> CaseScores

Scores of an interrupted evaluation are reused if the options and all files that they were computed from are
unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brasyn_dist.brats import Case
from brasyn_dist.common.launch_environment import LaunchContext
from brasyn_dist.common.progress import Progress
from brasyn_dist.evaluation.scoring import CaseScores, Prediction, ScoringSettings, score_prediction
from brasyn_dist.workqueue.queue import MAXIMUM_DEATHS, WorkQueue


def score_predictions(
    predictions: Sequence[Prediction],
    cases: Mapping[str, Case],
    scoring: ScoringSettings,
    write_results: Callable[[list[CaseScores]], None],
    *,
    out: Path,
    settings: Mapping[str, Any],
    context: LaunchContext,
    lease: float | None,
) -> None:
    """Score the predictions together with all processes that do the same.

    Args:
        predictions: The files to score.
        cases: References by case name.
        scoring: What is computed.
        write_results: Called in one of the processes, with the results in the order of the predictions.
        out: Folder of the results.
        settings: (JSON) the options, which must be equal in all processes.
        context: Position of this process on its node.
        lease: Heartbeat timeout in seconds.
    """
    by_name = {prediction.path.name: prediction for prediction in predictions}
    queue = WorkQueue(out, list(by_name), basis=settings, job=context.job, lease=lease)
    with queue, Progress("evaluate", len(by_name), hidden=context.local_rank > 0) as progress:
        earlier = queue.interrupted_records()
        for name in queue:
            prediction = by_name[name]
            case = cases.get(prediction.case)
            files = file_states(prediction, case)
            values = reusable_scores(earlier.get(name, ()), files)
            if values is None:
                given_up = queue.given_up(name)
                result = (
                    given_up_result(prediction) if given_up else score_prediction(prediction, case, scoring)
                )
                values = {k: v for k, v in asdict(result).items() if k != "prediction"}
            progress.reach(queue.record(name, {"files": files, "result": values}))
        if queue.claim_merge():
            results = {name: values[0]["result"] for name, values in queue.records.items()}
            write_results([CaseScores(prediction, **results[name]) for name, prediction in by_name.items()])
            queue.finish()


def file_states(prediction: Prediction, case: Case | None) -> list[list[Any]]:
    """Path, size and time of all files of a result: equal as long as none of them is changed."""
    paths = [prediction.path, *(path for _, path in sorted(case.files.items() if case else ()))]
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths if p.exists()]


def reusable_scores(records: Sequence[Any], files: list[list[Any]]) -> dict[str, Any] | None:
    """The last recorded result that was computed from the same files without a problem."""
    usable = [r["result"] for r in records if r["files"] == files and r["result"]["problem"] is None]
    return usable[-1] if usable else None


def given_up_result(prediction: Prediction) -> CaseScores:
    """Result of a case whose workers died too often."""
    what = f"{MAXIMUM_DEATHS} processes were killed or stopped while they scored it"
    problem = f"{prediction.path}: {what} (out of memory?)"
    return CaseScores(prediction, problem=problem)
