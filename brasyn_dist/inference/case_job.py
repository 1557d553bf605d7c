"""One case on its way through the stages read, synthesise and write, and the loop over cases.

    requests --read, one ahead in a thread--> volumes --synthesise--> synthetic volumes --write, in a thread

    --> files, CaseRecord

An error in any stage is stored in the case's record. The other cases are not affected.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np

from brasyn_dist.common.files import FULL, os_error_text, sha256_of
from brasyn_dist.common.overlap import WriteBehind, read_ahead
from brasyn_dist.data.case_notes import case_notes, equal_volumes, refuse
from brasyn_dist.data.nifti import CaseVolumes, read_case, write_like
from brasyn_dist.errors import BrasynError, DataError, out_of_memory
from brasyn_dist.inference.case_requests import CaseRecord, CaseRequest, failed_record, kept_record
from brasyn_dist.inference.synthesis import StageTimer

log = logging.getLogger(__name__)

Synthesise = Callable[[CaseVolumes, tuple[str, ...], StageTimer], dict[str, np.ndarray]]
"""(volumes of the available modalities, targets, timer) -> integer volume (x, y, z) for each target."""
PredictScales = Callable[[CaseVolumes, tuple[str, ...]], dict[str, dict[str, float]]]
"""(volumes of the available modalities, targets) -> see CaseRecord.scales."""
NOTHING: Mapping[str, CaseRecord] = {}


@dataclass(frozen=True)
class ReadOptions:
    """How the input is read."""

    round_values: bool = False
    """Round intensities that are not whole numbers."""
    assume: str | None = None
    """Order of the axes of volumes whose headers state none, such as LPS; None: as NIfTI defines it (LAS)."""
    strict: bool = False
    """Refuse cases with notes (data/case_notes.py)."""


def _stage(method: Callable[..., None]) -> Callable[..., "CaseJob"]:
    """A stage of a job: skipped if the job has a record; an exception becomes the record of a failed case."""

    @wraps(method)
    def run(self: "CaseJob", *arguments: Any, **options: Any) -> "CaseJob":
        if self.record is None:
            try:
                method(self, *arguments, **options)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise  # the next case could not be written, either
                where = f"{self.request.case.name}: {method.__name__}"
                self.record = failed_record(self.request, reason_of(error, where))
        if self.record is not None:
            self.volumes, self.synthetic = None, {}
        return self

    return run


@dataclass
class CaseJob:
    """A request in progress, until it has a `record`."""

    request: CaseRequest
    timer: StageTimer = field(default_factory=StageTimer)
    record: CaseRecord | None = None
    volumes: CaseVolumes | None = None
    synthetic: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scales: dict[str, dict[str, float]] = field(default_factory=dict)

    @_stage
    def read(self, earlier: Mapping[str, CaseRecord] = NOTHING, options: ReadOptions | None = None) -> None:
        """Read the available modalities, unless `earlier` records show that the outputs are finished."""
        request, options = self.request, options or ReadOptions()
        self.record = kept_record(request, earlier)
        if self.record is not None:
            self.notes = self.record.notes
        else:
            with self.timer("read"):
                self.volumes = read_case(
                    request.case, request.available, False, options.round_values, options.assume
                )
            empty = [m for m, v in zip(self.volumes.modalities, self.volumes.images) if not (v > 0).any()]
            if empty:
                paths = "\n".join(f"{request.case.files[m]}" for m in empty)
                raise DataError(
                    f"{paths}: no voxel above 0; remove the file, and the modality is synthesised"
                )
            prints = [hashlib.sha256(v.T.tobytes()).hexdigest() for v in self.volumes.images]
            equal = equal_volumes(self.volumes.modalities, prints)
            self.notes = (*request.notes, *case_notes(self.volumes), *equal)
        if options.strict:
            refuse(self.notes, request.case.folder)

    @_stage
    def synthesise(self, synthesise: Synthesise, predict_scales: PredictScales | None = None) -> None:
        """Make the target volumes."""
        assert self.volumes is not None
        self.synthetic = synthesise(self.volumes, self.request.targets, self.timer)
        if predict_scales is not None:
            self.scales = predict_scales(self.volumes, self.request.targets)

    @_stage
    def write(self) -> None:
        """Write the target volumes with the geometry of the first available modality."""
        assert self.volumes is not None
        request, volumes = self.request, self.volumes
        with self.timer("write"):
            for target, path in request.outputs.items():
                array = self.synthetic[target]
                write_like(path, array, volumes.reference, stored_type(volumes.stored_types, array))
            hashes = {target: sha256_of(path) for target, path in request.outputs.items()}
        seconds = {stage: round(value, 4) for stage, value in self.timer.seconds.items()}
        self.record = CaseRecord(
            request.case.name,
            "done",
            request.available,
            request.targets,
            hashes,
            seconds,
            notes=self.notes,
            scales=self.scales,
        )


def run_jobs(
    jobs: Iterable[CaseJob],
    synthesise: Synthesise,
    store: Callable[[CaseRecord], None],
    earlier: Mapping[str, CaseRecord] = NOTHING,
    options: ReadOptions | None = None,
    predict_scales: PredictScales | None = None,
) -> None:
    """The loop over cases. A job is taken from its iterator only when it is the next one to be read.

    Args:
        jobs: The cases. A job that already has a record is only stored.
        synthesise: The second stage.
        store: Takes the record of each case directly after its files were written, in the order of the jobs.
        earlier: Records of earlier runs, by case name.
        options: How the input is read.
        predict_scales: Predicted intensity scales of the targets, for the records.
    """

    def write_and_store(job: CaseJob) -> None:
        job.write()
        assert job.record is not None
        store(job.record)

    with read_ahead(job.read(earlier, options) for job in jobs) as read_jobs, WriteBehind() as writer:
        for job in read_jobs:
            job.synthesise(synthesise, predict_scales)
            writer.submit(write_and_store, job)


def stored_type(inputs: Iterable[np.dtype], array: np.ndarray) -> np.dtype:
    """Type of a written volume: the widest of the inputs, at least int16, and wide enough for `array`."""
    kind = np.result_type(*inputs)
    if kind.kind not in "iu":
        return kind
    if kind.itemsize < 2:
        kind = np.dtype(np.int16)
    for value in (array.min(initial=0), array.max(initial=0)):
        if not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            kind = np.promote_types(kind, np.min_scalar_type(value))
    return kind


def reason_of(error: Exception, where: str = "") -> str:
    """The error as a message for the user. The traceback of an unexpected error is logged."""
    if isinstance(error, BrasynError):
        return str(error)
    if problem := out_of_memory(error):
        return f"{problem}; use a smaller --batch-size"
    if isinstance(error, OSError):
        return os_error_text(error)
    log.error("%s", where, exc_info=error)
    return f"{type(error).__name__}: {error}"
