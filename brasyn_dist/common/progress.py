"""Progress of long work on stderr: a bar with the time left on a terminal, a few plain lines otherwise."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Self

from tqdm import tqdm

LINES = 4
"""Lines of one piece of work if stderr is not a terminal."""


class Progress:
    """Context manager that shows how much is done.

    Args:
        what: Name of the work.
        total: Amount of work.
        hidden: Show nothing, such as in all processes but one.
        lines: Plain lines in all if stderr is not a terminal.
    """

    def __init__(self, what: str, total: int, hidden: bool = False, lines: int = LINES) -> None:
        self._what, self._total, self._lines = what, total, 0 if hidden else lines
        self._reported, self._begun = 0, time.monotonic()
        self._bar = tqdm(total=total, desc=what, disable=True if hidden else None, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def reach(self, done: int) -> None:
        """Show that the amount `done` of the total is done."""
        if not self._bar.disable:
            self._bar.n = done
            self._bar.refresh()
        elif self._lines and (done == self._total or done - self._reported >= self._total / self._lines):
            self._reported = done
            left = (time.monotonic() - self._begun) * (self._total - done) / max(1, done)
            more = f", {timedelta(seconds=round(left))} left" if done < self._total else ""
            print(f"{self._what}: {done}/{self._total}{more}", file=sys.stderr, flush=True)

    def say(self, text: str, say: Callable[[str], None]) -> None:
        """Call `say` with a line, above the bar."""
        if not self._bar.disable:
            self._bar.clear()
        say(text)
        if not self._bar.disable:
            self._bar.refresh()
