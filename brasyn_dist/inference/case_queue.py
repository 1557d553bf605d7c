"""A cohort's cases shared out between processes: `brasyn_dist.workqueue` around the pipeline.

    tasks --shifts: what nobody else has--> pipeline --> records --all there, one process--> manifest.json

All processes scan the input and load the weights by themselves. Each has its own device, keeps a bounded number of cases
in memory, and records a case as soon as its volumes are on disk.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from brasyn_dist.common.files import remove_abandoned
from brasyn_dist.common.launch_environment import Place
from brasyn_dist.errors import DataError
from brasyn_dist.inference.case_results import CaseResult, Task, best_result, finished_result, given_up
from brasyn_dist.inference.manifest import Manifest
from brasyn_dist.workqueue.queue import Round
from brasyn_dist.workqueue.share import share

ATTEMPTS = 3
"""Processes that may die over a case before it counts as failed."""

Report = Callable[[CaseResult], None]
Process = Callable[[Iterable[Task], Report, Callable[[Task], CaseResult | None]], None]
"""(tasks, report, finished): `pipeline.process` with the rest of its arguments bound."""


def own_device(place: Place) -> str | None:
    """The process' own GPU, the k-th for the k-th process of a node; None: no GPU, or no choice."""
    count = torch.cuda.device_count()
    return f"cuda:{place.local_rank % count}" if count > 1 else None


def share_processors(place: Place) -> None:
    """Use this process' part of the node's processors: together, processes must not start more threads than there are."""
    if place.threads is not None:
        torch.set_num_threads(place.threads)


def share_cases(
    tasks: Sequence[Task],
    settled: Sequence[CaseResult],
    process: Process,
    manifest: Manifest,
    *,
    settings: Mapping[str, Any],
    overwrite: bool,
    place: Place,
    lease: float | None,
    say: Callable[[str], None],
    line: Callable[[CaseResult], str],
) -> list[CaseResult]:
    """Process `tasks` together with whoever does the same; one result a case, by name, also of those that others did.

    `settled`: results of cases that need no work. `settings`: (JSON) whatever all processes must agree on beside tasks
    and manifest.identity. Raises DataError if the manifest was changed by others in the end.
    """
    by_name = {task.case.name: task for task in tasks}
    results = {result.case: result for result in settled}
    items = sorted([*by_name, *results])
    total = len(items)

    def work(round: Round) -> None:
        manifest.reread(overwrite)
        if round.opened or manifest.new:
            manifest.save(finished=False)
        round.note(manifest.details)
        earlier = manifest.results | {
            case: best_result(map(CaseResult.from_dict, values)) for case, values in round.earlier().items()
        }

        def report(result: CaseResult) -> None:
            if result.status in ("done", "failed"):
                result = replace(result, worker=round.name)
            count = round.record(result.case, result.to_dict())
            say(f"{count}/{total} {line(result)}")

        def finished(task: Task) -> CaseResult | None:
            deaths = round.deaths(task.case.name)
            if deaths >= ATTEMPTS:
                return given_up(task, deaths)
            return None if overwrite else finished_result(task, earlier)

        for shift in round.shifts():
            process(with_results_reported(shift, by_name, results, report), report, finished)

    def finish(round: Round) -> None:
        manifest.results |= {
            case: best_result(map(CaseResult.from_dict, values)) for case, values in round.records.items()
        }
        manifest.workers |= round.notes
        remove_abandoned(manifest.folder, {path.name for task in tasks for path in task.outputs.values()})
        manifest.save(finished=True)

    finished_here = share(
        manifest.folder,
        items,
        basis=manifest.identity,
        rest={**settings, "overwrite": overwrite, "targets": {n: t.targets for n, t in by_name.items()}},
        work=work,
        finish=finish,
        place=place,
        lease=lease,
        say=say,
    )
    if not finished_here:
        say("the other processes of this job have finished the rest")
        manifest.reread(False)
    missing = [name for name in items if name not in manifest.results]
    if missing:
        raise DataError(
            f"{manifest.folder / 'manifest.json'} lacks {missing[0]}, though it was done; run the same command again"
        )
    return [manifest.results[name] for name in items]


def with_results_reported(
    names: Iterable[str], tasks: Mapping[str, Task], settled: Mapping[str, CaseResult], report: Report
) -> Iterator[Task]:
    """Tasks of the names drawn; settled cases are reported on the way."""
    for name in names:
        if name in settled:
            report(settled[name])
        else:
            yield tasks[name]
