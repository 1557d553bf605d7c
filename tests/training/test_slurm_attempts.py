"""Next action of a batch job after each outcome, and the record of its attempts."""

import json
import os
from pathlib import Path

import pytest

from brasyn_dist.cli.slurm_attempt import main as attempt_main
from brasyn_dist.common import provenance
from brasyn_dist.errors import BrasynError
from brasyn_dist.training import run_dir as run_folder
from brasyn_dist.training import slurm_attempts as attempts
from brasyn_dist.training.slurm_attempts import begin, consecutive_failures, decide, end, read_attempts
from brasyn_dist.training.stop_request import STOP_FILE, remove_stale_request


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch):
    """Sets which job and restart this process belongs to."""

    def become(number: int, restart: int = 0) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", str(number))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))

    monkeypatch.setattr(attempts, "job_state", lambda number: None)
    become(7)
    return become


def save(run_dir: Path, step: int) -> None:
    folder = run_dir / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


def test_finished(tmp_path: Path, job):
    begin(tmp_path)
    run_folder.write_status(tmp_path, "finished", 9, 9)
    assert end(tmp_path, 0, warned=True).action == "finished"


@pytest.mark.parametrize(
    ("reason", "warned", "action"),
    [
        ("Slurm job 7.0: SIGUSR1", True, "requeue"),
        ("SIGTERM", False, "requeue"),  # preemption: Slurm signals the steps only
        ("another rank was signalled", False, "requeue"),
        ("STOP file", False, "stop"),
        ("STOP file", True, "requeue"),  # seen while the batch script was writing it
    ],
)
def test_stopped(tmp_path: Path, job, reason: str, warned: bool, action: str):
    begin(tmp_path)
    run_folder.write_status(tmp_path, "stopped", 5, 9, reason)
    assert end(tmp_path, 1, warned).action == action


def test_warned_while_starting_is_no_failure(tmp_path: Path, job):
    begin(tmp_path)
    assert end(tmp_path, 1, warned=True).action == "requeue"
    run_folder.write_status(tmp_path, "failed", 5, 9, "disk full")
    assert end(tmp_path, 1, warned=True).reason.startswith("failed (disk full), 1 of 3")


def test_status_of_an_earlier_attempt_is_ignored(tmp_path: Path, job):
    run_folder.write_status(tmp_path, "finished", 9, 9)
    job(7, restart=1)
    begin(tmp_path)
    assert end(tmp_path, 1, warned=False).action == "requeue"
    assert read_attempts(tmp_path)[-1]["outcome"] == "failed"


def test_three_failures_without_progress(tmp_path: Path, job):
    save(tmp_path, 10)
    for restart, expected in enumerate(["requeue", "requeue", "give-up"]):
        job(7, restart)
        begin(tmp_path)
        run_folder.write_status(tmp_path, "failed", 13, 20, "DataError: shard-3 is damaged")
        verdict = end(tmp_path, 1, warned=False)
        assert verdict.action == expected
    assert "3 times since the checkpoint of step 10" in verdict.reason and "shard-3" in verdict.reason
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["reason"], status["total_steps"]) == ("failed", verdict.reason, 20)
    job(8)  # submitted again, it has three attempts again
    begin(tmp_path)
    assert end(tmp_path, 1, warned=False).action == "requeue"


def test_progress_or_a_proper_stop_begins_the_count_anew(tmp_path: Path, job):
    for restart in range(8):
        job(7, restart)
        begin(tmp_path)
        if restart % 2:
            save(tmp_path, restart)
        assert end(tmp_path, 1, warned=False).action == "requeue"
    job(7, 8)
    run_folder.write_status(tmp_path, "stopped", 7, 20, "SIGTERM")
    end(tmp_path, 1, warned=False)
    assert consecutive_failures(read_attempts(tmp_path), "7.9", 7) == 0


def test_incomplete_checkpoints_do_not_count_as_progress(tmp_path: Path):
    save(tmp_path, 10)
    (tmp_path / "checkpoints/step-00000020").mkdir()
    assert attempts.saved_step(tmp_path) == 10


@pytest.mark.parametrize(
    ("state", "refused"), [("RUNNING", True), ("COMPLETING", True), ("PENDING", False), (None, False)]
)
def test_another_job_that_runs_keeps_the_folder(
    tmp_path: Path, job, monkeypatch: pytest.MonkeyPatch, state: str | None, refused: bool
):
    begin(tmp_path)
    job(7, restart=1)
    begin(tmp_path)  # the same job, requeued
    job(8)
    monkeypatch.setattr(attempts, "job_state", lambda number: state if number == "7" else "RUNNING")
    if refused:
        with pytest.raises(BrasynError, match=r"belongs to job 7.*scancel 7"):
            begin(tmp_path)
    else:
        begin(tmp_path)
    assert len(read_attempts(tmp_path)) == (2 if refused else 3)


def test_stop_file_of_a_batch_script_does_not_outlive_its_run(tmp_path: Path, job):
    path = tmp_path / STOP_FILE
    path.write_text("Slurm job 7.0: SIGUSR1\n")
    begin(tmp_path)
    assert not path.exists()
    path.touch()  # a person's
    begin(tmp_path)
    assert path.exists()
    remove_stale_request(tmp_path / "nothing")


def test_torn_line_is_left_out(tmp_path: Path, job):
    begin(tmp_path)
    with (tmp_path / attempts.ATTEMPTS_FILE).open("a") as file:
        file.write('{"event": "en')
    assert [line["event"] for line in read_attempts(tmp_path)] == ["begin"]


def test_records_nodes_and_code(tmp_path: Path, job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-4]")
    begin(tmp_path)
    (line,) = read_attempts(tmp_path)
    assert (
        line["slurm"]["SLURM_JOB_NODELIST"] == "node[1-4]" and line["attempt"] == "7.0" and line["step"] == 0
    )
    assert line["git_commit"] == provenance.git_commit()


def test_command_line(tmp_path: Path, job, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attempt_main(["begin", "name=x"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(tmp_path / "runs/x")
    assert attempt_main(["end", printed, "--exit-status", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "requeue\n" and "status 3" in captured.err
    assert attempt_main(["begin", "training.nonsense=1"]) == 1
    assert "training.nonsense" in capsys.readouterr().err


def test_verdict_of_a_failure_says_what_to_do():
    assert "submit the same job again" in decide("failed", "out of memory", 4, 3).reason


def test_a_second_process_waits_longer_where_its_predecessor_may_live(tmp_path: Path, job):
    first = run_folder.RunLock(tmp_path, patience_seconds=0.1)
    with pytest.raises(BrasynError, match=f"process {os.getpid()} on .* of Slurm job 7.0"):
        run_folder.RunLock(tmp_path, patience_seconds=0.1)
    first.release()
    run_folder.RunLock(tmp_path, patience_seconds=0.1).release()
