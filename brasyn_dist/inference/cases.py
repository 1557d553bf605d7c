"""What is to be made for each case, what has been made, and what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel

from brasyn_dist.brats import MODALITIES, Case, prediction_name
from brasyn_dist.data.nifti import read_volume
from brasyn_dist.errors import DataError
from brasyn_dist.files import sha256_of

Status = Literal["done", "kept", "skipped", "failed"]
"""`done` now; `kept` from an earlier run; `skipped`: nothing is missing; `failed`: see the reason."""


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

    Intact: the bytes that the manifest recorded, made from the same modalities. Outputs without a record (their run was
    killed before it wrote one) must be readable and of the inputs' shape.
    """
    if not all(path.is_file() for path in task.outputs.values()):
        return None
    known = earlier.get(task.case.name)
    if known is None or not known.sha256:
        intact = all(is_readable(path, task.case.files[task.available[0]]) for path in task.outputs.values())
        known = CaseResult(task.case.name, "kept")
    else:
        intact = known.available == task.available
        intact = intact and all(known.sha256.get(m) == sha256_of(path) for m, path in task.outputs.items())
    if not intact:
        return None
    hashes = {m: sha256_of(path) for m, path in task.outputs.items()}
    return CaseResult(task.case.name, "kept", task.available, task.targets, hashes, known.seconds)


def is_readable(output: Path, source: Path) -> bool:
    """Whether `output` is a whole volume of the shape that `source`'s header gives."""
    try:
        return read_volume(output).image.shape == nibabel.load(source).shape  # type: ignore[attr-defined]
    except (DataError, OSError, nibabel.filebasedimages.ImageFileError):
        return False
