"""Cases through three stages that overlap: the next is read and the last is written while one is synthesised.

    tasks --one reader thread--> volumes --this thread--> synthetic volumes --one writer thread--> files, CaseResult

A task is taken from its iterator only when the reader is free for it, and at most `AHEAD` cases wait at either side: memory
is bounded whatever the number of cases, and tasks may be handed out to several processes while they run. A case that fails
at any stage is passed on with its reason; the others go on.
"""

import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from brasyn_dist.common.files import sha256_of
from brasyn_dist.data.nifti import CaseVolumes, Volume, read_case, write_like
from brasyn_dist.errors import BrasynError
from brasyn_dist.inference.case_results import CaseResult, Task
from brasyn_dist.inference.timing import StageClock

T = TypeVar("T")

AHEAD = 1

Synthesise = Callable[[CaseVolumes, tuple[str, ...], StageClock], dict[str, np.ndarray]]
"""(volumes of the available modalities, targets, clock) -> integer volume (x, y, z) for each target."""


@dataclass
class Job:
    """One task on its way through the stages. As soon as it has a `result`, the stages left do nothing."""

    task: Task
    clock: StageClock
    volumes: CaseVolumes | None = None
    synthetic: dict[str, np.ndarray] = field(default_factory=dict)
    result: CaseResult | None = None

    def attempt(self, stage: Callable[["Job"], None]) -> "Job":
        """Run a stage; what it raises becomes the case's result."""
        if self.result is None:
            try:
                stage(self)
            except Exception as error:  # whatever one case meets, the others go on
                self.volumes, self.synthetic = None, {}
                self.result = CaseResult(
                    self.task.case.name,
                    "failed",
                    self.task.available,
                    self.task.targets,
                    reason=reason_of(error),
                )
        return self


def process(
    tasks: Iterable[Task],
    synthesise: Synthesise,
    report: Callable[[CaseResult], None],
    finished: Callable[[Task], CaseResult | None],
    device: torch.device,
    round_values: bool = False,
) -> None:
    """Do the tasks; those for which `finished` has a result are not done again.

    `report` takes each result as soon as it stands, in the order of the tasks, in the writer's thread.
    """

    def read(job: Job) -> None:
        job.result = finished(job.task)
        if job.result is None:
            with job.clock("read"):
                job.volumes = read_case(job.task.case, job.task.available, False, round_values)

    def compute(job: Job) -> None:
        assert job.volumes is not None
        job.synthetic = synthesise(job.volumes, job.task.targets, job.clock)

    def write_and_report(job: Job) -> None:
        job.attempt(write)
        assert job.result is not None
        report(job.result)

    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
        read_jobs = run_ahead(reader.submit(Job(task, StageClock(device)).attempt, read) for task in tasks)
        written = run_ahead(writer.submit(write_and_report, job.attempt(compute)) for job in read_jobs)
        deque(written, maxlen=0)


def run_ahead(futures: Iterable[Future[T]]) -> Iterator[T]:
    """Results in order. Drawing a future starts it: `AHEAD` are drawn beyond the one that is waited for."""
    started: deque[Future[T]] = deque()
    for future in futures:
        started.append(future)
        if len(started) > AHEAD:
            yield started.popleft().result()
    for future in started:
        yield future.result()


def write(job: Job) -> None:
    """Write all of a job's volumes like the case's first available one, and set its result."""
    assert job.volumes is not None
    reference = job.volumes.reference
    with job.clock("write"):
        for target, path in job.task.outputs.items():
            write_like(path, job.synthetic[target], reference, stored_type(reference))
        hashes = {target: sha256_of(path) for target, path in job.task.outputs.items()}
    seconds = {stage: round(value, 4) for stage, value in job.clock.seconds.items()}
    job.result = CaseResult(job.task.case.name, "done", job.task.available, job.task.targets, hashes, seconds)
    job.volumes, job.synthetic = None, {}


def stored_type(reference: Volume) -> np.dtype:
    """Type of the input's file; the array's, where a scale factor let the file's type hold more than it can alone."""
    kind = reference.image.get_data_dtype()
    scaled = kind.kind in "iu" and reference.array.max() > np.iinfo(kind).max
    return reference.array.dtype if scaled else kind


def reason_of(error: Exception) -> str:
    """For people. What is not an error of ours is a surprise: its traceback goes to the console."""
    if isinstance(error, BrasynError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory; use a smaller --batch-size ({str(error).splitlines()[0]})"
    if not isinstance(error, OSError):
        traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
