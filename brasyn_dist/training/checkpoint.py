"""Checkpoints: they exist only when complete, and are verified before they are believed.

    checkpoints/.tmp-step-00001000-<pid>/   written and flushed, file by file
    checkpoints/step-00001000/              renamed when all files are there
    checkpoints/step-00001000/manifest.json written last: sizes and SHA-256 of the other files

A folder without its manifest, or whose files differ from it, is passed over loudly for the one before. All tensors are
safetensors and everything else is JSON: nothing is unpickled.
"""

from __future__ import (
    annotations,
)  # torch is imported by those who hold tensors; looking at folders shall be quick

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brasyn_dist.common.files import fsync, sha256_of, write_json
from brasyn_dist.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

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
    return f"step-{step:08d}"


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
) -> Path:
    """Write checkpoint `step` below `root`, atomically: killed at any moment, it is whole or absent.

    `tensors` maps file names (without ending) to named tensors; `state` must be JSON. Returns the folder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = root / folder_name(step)
    root.mkdir(parents=True, exist_ok=True)
    remove_unfinished(root)
    temporary = root / f".tmp-{folder_name(step)}-{os.getpid()}"
    temporary.mkdir()
    try:
        for name, group in tensors.items():
            save_file({k: v.contiguous() for k, v in group.items()}, temporary / f"{name}.safetensors")
        write_json(temporary / STATE, state)
        files = sorted(p for p in temporary.iterdir())
        manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
        for path in files:
            fsync(path)
        fsync(temporary)
        if final.exists():  # an unmarked or damaged one of the same step: we passed it over when we resumed
            shutil.rmtree(final)
        temporary.rename(final)
        fsync(root)
        write_json(final / MANIFEST, {"step": step, "files": manifest})
    except (OSError, SafetensorError) as error:  # a full disk is the latter
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: could not be written: {error}; earlier checkpoints are untouched. Free space or mend the "
            "file system, then run the same command again"
        ) from error
    return final


def remove_unfinished(root: Path) -> None:
    """Delete folders that a killed save left behind."""
    for path in root.glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named like a checkpoint, newest first; intact or not."""
    if not root.is_dir():
        return []
    found = [(int(m[1]), p) for p in root.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]
    return sorted(found, reverse=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, verified file by file. Raises CheckpointError naming what is wrong."""
    import json

    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: incomplete, {MANIFEST} is missing or unreadable ({error})"
        ) from None
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes, but {expected['bytes']} were written"
            )
        if sha256_of(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: content differs from what was written (SHA-256)")
    return Checkpoint(folder, manifest["step"], json.loads((folder / STATE).read_text()))


def newest_intact(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with each newer one."""
    passed_over: list[str] = []
    for _, folder in step_folders(root):
        try:
            return open_checkpoint(folder), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, passed_over


def remove_old(root: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. The mark goes first: half-deleted is incomplete."""
    for _, folder in [f for f in step_folders(root) if f[0] != best_step][keep:]:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
