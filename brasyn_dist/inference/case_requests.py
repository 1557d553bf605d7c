"""Requests and records: what has to be synthesised for each case, and what was done.

cases --plan_requests--> CaseRequest --> CaseRecord (an entry of manifest.json)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from brasyn_dist.brats import Case, prediction_name
from brasyn_dist.common.files import sha256_of
from brasyn_dist.data.nifti import is_background

Status = Literal["done", "kept", "skipped", "failed"]
"""`done` in this run; `kept` from an earlier run; `skipped`: nothing is missing; `failed`: see the reason."""
PREFERENCE: tuple[Status, ...] = ("done", "kept", "skipped", "failed")


@dataclass(frozen=True)
class CaseRequest:
    """Synthesise `targets` of a case from `available`, into `outputs` (a path for each target)."""

    case: Case
    available: tuple[str, ...]
    outputs: dict[str, Path]
    notes: tuple[str, ...] = ()
    """What was assumed about the files."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Modalities to synthesise."""
        return tuple(self.outputs)


@dataclass(frozen=True)
class CaseRecord:
    """Result of one case; an entry of manifest.json."""

    case: str
    status: Status
    available: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the written files, by target modality."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage. Reading and writing overlap with the synthesis of other cases."""
    reason: str = ""
    worker: str = ""
    """Process that synthesised the case: host, process number, random letters."""
    notes: tuple[str, ...] = ()
    """What was assumed about the input, and what is unusual about it (data/case_notes.py)."""
    scales: dict[str, dict[str, float]] = field(default_factory=dict)
    """With normalisation `case`, for each target the predicted `median` of its foreground, and `log_error`,
    the standard deviation of the prediction's logarithm."""

    def to_dict(self) -> dict[str, Any]:
        """Entry of manifest.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CaseRecord":
        """Record from an entry of manifest.json."""
        names = ("available", "targets", "notes")
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in names}})


def plan_requests(
    cases: Iterable[Case], output: Path, modalities: Sequence[str] = ()
) -> tuple[list[CaseRequest], list[CaseRecord]]:
    """Requests for the cases that need synthesis, and records of the others.

    A volume without a voxel above 0 is a missing modality.

    Args:
        cases: The cases of the input. All modalities that a case has and that are not targets are its input.
        output: Folder of the predictions.
        modalities: Targets of every case, whether present or not; empty: each case's missing modalities.
    """
    requests, records = [], []
    for case in cases:
        empty = [m for m in case.available if m not in modalities and is_background(case.files[m])]
        missing = modalities or (*case.missing, *empty)
        targets = tuple(m for m in case.modality_set.modalities if m in missing)
        available = tuple(m for m in case.available if m not in (*targets, *empty))
        notes = tuple(f"{m}: {case.files[m].name} has no voxel above 0: taken as missing" for m in empty)
        if not targets:
            reason = "nothing is missing; --modality M synthesises M as if it were"
            records.append(CaseRecord(case.name, "skipped", available, reason=reason))
        elif not available:
            reason = f"{case.folder}: no modality is left to synthesise {', '.join(targets)} from"
            records.append(CaseRecord(case.name, "failed", available, targets, reason=reason, notes=notes))
        else:
            outputs = {m: output / prediction_name(case.name, m) for m in targets}
            requests.append(CaseRequest(case, available, outputs, notes))
    return requests, records


def kept_record(request: CaseRequest, earlier: Mapping[str, CaseRecord]) -> CaseRecord | None:
    """The record of a request that an earlier run has finished; None if the case has to be synthesised.

    Finished means: the outputs have the recorded hashes, and were synthesised from the same modalities.
    Outputs without a record are synthesised again, because their weights are not known. Records are written
    directly after the outputs, so that a killed run leaves at most one such case for each worker.
    """
    known = earlier.get(request.case.name)
    if known is None or known.available != request.available:
        return None
    if not all(path.is_file() for path in request.outputs.values()):
        return None
    hashes = {m: sha256_of(path) for m, path in request.outputs.items()}
    if any(known.sha256.get(m) != value for m, value in hashes.items()):
        return None
    return CaseRecord(
        case=known.case,
        status="kept",
        available=request.available,
        targets=request.targets,
        sha256=hashes,
        seconds=known.seconds,
        worker=known.worker,
        notes=known.notes,
        scales=known.scales,
    )


def failed_record(request: CaseRequest, reason: str) -> CaseRecord:
    """Record of a case that could not be completed."""
    return CaseRecord(
        request.case.name,
        "failed",
        request.available,
        request.targets,
        reason=reason,
        notes=request.notes,
    )


def best_records(values: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, CaseRecord]:
    """One record for each case. Where two processes did the same case: the first of those that succeeded."""
    return {case: min(map(CaseRecord.from_dict, v), key=_preference) for case, v in values.items()}


def _preference(record: CaseRecord) -> int:
    return PREFERENCE.index(record.status)
