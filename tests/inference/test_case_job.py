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
from brasyn_dist.inference import case_job
from brasyn_dist.inference.case_job import CaseJob, Synthesise, reason_of, run_jobs, stored_type
from brasyn_dist.inference.case_requests import CaseRecord, CaseRequest, plan_requests
from brasyn_dist.inference.synthesis import StageTimer
from tests.inference.small import LPS_AFFINE, brain, write_subject

SECONDS = 20.0


def requests(tmp_path: Path, count: int) -> list[CaseRequest]:
    folders = [write_subject(tmp_path / "in", f"case{i}", ["t1c"], seed=i) for i in range(count)]
    (tmp_path / "out").mkdir()
    return plan_requests([find_case(f) for f in folders], tmp_path / "out", ["t2w"])[0]


def echo(volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer) -> dict[str, np.ndarray]:
    return {target: volumes.images[0].astype(np.int32) for target in targets}


def run(work: list[CaseRequest] | Iterator[CaseRequest], synthesise: Synthesise = echo) -> list[CaseRecord]:
    results: list[CaseRecord] = []
    run_jobs((CaseJob(request) for request in work), synthesise, results.append)
    return results


def test_every_case_gets_its_own_volume(tmp_path: Path) -> None:
    work = requests(tmp_path, 4)
    results = run(work)
    assert [(r.case, r.status) for r in results] == [(f"case{i}", "done") for i in range(4)]
    for i, request in enumerate(work):
        np.testing.assert_array_equal(read_volume(request.outputs["t2w"]).array, brain(i)["t1c"])
    assert {"read", "write"} <= set(results[0].seconds)


def test_the_next_case_is_read_and_the_last_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case's synthesis waits for the next one's reading, and its writing for the next one's synthesis: in turn, nothing would move."""
    work = requests(tmp_path, 4)
    read = {t.case.name: threading.Event() for t in work}
    computing = {t.case.name: threading.Event() for t in work}
    names = [t.case.name for t in work]
    following = dict(itertools.pairwise(names))
    plain_read, plain_write = case_job.read_case, case_job.write_like

    def noted_read(case, *arguments):  # type: ignore[no-untyped-def]
        volumes = plain_read(case, *arguments)
        read[case.name].set()
        return volumes

    def late_write(path, *arguments):  # type: ignore[no-untyped-def]
        name = path.name.removesuffix("-t2w.nii.gz")
        assert name not in following or computing[following[name]].wait(SECONDS), "writing holds synthesis up"
        plain_write(path, *arguments)

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer
    ) -> dict[str, np.ndarray]:
        name = volumes.case.name
        computing[name].set()
        assert name not in following or read[following[name]].wait(SECONDS), (
            "the next case is not read meanwhile"
        )
        return echo(volumes, targets, timer)

    monkeypatch.setattr(case_job, "read_case", noted_read)
    monkeypatch.setattr(case_job, "write_like", late_write)
    assert [r.status for r in run(work, synthesise)] == ["done"] * 4


def test_requests_are_taken_only_when_they_are_next(tmp_path: Path) -> None:
    """Memory is bounded, and other processes may take the remaining cases."""
    work, taken, seen = requests(tmp_path, 6), [], []

    def taking() -> Iterator[CaseRequest]:
        for request in work:
            taken.append(request)
            yield request

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer
    ) -> dict[str, np.ndarray]:
        seen.append(len(taken))
        return echo(volumes, targets, timer)

    assert len(run(taking(), synthesise)) == 6
    assert all(k + 1 <= taken_then <= k + 2 for k, taken_then in enumerate(seen)) and len(seen) == 6


def test_a_failing_case_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = requests(tmp_path, 4)
    work[0].case.files["t1c"].write_bytes(b"not a volume")
    (tmp_path / "out" / "case2-t2w.nii.gz").mkdir()

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer
    ) -> dict[str, np.ndarray]:
        if volumes.case.name == "case1":
            raise ZeroDivisionError("a surprise")
        return echo(volumes, targets, timer)

    results = run(work, synthesise)
    assert [r.status for r in results] == ["failed", "failed", "failed", "done"]
    assert "case0-t1c.nii.gz" in results[0].reason
    assert results[1].reason == "ZeroDivisionError: a surprise"
    assert "a folder is in the place of a file" in results[2].reason
    assert results[2].available == ("t1c",) and results[2].targets == ("t2w",)
    shown = caplog.text
    assert (
        "in synthesise" in shown and "IsADirectory" not in shown
    )  # a traceback only where the fault may be ours
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case2-t2w.nii.gz", "case3-t2w.nii.gz"]


def test_reasons() -> None:
    assert reason_of(DataError("x.nii: bad")) == "x.nii: bad"
    assert "smaller --batch-size" in reason_of(torch.OutOfMemoryError("CUDA out of memory"))
    assert "smaller --batch-size" in reason_of(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize(
    ("stored", "largest", "expected"),
    [
        (["int16"], 3000, "int16"),
        (["uint8"], 200, "int16"),
        (["uint8", "int16"], 3000, "int16"),
        (["uint16", "uint16"], 3000, "uint16"),
        (["int16"], 40_000, "int32"),
        (["int16", "uint16"], 9, "int32"),
        (["float32"], 3000, "float32"),
        (["uint8", "float32"], 3000, "float32"),
    ],
)
def test_the_written_type_holds_the_values(stored: list[str], largest: int, expected: str) -> None:
    array = np.array([0, largest], np.int32)
    assert stored_type(map(np.dtype, stored), array) == np.dtype(expected)


def test_a_narrow_first_input_does_not_clip_the_output(tmp_path: Path) -> None:
    volumes = brain(0)
    folder = write_subject(tmp_path / "in", "a", ["t1n", "t2f"], volumes=volumes)
    narrow = nibabel.Nifti1Image((volumes["t1c"] // 20).astype(np.uint8), LPS_AFFINE)
    nibabel.save(narrow, folder / "a-t1c.nii.gz")
    (tmp_path / "out").mkdir()
    (request,), _ = plan_requests([find_case(folder)], tmp_path / "out")

    def second(volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer) -> dict[str, np.ndarray]:
        return {"t2w": volumes.images[1].astype(np.int32)}

    job = CaseJob(request).read().synthesise(second).write()
    assert job.record is not None and job.record.status == "done"
    np.testing.assert_array_equal(read_volume(request.outputs["t2w"]).array, volumes["t1n"])
    assert nibabel.load(request.outputs["t2w"]).get_data_dtype() == np.int16
