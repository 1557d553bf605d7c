"""Checkpoints: complete or absent, and verified before use.

    checkpoints/.tmp-step-00001000-<pid>/   written and flushed, file by file
    checkpoints/step-00001000/              renamed when all files are written
    checkpoints/step-00001000/manifest.json written last: sizes and SHA-256 of the other files

A folder without manifest, or with other content than the manifest describes, is skipped with a warning; the
one before it is used. Tensors are safetensors and everything else is JSON: nothing is unpickled.

`CheckpointSaver` writes beside training: save() copies the tensors to host memory, and a thread calls
`save_checkpoint`.
"""

from __future__ import (
    annotations,  # torch is imported only where tensors are used: the Slurm scripts need a quick start
)

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brasyn_dist.common.files import fsync, sha256_of, write_json
from brasyn_dist.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    TensorGroups = Mapping[str, Mapping[str, Tensor]]

MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"^step-(\d{8})$")


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint: its folder, its optimiser step, its JSON state."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of `<name>.safetensors`."""
        from safetensors.torch import load_file

        return load_file(self.folder / f"{name}.safetensors", device=device)


def folder_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def save_checkpoint(root: Path, step: int, tensors: TensorGroups, state: dict[str, Any]) -> Path:
    """Write checkpoint `step` below `root` atomically.

    Args:
        root: Folder of the checkpoints.
        step: Optimiser step.
        tensors: File name without suffix -> named tensors.
        state: JSON-compatible.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: It could not be written. Earlier checkpoints are unchanged.
    """
    from brasyn_dist.models.pretrained import save_tensors

    final = root / folder_name(step)
    root.mkdir(parents=True, exist_ok=True)
    for unfinished in root.glob(".tmp-step-*"):  # of a save that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary = root / f".tmp-{folder_name(step)}-{os.getpid()}"
    temporary.mkdir()
    try:
        for name, group in tensors.items():
            save_tensors({k: v.contiguous() for k, v in group.items()}, temporary / f"{name}.safetensors")
        write_json(temporary / STATE, state)
        files = sorted(temporary.iterdir())
        manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
        for path in files:
            fsync(path)
        fsync(temporary)
        if final.exists():  # incomplete or damaged: it was skipped when the run was resumed
            shutil.rmtree(final)
        temporary.rename(final)
        fsync(root)
        write_json(final / MANIFEST, {"step": step, "files": manifest})
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: could not be written: {error}; earlier checkpoints are untouched. Free space or "
            "repair the file system, then run the same command again"
        ) from error
    return final


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all folders named like a checkpoint, intact or not, newest first."""
    if not root.is_dir():
        return []
    found = [(int(m[1]), p) for p in root.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]
    return sorted(found, reverse=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, verified file by file.

    Raises:
        CheckpointError: It is incomplete or damaged; the message names the file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: incomplete, {MANIFEST} is missing or unreadable ({error})"
        ) from None
    try:
        step = int(manifest["step"])
        files = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in manifest["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: damaged ({error!r})") from None
    if unlisted := {STATE, *(p.name for p in folder.glob("*.safetensors"))} - set(files):
        raise CheckpointError(f"{folder / MANIFEST}: damaged, {sorted(unlisted)[0]} is not listed")
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, but {size} were written")
        if sha256_of(path) != digest:
            raise CheckpointError(f"{path}: content differs from what was written (SHA-256)")
    state = json.loads((folder / STATE).read_text())
    if state.get("step", step) != step:
        raise CheckpointError(f"{folder / MANIFEST}: damaged, step {step} instead of {state['step']}")
    return Checkpoint(folder, step, state)


def newest_intact(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be verified, and the problems of the newer ones."""
    problems: list[str] = []
    for _, folder in step_folders(root):
        try:
            return open_checkpoint(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def remove_old(root: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. The manifest is deleted first."""
    for _, folder in [f for f in step_folders(root) if f[0] != best_step][keep:]:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


class CheckpointSaver:
    """Writes checkpoints below `root` in a thread, one at a time.

    The thread calls `after()` when one is complete.
    """

    def __init__(self, root: Path, after: Callable[[], None]) -> None:
        self._root, self._after = root, after
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_seconds = 0.0
        """Duration of the last write."""

    def save(self, step: int, tensors: TensorGroups, state: dict[str, Any]) -> None:
        """Wait for the write before, copy the tensors to host memory and start the write.

        The tensors may change then.
        """
        self.wait()
        copies = copy_to_host(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, state), name=f"save-step-{step}", daemon=False
        )
        self._thread.start()

    def _write(self, step: int, tensors: TensorGroups, state: dict[str, Any]) -> None:
        begin = time.monotonic()
        try:
            save_checkpoint(self._root, step, tensors, state)
            self._after()
        except BaseException as error:  # raised in the main thread by check()
            self._error = error
        self.write_seconds = time.monotonic() - begin

    @property
    def failed(self) -> bool:
        """Whether a write has failed; `check` raises its error."""
        return self._error is not None

    def check(self) -> None:
        """Raise the error of the last save, if it failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait for the last write. Raises its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


def copy_to_host(tensors: TensorGroups) -> dict[str, dict[str, Tensor]]:
    """Copies in host memory. Transfers from a GPU run concurrently and are waited for once."""
    import torch

    cuda = any(t.is_cuda for group in tensors.values() for t in group.values())
    copies = {
        name: {
            key: torch.empty_like(t, device="cpu", pin_memory=t.is_cuda).copy_(t.detach(), non_blocking=True)
            for key, t in group.items()
        }
        for name, group in tensors.items()
    }
    if cuda:
        torch.cuda.synchronize()
    return copies
