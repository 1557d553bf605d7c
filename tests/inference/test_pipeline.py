"""Reading, synthesis and writing overlap, in bounded memory; one case's failure is its own."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from brasyn_dist.brats import find_case
from brasyn_dist.data.nifti import CaseVolumes, read_volume
from brasyn_dist.errors import DataError
from brasyn_dist.inference import pipeline
from brasyn_dist.inference.case_results import CaseResult, Task, plan_tasks
from brasyn_dist.inference.pipeline import process, reason_of, stored_type
from brasyn_dist.inference.timing import StageClock
from tests.inference.small import LPS_AFFINE, brain, write_subject

CPU = torch.device("cpu")
SECONDS = 20.0


def tasks(tmp_path: Path, count: int) -> list[Task]:
    folders = [write_subject(tmp_path / "in", f"case{i}", ["t1c"], seed=i) for i in range(count)]
    (tmp_path / "out").mkdir()
    return plan_tasks([find_case(f) for f in folders], tmp_path / "out", ["t2w"])[0]


def echo(volumes: CaseVolumes, targets: tuple[str, ...], clock: StageClock) -> dict[str, np.ndarray]:
    return {target: volumes.images[0].astype(np.int32) for target in targets}


def run(work: list[Task] | Iterator[Task], synthesise: pipeline.Synthesise = echo) -> list[CaseResult]:
    results: list[CaseResult] = []
    process(work, synthesise, results.append, lambda task: None, CPU)
    return results


def test_every_case_gets_its_own_volume(tmp_path: Path) -> None:
    work = tasks(tmp_path, 4)
    results = run(work)
    assert [(r.case, r.status) for r in results] == [(f"case{i}", "done") for i in range(4)]
    for i, task in enumerate(work):
        np.testing.assert_array_equal(read_volume(task.outputs["t2w"]).array, brain(i)["t1c"])
    assert {"read", "write"} <= set(results[0].seconds)


def test_the_next_case_is_read_and_the_last_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case's synthesis waits for the next one's reading, and its writing for the next one's synthesis: in turn, nothing would move."""
    work = tasks(tmp_path, 4)
    read = {t.case.name: threading.Event() for t in work}
    computing = {t.case.name: threading.Event() for t in work}
    names = [t.case.name for t in work]
    following = dict(itertools.pairwise(names))
    plain_read, plain_write = pipeline.read_case, pipeline.write_like

    def noted_read(case, *arguments):  # type: ignore[no-untyped-def]
        volumes = plain_read(case, *arguments)
        read[case.name].set()
        return volumes

    def late_write(path, *arguments):  # type: ignore[no-untyped-def]
        name = path.name.removesuffix("-t2w.nii.gz")
        assert name not in following or computing[following[name]].wait(SECONDS), "writing holds synthesis up"
        plain_write(path, *arguments)

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], clock: StageClock
    ) -> dict[str, np.ndarray]:
        name = volumes.case.name
        computing[name].set()
        assert name not in following or read[following[name]].wait(SECONDS), (
            "the next case is not read meanwhile"
        )
        return echo(volumes, targets, clock)

    monkeypatch.setattr(pipeline, "read_case", noted_read)
    monkeypatch.setattr(pipeline, "write_like", late_write)
    assert [r.status for r in run(work, synthesise)] == ["done"] * 4


def test_tasks_are_drawn_only_when_they_are_next(tmp_path: Path) -> None:
    """So memory is bounded, and another process may take the tasks that this one has not drawn."""
    work, drawn, seen = tasks(tmp_path, 6), [], []

    def drawing() -> Iterator[Task]:
        for task in work:
            drawn.append(task)
            yield task

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], clock: StageClock
    ) -> dict[str, np.ndarray]:
        seen.append(len(drawn))
        return echo(volumes, targets, clock)

    assert len(run(drawing(), synthesise)) == 6
    assert seen == [2, 3, 4, 5, 6, 6]


def test_a_failing_case_leaves_the_others_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = tasks(tmp_path, 4)
    work[0].case.files["t1c"].write_bytes(b"not a volume")
    (tmp_path / "out" / "case2-t2w.nii.gz").mkdir()

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], clock: StageClock
    ) -> dict[str, np.ndarray]:
        if volumes.case.name == "case1":
            raise ZeroDivisionError("a surprise")
        return echo(volumes, targets, clock)

    results = run(work, synthesise)
    assert [r.status for r in results] == ["failed", "failed", "failed", "done"]
    assert "case0-t1c.nii.gz" in results[0].reason
    assert results[1].reason == "ZeroDivisionError: a surprise"
    assert "IsADirectoryError" in results[2].reason
    assert results[2].available == ("t1c",) and results[2].targets == ("t2w",)
    shown = capfd.readouterr().err
    assert (
        "in synthesise" in shown and "IsADirectory" not in shown
    )  # a traceback only where the fault may be ours
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case2-t2w.nii.gz", "case3-t2w.nii.gz"]


def test_reasons() -> None:
    assert reason_of(DataError("x.nii: bad")) == "x.nii: bad"
    assert "smaller --batch-size" in reason_of(torch.OutOfMemoryError("CUDA out of memory"))
    assert "smaller --batch-size" in reason_of(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize(
    ("stored", "slope", "expected"),
    [(np.int16, 1, np.int16), (np.float32, 1, np.float32), (np.uint8, 1, np.uint8), (np.uint8, 20, np.int16)],
)
def test_number_type_is_the_inputs(tmp_path: Path, stored: type, slope: float, expected: type) -> None:
    image = nibabel.Nifti1Image(np.full((4, 4, 4), 200, stored), LPS_AFFINE)
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    reference = read_volume(tmp_path / "a.nii.gz")
    assert stored_type(reference) == expected
