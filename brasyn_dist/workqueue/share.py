"""The loop around rounds: join, work, finish; and again if the round was given up while this process was stopped."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from brasyn_dist.common.files import canonical_json
from brasyn_dist.common.launch_environment import Place
from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue.queue import LEASE, Round, Say, join

FOLDER = ".fanout"
"""Within the folder of the results, while there is work."""


def share(
    folder: Path,
    items: Sequence[str],
    *,
    basis: Any,
    rest: Any,
    work: Callable[[Round], None],
    finish: Callable[[Round], None],
    place: Place,
    lease: float | None = None,
    say: Say = lambda text: None,
) -> bool:
    """Do `items` together with whoever does the same; returns when all are done and `finish` has been called by one process.

    folder  of the results; the processes agree through files in `folder`/.fanout
    items   names, good as file names; the same in all processes
    basis   (JSON) what a record depends on beside its item: records of an interrupted pass with another basis do not count
    rest    (JSON) whatever else all processes must have been given equally
    work    draws from `round.shifts()` and calls `round.record`
    finish  merges `round.records`; called by one process, or by another one too if it dies in it
    lease   seconds without a sign of life after which a process counts as dead

    Returns whether this process called `finish`. Raises ConfigError if processes with other options are at work there.
    """
    lease = LEASE if lease is None else lease
    if lease < 1:
        raise ConfigError(f"a lease of {lease} s is too short for signs of life to arrive; give at least 1")
    parts = (basis, [basis, rest, list(items)])
    hashes = [hashlib.sha256(canonical_json(part)).hexdigest() for part in parts]
    while True:
        entered = join(
            folder / FOLDER,
            items,
            job=place.job,
            basis=hashes[0],
            work=hashes[1],
            lease=lease,
            say=say,
        )
        if entered is None:
            return False
        with entered:
            work(entered)
            if entered.finish(lambda r=entered: finish(r)):  # type: ignore[misc]
                return True
