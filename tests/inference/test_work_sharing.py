"""40 cases by several real processes: launchers, job arrays, kills, a stopped one; the bytes are those of one process.

One case is damaged: it is listed with its reason in every test, and all others are done.
"""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.inference.small import brain, write_subject
from tests.workqueue.processes import (
    ACCELERATE,
    LEASE,
    PLAIN,
    TORCHRUN,
    Started,
    array_task,
    busy,
    recorded,
    signal_to,
    start,
    wait_until,
    workers_at,
)

pytestmark = pytest.mark.slow
CASES = 40
INFER = "brasyn_dist.infer"
TORN = "case07"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(CASES):
        missing = ("t2f", "t1c", "t2w")[number % 3]
        present = [m for m in ("t1c", "t1n", "t2f", "t2w") if m != missing]
        write_subject(folder, f"case{number:02d}", present, volumes=brain(number, (48, 40, 9)))
    torn = folder / TORN / f"{TORN}-t1n.nii.gz"
    torn.write_bytes(torn.read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def expected(cohort: Path, axial_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Output of one process with one thread, as the others have: on CPUs the last bits of sums depend on it."""
    out = tmp_path_factory.mktemp("alone")
    log = tmp_path_factory.mktemp("alone-log") / "log"
    assert start(PLAIN, INFER, arguments(cohort, axial_weights, out), log).wait() == 1
    volumes = outputs(out)
    assert len(volumes) == CASES - 1 and not (out / ".workqueue").exists()
    return volumes


def arguments(cohort: Path, weights: Path, out: Path) -> list[object]:
    return ["--weights", weights, "--input", cohort, "--output", out, "--device", "cpu", *LEASE]


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def entries(out: Path) -> dict[str, dict]:
    values = json.loads((out / "manifest.json").read_text())
    assert values["finished"] is True
    return {entry["case"]: entry for entry in values["cases"]}


def check(out: Path, expected: dict[str, bytes]) -> dict[str, dict]:
    """All outputs are there, byte for byte; the damaged case is listed; no temporary file is left."""
    made = outputs(out)
    assert sorted(made) == sorted(expected)
    assert [name for name in made if made[name] != expected[name]] == []
    cases = entries(out)
    assert len(cases) == CASES and [n for n, c in cases.items() if c["status"] == "failed"] == [TORN]
    assert f"{TORN}-t1n.nii.gz" in cases[TORN]["reason"]
    assert (
        not list(out.glob(".tmp*"))
        and not list(out.glob(".workqueue/0*"))
        and not list(out.glob(".workqueue/.*"))
    )
    return cases


def done_in(log: str) -> list[str]:
    """Cases that the process has reported as done."""
    return [line.split()[1].rstrip(":") for line in log.splitlines() if " s (" in line]


def test_ranks_of_a_launcher(
    cohort: Path, axial_weights: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    run = start(ACCELERATE, INFER, arguments(cohort, axial_weights, tmp_path / "out"), tmp_path / "log")
    assert run.wait() != 0
    cases = check(tmp_path / "out", expected)
    assert f"failed: {TORN}: " in run.text and f"{CASES - 1} of {CASES} cases in order" in run.text
    values = json.loads((tmp_path / "out" / "manifest.json").read_text())
    shares = Counter(entry["worker"] for entry in cases.values())
    assert set(values["workers"]) == set(shares) and len(shares) >= 2
    assert all(worker["versions"]["torch"] for worker in values["workers"].values())
    assert len(done_in(run.text)) == CASES - 1, "a case was made twice"
    assert all(entry["seconds"]["network"] > 0 for n, entry in cases.items() if n != TORN)


def test_killed_and_stopped_tasks_of_a_job_array(
    cohort: Path, axial_weights: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Four tasks without rendezvous. One is stopped in a case and continued after the end, one is killed in a case.

    Each of the two is alone until then, so that it has a case when it is stopped or killed.
    """
    out = tmp_path / "out"
    tasks = []

    def begin() -> Started:
        number = len(tasks)
        tasks.append(
            start(
                PLAIN,
                INFER,
                arguments(cohort, axial_weights, out),
                tmp_path / f"log{number}",
                array_task(number),
            )
        )
        return tasks[-1]

    stopped = begin()
    wait_until(lambda: busy(out, stopped.pid, 1), stopped)
    signal_to(stopped.pid, signal.SIGSTOP)
    killed = begin()
    wait_until(lambda: busy(out, killed.pid, 1), killed)
    signal_to(killed.pid, signal.SIGKILL)
    others = [begin(), begin()]
    killed.wait()
    try:
        assert [task.wait() for task in others] == [1, 1]
    finally:
        signal_to(stopped.pid, signal.SIGCONT)
    assert stopped.wait() == 1
    check(out, expected)
    made = Counter(case for task in tasks for case in done_in(task.text))
    # The killed task may have recorded a case without printing it; the stopped one may repeat its cases.
    assert len(made) >= CASES - 2 and made.total() <= CASES - 1 + 3
    for task in (*others, stopped):
        assert f"failed: {TORN}: " in task.text and "cases in order" in task.text
    # A task that starts after the end has nothing to do, and prints the result.
    late = start(PLAIN, INFER, arguments(cohort, axial_weights, out), tmp_path / "late", array_task(9))
    assert late.wait() == 1 and not done_in(late.text) and "have finished" in late.text


def test_everything_is_killed_outputs_are_damaged_and_the_command_is_given_again(
    cohort: Path, axial_weights: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = start(TORCHRUN, INFER, arguments(cohort, axial_weights, out), tmp_path / "first")
    wait_until(lambda: sum(map(len, recorded(out).values())) >= 12, first)
    first.kill()
    before = {name: path.stat().st_mtime_ns for name in outputs(out) for path in [out / name]}
    assert 8 <= len(before) < CASES - 1
    known = {case for cases in recorded(out).values() for case in cases} - {TORN}
    cut, flipped, gone = sorted(name for name in before if name.rpartition("-")[0] in known)[:3]
    (out / cut).write_bytes(expected[cut][:-50])
    (out / flipped).write_bytes(expected[flipped][:-1] + bytes([expected[flipped][-1] ^ 1]))
    (out / gone).unlink()
    second = start(TORCHRUN, INFER, arguments(cohort, axial_weights, out), tmp_path / "second")
    assert second.wait() != 0
    cases = check(out, expected)
    kept = {name for name, entry in cases.items() if entry["status"] == "kept"}
    assert kept == known - {name.rpartition("-")[0] for name in (cut, flipped, gone)}
    assert all((out / n).stat().st_mtime_ns == t for n, t in before.items() if n.rpartition("-")[0] in kept)


def test_workers_of_one_command_continue_after_a_kill(
    cohort: Path, axial_weights: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """No launcher, no environment. A helper is killed in a case, a second command joins.

    The first command is stopped meanwhile, so that cases are left when the others have started.
    """
    out = tmp_path / "out"
    given = arguments(cohort, axial_weights, out)
    first = start(PLAIN, INFER, given, tmp_path / "first", None, "--workers", 2)

    def helpers() -> list[int]:
        return [pid for pid in workers_at(out) if pid != first.pid]

    wait_until(lambda: first.pid in workers_at(out), first)  # it has started its helper before
    signal_to(first.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: bool(helpers()) and busy(out, helpers()[0], 1), first)
        signal_to(helpers()[0], signal.SIGKILL)
        second = start(PLAIN, INFER, given, tmp_path / "second")
        wait_until(lambda: second.pid in workers_at(out), second)
    finally:
        signal_to(first.pid, signal.SIGCONT)
    assert [first.wait(), second.wait()] == [1, 1]
    check(out, expected)
    # The helper's case may be unrecorded; the first command's case may be done twice.
    assert CASES - 2 <= len(done_in(first.text + second.text)) <= CASES - 1 + 2
