"""Attempts of a batch job at a run: where they started, how they ended, and what the job does next.

slurm/train.sbatch calls `begin` and `end` through cli/slurm_attempt.py.

Every start and end is a line of <run>/attempts.jsonl. A requeued job keeps its number, so that the failures
of one job can be counted; a newly submitted job starts counting at 0. Slurm requeues a job whose node died:
such an attempt has a start and no end.
"""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brasyn_dist.common import provenance
from brasyn_dist.common.files import fsync, json_lines, naming, read_json
from brasyn_dist.errors import BrasynError
from brasyn_dist.training import run_dir as run_folder
from brasyn_dist.training.checkpoint import MANIFEST, step_folders
from brasyn_dist.training.stop_request import USER_REQUEST, remove_stale_request

ATTEMPTS_FILE = "attempts.jsonl"
PATIENCE = 3
"""Consecutive failures at the same step after which a job ends."""


@dataclass(frozen=True)
class Verdict:
    """Next action of the batch script, and its reason."""

    action: Literal["finished", "requeue", "stop", "give-up"]
    """`finished`, `stop` (a user requested it): exit 0. `requeue`: continue. `give-up`: exit 1."""
    reason: str


def begin(run_dir: Path) -> None:
    """Record a start. Raises BrasynError if another job that is still running has the folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    job = provenance.slurm_job()
    other = other_job(read_attempts(run_dir), job)
    if other is not None and (state := job_state(other)) in ("RUNNING", "COMPLETING", "SUSPENDED"):
        raise BrasynError(
            f"{run_dir} belongs to job {other}, which is {state}; wait for it or `scancel {other}`, or "
            "choose another name="
        )
    remove_stale_request(run_dir)
    append(
        run_dir,
        {
            "event": "begin",
            "attempt": job,
            "step": saved_step(run_dir),
            "time": round(time.time(), 3),
            "git_commit": provenance.git_commit(),
            "slurm": provenance.slurm_facts(),
        },
    )


def end(run_dir: Path, exit_status: int, warned: bool) -> Verdict:
    """Record the end of this job's attempt and decide. `warned`: the batch script was signalled to end."""
    job, step = provenance.slurm_job(), saved_step(run_dir)
    status = read_status(run_dir, job)
    outcome = outcome_of(status, exit_status, warned)
    reason = str(status.get("reason") or "") or f"the launcher ended with status {exit_status}"
    failures = consecutive_failures(read_attempts(run_dir), job, step) + (outcome == "failed")
    verdict = decide(outcome, reason, step, failures)
    append(
        run_dir,
        {
            "event": "end",
            "attempt": job,
            "step": step,
            "time": round(time.time(), 3),
            "outcome": outcome,
            "exit_status": exit_status,
            "reason": reason if outcome != "finished" else "",
            "verdict": verdict.action,
        },
    )
    if verdict.action == "give-up":
        run_folder.write_status(run_dir, "failed", step, int(status.get("total_steps", 0)), verdict.reason)
    return verdict


def outcome_of(status: Mapping[str, Any], exit_status: int, warned: bool) -> str:
    """`finished`, `stopped` (can continue), `asked` (a user's STOP file) or `failed`.

    Args:
        status: status.json of this attempt.
        exit_status: Exit status of the launcher.
        warned: The batch script was signalled to end.
    """
    if status.get("status") == "finished":
        return "finished"
    if status.get("status") == "stopped":
        return "asked" if status["reason"] == USER_REQUEST and not warned else "stopped"
    # Signalled but not stopped in time: killed at the start or in a validation. The next attempt continues.
    return "stopped" if warned and exit_status != 0 and status.get("status") != "failed" else "failed"


def decide(outcome: str, reason: str, step: int, failures: int) -> Verdict:
    """Next action. `failures`: consecutive failures since the checkpoint of `step`, with this one."""
    if outcome == "finished":
        return Verdict("finished", "the run is finished")
    if outcome == "asked":
        return Verdict("stop", f"stopped on request ({reason}); submit the same job again to continue")
    if outcome == "stopped":
        return Verdict("requeue", f"{reason}; checkpoint of step {step}")
    if failures < PATIENCE:
        return Verdict(
            "requeue",
            f"failed ({reason}), {failures} of {PATIENCE} times since the checkpoint of step {step}",
        )
    return Verdict(
        "give-up",
        f"failed {failures} times since the checkpoint of step {step}, last: {reason}. Remove the cause (see "
        "the job's output), then submit the same job again: it continues from that checkpoint",
    )


def consecutive_failures(attempts: Sequence[Mapping[str, Any]], job: str | None, step: int) -> int:
    """Number of consecutive failures of the job with attempt `job` at checkpoint `step`, up to now."""
    count = 0
    for line in reversed(attempts):
        if line["event"] != "end" or job_number(line["attempt"]) != job_number(job):
            continue
        if line["outcome"] != "failed" or line["step"] != step:
            break
        count += 1
    return count


def other_job(attempts: Sequence[Mapping[str, Any]], job: str | None) -> str | None:
    """Number of the job that started last in this folder, if it is not the job of attempt `job`."""
    begun = [line["attempt"] for line in attempts if line["event"] == "begin" and line["attempt"]]
    last = job_number(begun[-1]) if begun else None
    return last if last != job_number(job) else None


def job_number(attempt: str | None) -> str | None:
    """Number of the job of an attempt."""
    return attempt.partition(".")[0] if attempt else None


def job_state(number: str) -> str | None:
    """State of a job in Slurm: RUNNING, PENDING, ...; None if it has no job of that number."""
    try:
        found = subprocess.run(
            ["squeue", "--noheader", "--jobs", number, "--format=%T"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def saved_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    folders = step_folders(run_dir / run_folder.CHECKPOINTS)
    return next((step for step, folder in folders if (folder / MANIFEST).exists()), 0)


def read_status(run_dir: Path, job: str | None) -> dict[str, Any]:
    """status.json if the attempt `job` wrote it, else empty: an attempt may end before it writes one."""
    status = read_json(run_dir / run_folder.STATUS)
    return status if status.get("job") == job else {}


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of attempts.jsonl; an incomplete one (the node died) is left out."""
    path = run_dir / ATTEMPTS_FILE
    return list(json_lines(path.read_text())) if path.exists() else []


def append(run_dir: Path, line: Mapping[str, Any]) -> None:
    """Write a line to attempts.jsonl and flush it to disk."""
    path = run_dir / ATTEMPTS_FILE
    with naming(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    fsync(path)
