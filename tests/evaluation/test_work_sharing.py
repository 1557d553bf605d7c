"""Evaluation by several processes: the tables are those of one, byte for byte, whatever happens to some of them."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.evaluate import main
from tests.small import small_cases
from tests.workqueue.processes import (
    ACCELERATE,
    LEASE,
    PLAIN,
    array_task,
    busy,
    recorded,
    signal_to,
    start,
    wait_until,
    workers_at,
)

pytestmark = pytest.mark.slow
EVALUATE = "brasyn_dist.evaluate"
TABLES = ("cases.csv", "summary.json")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=3) / "train_gli"


@pytest.fixture(scope="module")
def predictions(references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each modality of each case, of the next modality's values; one file is rubbish."""
    folder = tmp_path_factory.mktemp("predictions")
    for case in find_cases(references):
        for modality, other in zip(MODALITIES, MODALITIES[1:] + MODALITIES[:1]):
            shutil.copy(case.files[other], folder / f"{case.name}-{modality}.nii.gz")
    next(folder.iterdir()).write_bytes(b"rubbish")
    return folder


@pytest.fixture(scope="module")
def expected(
    predictions: Path, references: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    assert main(arguments(predictions, references, out)) == 1
    return tables(out)


def arguments(predictions: Path, references: Path, out: Path) -> list[str]:
    return [
        "--predictions", str(predictions), "--references", str(references), "--out", str(out), *LEASE,
    ]  # fmt: skip


def tables(out: Path) -> dict[str, bytes]:
    assert (out / "report.html").stat().st_size > 10_000
    assert not list(out.glob(".workqueue/0*")) and not list(out.glob(".tmp*"))
    return {name: (out / name).read_bytes() for name in TABLES}


def test_ranks_of_a_launcher(
    predictions: Path, references: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    run = start(ACCELERATE, EVALUATE, arguments(predictions, references, tmp_path / "out"), tmp_path / "log")
    assert run.wait() != 0
    assert tables(tmp_path / "out") == expected
    assert run.text.count("not scored: ") == 1 and run.text.count("look at ") == 1


def test_a_killed_task_of_a_job_array_and_a_killed_helper(
    predictions: Path, references: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = start(
        PLAIN, EVALUATE, arguments(predictions, references, out), tmp_path / "killed", array_task(0)
    )
    other = start(
        PLAIN,
        EVALUATE,
        arguments(predictions, references, out),
        tmp_path / "other",
        array_task(1),
        "--workers",
        2,
    )
    wait_until(lambda: busy(out, killed.pid, 1), killed)
    killed.kill()
    helpers = [pid for pid in workers_at(out) if pid not in (killed.pid, other.pid)]
    for pid in helpers[:1]:
        signal_to(pid, signal.SIGKILL)
    assert other.wait() == 1
    assert tables(out) == expected


def test_scores_of_an_interrupted_evaluation_count(
    predictions: Path, references: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Recorded scores are reused (shown by a changed record), unless the file has changed."""
    out, copy = tmp_path / "out", tmp_path / "predictions"
    shutil.copytree(predictions, copy)
    first = start(PLAIN, EVALUATE, arguments(copy, references, out), tmp_path / "log")
    wait_until(lambda: busy(out, first.pid, 4), first)
    first.kill()
    (journal,) = (out / ".workqueue").glob("0*/records/*.jsonl")
    entries = [json.loads(line) for line in journal.read_text().splitlines() if line]
    good = [entry for entry in entries if entry["value"]["result"]["problem"] is None]
    for entry in good:
        entry["value"]["result"]["scores"]["synthetic"]["mae/brain"] = 1234.5
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    changed = copy / good[0]["item"]
    data = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(data)
    assert main(arguments(copy, references, out)) == 1
    lines = tables(out)["cases.csv"].decode().splitlines()
    assert sum(",1234.5" in line for line in lines) == len(good) - 1
    assert main(arguments(copy, references, out)) == 1
    assert tables(out)["cases.csv"] == expected["cases.csv"]
    assert recorded(out) == {}
