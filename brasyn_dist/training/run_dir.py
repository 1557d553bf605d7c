"""The folder of a run: configuration, environment, status, and the lock against a second job.

runs/<name>/{config.yaml, environment.json, data.json, status.json, attempts.jsonl, metrics.jsonl,
performance.jsonl, logs/, checkpoints/, panels/, export/, report.html}
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from brasyn_dist.common.files import atomic_write_text, read_json, write_json
from brasyn_dist.common.logs import redact
from brasyn_dist.common.provenance import environment, slurm_job, slurm_restarts
from brasyn_dist.config import RunConfig, to_dict, to_yaml
from brasyn_dist.errors import BrasynError, CheckpointError

log = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
EXPORT = "export"
PANELS = "panels"
STATUS = "status.json"


class RunLock:
    """Exclusive use of a run folder until this process ends for any reason.

    On NFS, Linux keeps the lock across nodes (not on Lustre mounted with `localflock`). A requeued job can
    meet its predecessor: a node without connection to Slurm trains on until its peers have ended, and a file
    server releases the lock of a dead node only after one or two minutes. Such a job therefore waits longer.

    Raises:
        BrasynError: Another process has the lock.
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
                        f"{run_dir} is in use by {self._file.read().strip() or 'another process'}; wait "
                        f"for that run "
                        "to end (or stop it with a STOP file there), or choose another name="
                    ) from None
                time.sleep(0.2)
            except OSError as error:  # a file system without locks
                log.warning("%s cannot be locked (%s); make sure that no other job uses it", run_dir, error)
                break
        self._file.truncate(0)
        job = f" of Slurm job {slurm_job()}" if slurm_job() else ""
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}{job}")
        self._file.flush()

    def release(self) -> None:
        """Release the lock."""
        self._file.close()


def in_use(run_dir: Path) -> bool:
    """Whether a process holds the lock of a run; True where this cannot be known."""
    try:
        with (run_dir / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def write_status(run_dir: Path, status: str, step: int, total_steps: int, reason: str = "") -> None:
    """Write status.json.

    `running`, `stopped` (the same command continues), `finished` or `failed`; `job`: see `slurm_job`.
    """
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
    """Context that writes the reason of an exception to status.json, on rank 0; Ctrl-C as `stopped`.

    The caller must hold the lock.
    """
    try:
        yield
    except KeyboardInterrupt as interruption:
        if is_main:
            note_failure(run_dir, interruption, "stopped")
        raise
    except Exception as error:
        if is_main:
            note_failure(run_dir, error)
        raise


def note_failure(run_dir: Path, error: BaseException, status: str = "failed") -> None:
    """Write the status to status.json; the steps stay as they are there."""
    known = read_json(run_dir / STATUS)
    reason = redact(": ".join(filter(None, (type(error).__name__, str(error)))))
    with suppress(OSError):  # the disk can be the cause
        write_status(run_dir, status, known.get("step", 0), known.get("total_steps", 0), reason)


def record(run_dir: Path, config: RunConfig, world: int, device: str, sources: dict[str, Any]) -> None:
    """Save the merged configuration and the environment. `sources` are weights of other runs."""
    atomic_write_text(run_dir / "config.yaml", to_yaml(config))
    write_json(run_dir / "environment.json", {**environment(world, device), "sources": sources})


def run_identity(config: RunConfig, data_fingerprint: str, models: dict[str, Any]) -> dict[str, Any]:
    """Everything that must be equal for a resume: data, order, batch geometry, models."""
    return {
        "data_fingerprint": data_fingerprint,
        "normalisation": config.data.normalisation,
        "order": to_dict(config.order),
        "augmentation": to_dict(config.augmentation),
        "global_batch_size": config.training.global_batch_size,
        "updates_per_batch": config.training.updates_per_batch,
        **models,
    }


def check_identity(
    saved: dict[str, Any], current: dict[str, Any], defaults: dict[str, Any], folder: Path
) -> None:
    """Compare the identity in a checkpoint with that of this run.

    Args:
        saved: Identity in the checkpoint. Options that its version did not have take their default.
        current: Identity of this run.
        defaults: Default values of options, by the same names.
        folder: The checkpoint, for the message.

    Raises:
        CheckpointError: They differ; the message lists every difference.
    """
    saved = with_defaults(saved, defaults)
    before, now = flattened(saved), flattened(current)
    differing = [
        f"{key}: checkpoint {before.get(key)!r}, configuration {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if differing:
        raise CheckpointError(
            f"{folder} belongs to another run; it differs in\n  " + "\n  ".join(differing) + "\n"
            "Restore these options, or start a new run with another name= (checkpoint.init_from takes the "
            "weights along)"
        )


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat |= nested
    return flat


def with_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`values` with the missing keys of `defaults`, also in nested dictionaries of the same kind."""
    if values.get("kind") not in (None, defaults.get("kind")):
        return values
    merged = {**defaults, **values}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(merged[key], dict):
            merged[key] = with_defaults(merged[key], default)
    return merged


def changed_options(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """Options outside the identity that differ from those of the checkpoint, as `section.key: old -> new`."""
    current, saved = to_dict(config), with_defaults(saved, to_dict(type(config).before_options()))
    sections = ("objective", "tversky", "optimizer", "training", "runtime")
    return [
        f"{section}.{key}: {saved[section].get(key)} -> {value}"
        for section in sections
        if section in current
        for key, value in current[section].items()
        if saved[section].get(key) != value
    ]
