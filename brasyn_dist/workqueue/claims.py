"""Who does what: one empty-handed race for each item, won by creating a file that did not exist.

`ITEM.1` is the first claim. Nothing is ever taken away from a claim: whoever takes over from a dead owner creates `ITEM.2`,
so that here, too, one of several wins. The content is the owner's name.
"""

import os
from pathlib import Path


class Claims:
    """Claims below `folder`, made in the name of `owner`."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder, self._owner = folder, owner
        self._owners: dict[str, str] = {}

    def generations(self) -> dict[str, int]:
        """The newest claim of every claimed item. A network file system may show an old list: `take` knows better."""
        newest: dict[str, int] = {}
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return {}  # the round is over
        for name in names:
            item, _, generation = name.rpartition(".")
            newest[item] = max(newest.get(item, 0), int(generation))
        return newest

    def take(self, item: str, generation: int) -> bool:
        """Whether this process has made that claim, first of all."""
        try:
            handle = os.open(self._path(item, generation), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            return False
        try:
            os.write(handle, self._owner.encode())
        finally:
            os.close(handle)
        return True

    def owner(self, item: str, generation: int) -> str:
        """Name of the claim's owner; empty if it is not written yet (or was killed in between)."""
        path = self._path(item, generation)
        if not self._owners.get(path.name):
            try:
                self._owners[path.name] = path.read_text()
            except OSError:
                return ""
        return self._owners[path.name]

    def _path(self, item: str, generation: int) -> Path:
        return self._folder / f"{item}.{generation}"
