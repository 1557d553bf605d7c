"""Predictions shared out between processes for scoring: `brasyn_dist.workqueue` around `score_prediction`.

    predictions --shifts: what nobody else has--> score_prediction --> records --all there, one process--> finish(CaseScoress)

Scores of an interrupted evaluation count if the options are the same and no file that they were computed from has changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brasyn_dist.brats import Case
from brasyn_dist.common.launch_environment import Place
from brasyn_dist.evaluation.scoring import CaseScores, Prediction, ScoringSettings, score_prediction
from brasyn_dist.workqueue.queue import Round
from brasyn_dist.workqueue.share import share

ATTEMPTS = 3
"""Processes that may die over a prediction before it counts as a problem."""


def share_predictions(
    predictions: Sequence[Prediction],
    cases: Mapping[str, Case],
    scoring: ScoringSettings,
    finish: Callable[[list[CaseScores]], None],
    *,
    out: Path,
    settings: Mapping[str, Any],
    place: Place,
    lease: float | None,
) -> bool:
    """Score `predictions` together with whoever does the same; one of the processes calls `finish` with all results.

    Results are in the order of the predictions. `settings`: (JSON) the options, which all processes must agree on.
    Returns whether this process called `finish`.
    """
    from tqdm import tqdm

    by_name = {prediction.path.name: prediction for prediction in predictions}

    def work(round: Round) -> None:
        earlier = round.earlier()
        with tqdm(total=len(by_name), desc="evaluate", disable=place.local_rank > 0 or None) as bar:
            for name in (name for shift in round.shifts() for name in shift):
                prediction = by_name[name]
                case = cases.get(prediction.case)
                state = state_of(prediction, case)
                result = reusable(earlier.get(name, ()), state)
                if round.deaths(name) >= ATTEMPTS:
                    result = to_values(given_up(prediction))
                elif result is None:
                    result = to_values(score_prediction(prediction, case, scoring))
                bar.n = round.record(name, {"state": state, "result": result})
                bar.refresh()

    def finish_with_results(round: Round) -> None:
        values = {name: records[0]["result"] for name, records in round.records.items()}
        finish([CaseScores(prediction, **values[name]) for name, prediction in by_name.items()])

    return share(
        out,
        list(by_name),
        basis=settings,
        rest=None,
        work=work,
        finish=finish_with_results,
        place=place,
        lease=lease,
    )


def to_values(result: CaseScores) -> dict[str, Any]:
    """Of its fields but the prediction; JSON keeps every bit of a float."""
    values = asdict(result)
    del values["prediction"]
    return values


def state_of(prediction: Prediction, case: Case | None) -> list[list[Any]]:
    """What tells whether the files of a result are still the same."""
    paths = (
        [prediction.path, *(case.files[name] for name in sorted(case.files))] if case else [prediction.path]
    )
    statuses = [path.stat() for path in paths if path.exists()]
    return [[str(p), s.st_size, s.st_mtime_ns] for p, s in zip(paths, statuses)]


def reusable(records: Sequence[Any], state: list[list[Any]]) -> dict[str, Any] | None:
    """The last recorded result that was computed from these very files without a problem."""
    fitting = [r["result"] for r in records if r["state"] == state and r["result"]["problem"] is None]
    return fitting[-1] if fitting else None


def given_up(prediction: Prediction) -> CaseScores:
    problem = f"{prediction.path}: {ATTEMPTS} processes were killed or stopped while they scored it (out of memory?)"
    return CaseScores(prediction, problem=problem)
