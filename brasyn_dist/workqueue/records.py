"""What each worker has recorded: a file of JSON lines for each, written by one and read by all.

A line counts once it is whole and on disk. What a killed worker has left half-written is passed over.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line and flush it to disk. Raises FileNotFoundError if the folder is gone.

    The file is opened anew each time: closing it is what makes the line visible to other clients of NFS. A line feed comes
    first, too: an earlier attempt may have ended half-way (disk full).
    """
    data = f"\n{json.dumps(entry)}\n".encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


class Reader:
    """Reads what is new in all journals of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(worker, entry) of the lines that were completed since the last call, the journals by name."""
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in self._lines(path):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield path.stem, entry

    def _lines(self, path: Path) -> list[bytes]:
        offset = self._offsets.get(path.name, 0)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return []  # the round is over
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path.name] = offset + len(whole)
        return whole.splitlines()
