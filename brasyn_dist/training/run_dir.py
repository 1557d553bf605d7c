"""A run's folder: configuration, environment, status, and the lock that keeps a second job out.

runs/<name>/{config.yaml, environment.json, data.json, status.json, attempts.jsonl, metrics.jsonl, performance.jsonl,
logs/, checkpoints/, panels/, export/, report.html}
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.provenance import environment, slurm_job, slurm_restarts
from brasyn_dist.common.typed_yaml import to_dict, to_yaml
from brasyn_dist.config import RunConfig
from brasyn_dist.errors import BrasynError, CheckpointError

CHECKPOINTS = "checkpoints"
EXPORT = "export"
PANELS = "panels"
STATUS = "status.json"


class RunLock:
    """Exclusive use of a run folder until this process ends, however it ends. Raises BrasynError if another has it.

    Linux keeps the lock across nodes on NFS (not on Lustre mounted with `localflock`). A requeued job may meet its
    predecessor there: a node that Slurm has lost sight of trains on until its peers are gone, and a server forgets the lock of
    a dead one after a minute or two only. Such a job therefore waits longer.
    """

    def __init__(self, run_dir: Path, patience_seconds: float | None = None) -> None:
        if patience_seconds is None:
            patience_seconds = 300.0 if slurm_restarts() else 20.0
        self._file: TextIO = (run_dir / ".lock").open("a+")
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._file.seek(0)
                    raise BrasynError(
                        f"{run_dir} is in use by {self._file.read().strip() or 'another process'}; wait for that run "
                        "to end (or stop it with a STOP file there), or choose another name="
                    ) from None
                time.sleep(0.2)
            except OSError as error:  # a file system without locks: train on, but say so
                print(f"warning: {run_dir} cannot be locked ({error}); make sure that no other job uses it")
                break
        self._file.truncate(0)
        job = f" of Slurm job {slurm_job()}" if slurm_job() else ""
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}{job}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def write_status(run_dir: Path, status: str, step: int, total_steps: int, reason: str = "") -> None:
    """status.json: `running`, `stopped` (continue by the same command), `finished` or `failed`; `job`: see `slurm_job`."""
    values = {
        "status": status,
        "step": step,
        "total_steps": total_steps,
        "reason": reason,
        "job": slurm_job(),
    }
    write_json(run_dir / STATUS, {**values, "time": time.time()})


@contextmanager
def noting_failure(run_dir: Path, is_main: bool) -> Iterator[None]:
    """Leave the reason of an exception in status.json (rank 0 does), and pass it on. Only for who has the lock."""
    try:
        yield
    except Exception as error:
        if is_main:
            note_failure(run_dir, error)
        raise


def note_failure(run_dir: Path, error: BaseException) -> None:
    """status.json: failed, with the steps that were written there before."""
    try:
        known = json.loads((run_dir / STATUS).read_text())
    except (OSError, ValueError):
        known = {}
    reason = f"{type(error).__name__}: {error}"
    with suppress(OSError):  # the disk may be what failed
        write_status(run_dir, "failed", known.get("step", 0), known.get("total_steps", 0), reason)


def record(run_dir: Path, config: RunConfig, world: int, device: str, sources: dict[str, Any]) -> None:
    """Save the merged configuration and what the run was started with; `sources` are weights of other runs."""
    atomic_write_text(run_dir / "config.yaml", to_yaml(config))
    write_json(run_dir / "environment.json", {**environment(world, device), "sources": sources})


def run_identity(config: RunConfig, data_fingerprint: str, models: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a resume: data, order, batch geometry, models."""
    return {
        "data_fingerprint": data_fingerprint,
        "normalisation": config.data.normalisation,
        "order": to_dict(config.order),
        "augmentation": to_dict(config.augmentation),
        "global_batch_size": config.training.global_batch_size,
        "updates_per_batch": config.training.updates_per_batch,
        **models,
    }


def check_identity(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError listing every key in which the checkpoint and the configuration differ."""
    differing = [
        f"{key}: checkpoint {saved.get(key)!r}, configuration {current[key]!r}"
        for key in current
        if saved.get(key) != current[key]
    ]
    if differing:
        raise CheckpointError(
            f"{folder} belongs to another run; it differs in\n  " + "\n  ".join(differing) + "\n"
            "Restore these options, or start a new run with another name= (checkpoint.init_from takes the weights along)"
        )


def changed_options(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """Options outside the identity that differ from those the checkpoint was made with, as `section.key: old -> new`."""
    current = to_dict(config)
    sections = ("objective", "tversky", "optimizer", "training", "runtime")
    return [
        f"{section}.{key}: {saved[section].get(key)} -> {value}"
        for section in sections
        if section in saved and section in current
        for key, value in current[section].items()
        if saved[section].get(key) != value
    ]
