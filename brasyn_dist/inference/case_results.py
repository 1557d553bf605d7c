"""What is to be made for each case, what has been made, and what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from brasyn_dist.brats import MODALITIES, Case, prediction_name
from brasyn_dist.common.files import sha256_of

Status = Literal["done", "kept", "skipped", "failed"]
"""`done` now; `kept` from an earlier run; `skipped`: nothing is missing; `failed`: see the reason."""
PREFERENCE: tuple[Status, ...] = ("done", "kept", "skipped", "failed")


@dataclass(frozen=True)
class Task:
    """Make `targets` of a case from `available`, into `outputs` (a path for each target)."""

    case: Case
    available: tuple[str, ...]
    outputs: dict[str, Path]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.outputs)


@dataclass(frozen=True)
class CaseResult:
    """What came of one case; an entry of manifest.json."""

    case: str
    status: Status
    available: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the written files, by target modality."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; reading and writing overlap with other cases' synthesis."""
    reason: str = ""
    worker: str = ""
    """Process that made it: host, process number, random letters."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaseResult":
        names = ("available", "targets")
        return cls(**{**values, **{name: tuple(values[name]) for name in names}})


def plan_tasks(
    cases: Iterable[Case], output: Path, modalities: Sequence[str] = ()
) -> tuple[list[Task], list[CaseResult]]:
    """Tasks of the cases that have something to make, and results of those that do not.

    Targets are the missing modalities; or exactly `modalities` if given, which then count as missing in every case, present
    or not. All other modalities that a case has are its input.
    """
    tasks, results = [], []
    for case in cases:
        targets = tuple(m for m in MODALITIES if m in modalities) or case.missing
        available = tuple(m for m in case.available if m not in targets)
        if not targets:
            reason = "nothing is missing; --modality M makes M as if it were"
            results.append(CaseResult(case.name, "skipped", available, reason=reason))
        elif not available:
            reason = f"{case.folder}: no modality is left to synthesise {', '.join(targets)} from"
            results.append(CaseResult(case.name, "failed", available, targets, reason=reason))
        else:
            outputs = {m: output / prediction_name(case.name, m) for m in targets}
            tasks.append(Task(case, available, outputs))
    return tasks, results


def finished_result(task: Task, earlier: Mapping[str, CaseResult]) -> CaseResult | None:
    """The task's result if an earlier run has made all its outputs and they are intact; None if it is to be done.

    Intact: the bytes that were recorded, made from the same modalities. Outputs without a record are made anew: nobody knows
    by which weights they are. (Records are on disk as soon as outputs are, so a killed run leaves at most one such case.)
    """
    known = earlier.get(task.case.name)
    if known is None or known.available != task.available:
        return None
    if not all(path.is_file() for path in task.outputs.values()):
        return None
    hashes = {m: sha256_of(path) for m, path in task.outputs.items()}
    if any(known.sha256.get(m) != value for m, value in hashes.items()):
        return None
    return CaseResult(
        task.case.name, "kept", task.available, task.targets, hashes, known.seconds, known.worker
    )


def best_result(results: Iterable[CaseResult]) -> CaseResult:
    """One of several of the same case, where two processes did it: one that went well, of those the first."""
    return min(results, key=lambda r: PREFERENCE.index(r.status))


def given_up(task: Task, deaths: int) -> CaseResult:
    """The result of a case that kills whoever takes it."""
    reason = (
        f"{task.case.folder}: {deaths} processes were killed or stopped while they were at it (out of memory?); "
        "look at the case, or run again with more memory"
    )
    return CaseResult(task.case.name, "failed", task.available, task.targets, reason=reason)
