"""Shared by the tests of faults: small file systems and a training run."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.distributed.launch import SMALL, kill
from tests.distributed.warm import WarmRun

PATIENCE = 400.0
"""Seconds that a run may take on a machine that is busy with other things."""


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs at `folder`, with the whole capacity given. Skips where this process must not mount."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs root and the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system; waits for killed processes to let go of it."""
    deadline = time.monotonic() + 60
    while subprocess.run(["mount", "-o", f"remount,{options}", str(folder)]).returncode != 0:
        assert time.monotonic() < deadline, f"{folder} stays busy"
        time.sleep(0.1)


def train(
    options: tuple[str, ...],
    log: Path,
    processes: int = 2,
    small: tuple[str, ...] = SMALL,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Exit status of a run to its end; `log` is appended to."""
    process = WarmRun(options, log, processes, small, environment)
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"still running after {PATIENCE} s:\n{log.read_text()[-4000:]}") from None


def output(options: tuple[str, ...], log: Path, processes: int = 2) -> str:
    """Output of a run that must fail; it must not contain a traceback."""
    before = log.stat().st_size if log.exists() else 0
    status = train(options, log, processes)
    text = log.read_bytes()[before:].decode()
    assert status == 1 and "Traceback" not in text, text[-4000:]
    return text
