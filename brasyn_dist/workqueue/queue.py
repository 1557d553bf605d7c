"""A round: one pass over the items, by all processes that join while it lasts.

    join --> shifts: draw, work, record; again when a worker has died --> finish: one of all merges --> the round's folder goes

Who comes late to a finished round of its own job has nothing to do; anybody else opens the next round, in which whatever the
caller finds in order is passed over quickly. So there are three questions on coming in, answered by `join`: is my job done, is
somebody at work whom I can join, or do I begin anew?
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from brasyn_dist.common.files import write_json
from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue.claims import Claims
from brasyn_dist.workqueue.heartbeat import Clock, Crew, Heart, Worker, this_worker
from brasyn_dist.workqueue.records import Reader, append

FINISHED = "finished.json"
"""Left behind for late processes of the same job."""
FOLDERS = ("workers", "claims", "finish", "journals")
LEASE = 60.0
"""Seconds without a sign of life. Longer than any pause of a loaded node or file server that is not worth redoing a case."""
POLL = 1.0
"""Seconds between looks at whether anything is to be taken over."""

Say = Callable[[str], None]
Sleep = Callable[[float], None]


class Round:
    """This process' part in a round. A context manager: outside it, what it holds is anybody's.

    Its methods are for one thread, except `record`.
    """

    def __init__(
        self,
        root: Path,
        number: int,
        worker: Worker,
        items: Sequence[str],
        lease: float = LEASE,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
        say: Say = lambda text: None,
    ) -> None:
        self._root, self._number, self._me, self._items = root, number, worker, list(items)
        self._lease, self._clock, self._sleep, self._say = lease, clock, sleep, say
        folder = self._folder = root / f"{number:06d}"
        self.crew = Crew(folder / "workers", lease, clock)
        self._claims = Claims(folder / "claims", worker.name)
        self._finish = Claims(folder / "finish", worker.name)
        self._reader, self._reading = Reader(folder / "journals"), Lock()
        self.records: dict[str, list[Any]] = {}
        """What has been recorded so far, by item; more than one where two did the same."""
        self.notes: dict[str, Any] = {}
        """What the workers said of themselves, by name."""
        self._held: set[str] = set()
        self._heart: Heart | None = None
        self.opened = False
        """Whether this process was the first in this round."""

    @property
    def name(self) -> str:
        """This process' in the round."""
        return self._me.name

    # Coming and going

    def enter(self) -> None:
        """Be one of the crew. Raises FileNotFoundError if the round ends at this moment."""
        try:
            self._folder.mkdir(parents=True)
            self.opened = True
        except FileExistsError:
            pass
        for name in FOLDERS:
            (self._folder / name).mkdir(exist_ok=True)
        self.crew.enter(self._me)

    def __enter__(self) -> "Round":
        self._heart = Heart(lambda: self.crew.beat(self._me.name), self._lease)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._heart is not None:
            self._heart.stop()
        self.leave()

    def leave(self) -> None:
        self.crew.leave(self._me.name)

    def over(self) -> bool:
        """Whether the round has been finished, or given up for a new one while this process was stopped."""
        return not self.crew.present(self._me.name) or newest(self._root) != self._number

    def others(self) -> list[Worker]:
        """All who entered and are not known to have died, without this process."""
        names = [n for n in self.crew.names() if n != self._me.name and not self.crew.gone(n)]
        return [w for n in names if (w := self.crew.get(n)) is not None]

    # Work

    def shifts(self) -> Iterator[Iterator[str]]:
        """Batches of claimed items until everything is recorded, by whomever. Each batch ends when nothing is free.

        Whoever draws the next batch has recorded all items of the last.
        """
        waiting_since: float | None = None
        while not self.over():
            item = self._next()
            if item is not None:
                waiting_since = None
                yield chain([item], self._draw())
            elif self.complete():
                return
            else:
                waiting_since = self._wait(waiting_since)

    def _draw(self) -> Iterator[str]:
        while not self.over() and (item := self._next()) is not None:
            yield item

    def _wait(self, since: float | None) -> float:
        if since is None:
            names = sorted({self._owner(item) or "?" for item in self._open()})
            self._say(f"nothing left to begin; {len(self._open())} unfinished at {', '.join(names)}")
        self._sleep(min(POLL, self._lease / 4))
        return self._clock() if since is None else since

    def _next(self) -> str | None:
        """An item for this process; None if there is none at the moment."""
        self.read()
        generations, unfinished = self._claims.generations(), self._open()
        fresh = [item for item in unfinished if item not in generations]
        # The last ones are not read ahead: they go to whoever is free first.
        if self._held and len(fresh) < len(self.crew.names()) and len(fresh) <= len(self.others()):
            return None
        for item in fresh:
            if self._claims.take(item, 1):
                return self._hold(item)
        # One at a time: should one of them be what kills its workers, the others are not held with it again.
        for item in [] if self._held else unfinished:
            generation = generations.get(item, 0)
            deserted = generation > 0 and self._deserted(self._claims, item, generation)
            if deserted and self._claims.take(item, generation + 1):
                return self._hold(item)
        return None

    def _hold(self, item: str) -> str:
        self._held.add(item)
        return item

    def _deserted(self, claims: Claims, item: str, generation: int) -> bool:
        owner = claims.owner(item, generation)
        if not owner:  # just being written, unless that takes for ever
            return self.crew.silent(f"{item}.{generation}", 0)
        return owner == self._me.name or self.crew.dead(owner)

    def _owner(self, item: str) -> str:
        return self._claims.owner(item, self._claims.generations().get(item, 1))

    def _open(self) -> list[str]:
        return [item for item in self._items if item not in self.records]

    def deaths(self, item: str) -> int:
        """Workers that had this item and went without a word."""
        owners = [self._claims.owner(item, g) for g in range(1, self._claims.generations().get(item, 0) + 1)]
        return sum(not self.crew.left(name) for name in owners if name and name != self._me.name)

    def record(self, item: str, value: Any) -> int:
        """Put down what came of an item, for good; how many items have a record now. Any thread may call this."""
        self._append({"item": item, "value": value})
        self._held.discard(item)
        self.read()
        return len(self.records)

    def note(self, facts: Any) -> None:
        """Put down (JSON) what somebody may want to know of this process, for `notes`."""
        self._append({"note": facts})

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            append(self._folder / "journals" / f"{self._me.name}.jsonl", entry)
        except OSError:
            if (
                not self.over()
            ):  # else this process was stopped, and others did it and ended the round meanwhile
                raise

    def read(self) -> None:
        """Learn what others have recorded."""
        with self._reading:
            for name, entry in self._reader.new():
                if "item" in entry and "value" in entry:
                    self.records.setdefault(entry["item"], []).append(entry["value"])
                elif "note" in entry:
                    self.notes[name] = entry["note"]

    def complete(self) -> bool:
        return not self._open()

    def earlier(self) -> dict[str, list[Any]]:
        """Records of rounds that were given up, where they depend on the same `basis` as this one's."""
        found: dict[str, list[Any]] = {}
        for number in (n for n in numbers(self._root) if n < self._number):
            folder = self._root / f"{number:06d}"
            crew = Crew(folder / "workers", self._lease, self._clock)
            for name, entry in Reader(folder / "journals").new():
                worker = crew.get(name)
                if worker is not None and worker.basis == self._me.basis and "item" in entry:
                    found.setdefault(entry["item"], []).append(entry.get("value"))
        return found

    # The end

    def finish(self, action: Callable[[], None]) -> bool:
        """Have one process, and another should it die, do what is to be done once when everything is recorded.

        Returns whether it was this one; the round's folder is removed then. False: another one did, or the round was
        given up.
        """
        while not self.over():
            generation = self._finish.generations().get("finish", 0)
            free = generation == 0 or self._deserted(self._finish, "finish", generation)
            if free and self._finish.take("finish", generation + 1):
                action()
                self._close()
                return True
            self._sleep(min(POLL, self._lease / 4))
        return False

    def _close(self) -> None:
        crew = [w for n in self.crew.names() if (w := self.crew.get(n)) is not None]
        done = [[w.job, w.work] for w in crew]
        if len(crew) > 1 or not self._me.job.startswith(ALONE):
            write_json(self._root / FINISHED, {"done": sorted(map(list, set(map(tuple, done))))})
        for number in numbers(self._root):
            if number <= self._number:
                with suppress(OSError):
                    # First out of the way as a whole: nobody may see a round that is half there.
                    (self._root / f"{number:06d}").rename(self._root / f".over-{uuid.uuid4().hex[:8]}")
        for rest in self._root.glob(".over-*"):
            shutil.rmtree(rest, ignore_errors=True)
        with suppress(OSError):
            self._root.rmdir()


ALONE = "alone-"


def join(
    root: Path,
    items: Sequence[str],
    *,
    job: str | None,
    basis: str,
    work: str,
    lease: float = LEASE,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    say: Say = lambda text: None,
) -> Round | None:
    """Enter the round that is under way below `root`, or a new one. None if this job has done this work already.

    `basis`, `work`: see `Worker`. Raises ConfigError if processes are at work there that do something else.
    """
    me = this_worker(job or f"{ALONE}{uuid.uuid4().hex}", basis, work)
    while True:
        if [me.job, me.work] in finished(root):
            return None
        number = newest(root)
        if number == 0 or not joinable(root / f"{number:06d}", me, lease, clock, sleep, say):
            number += 1
        entered = Round(root, number, me, items, lease, clock, sleep, say)
        try:
            entered.enter()
        except FileNotFoundError:
            continue  # it has just ended
        if newest(root) != number:
            entered.leave()
            continue
        strangers = [w.name for w in entered.others() if w.work != me.work]
        if strangers:
            entered.leave()
            raise ConfigError(
                f"{root.parent}: {', '.join(strangers)} is at work there with other options or cases; "
                "wait until it has ended, or give another folder"
            )
        return entered


def joinable(folder: Path, me: Worker, lease: float, clock: Clock, sleep: Sleep, say: Say) -> bool:
    """Whether to go on with a round: it is this job's, or somebody is alive in it.

    Of a process elsewhere that can take as long as the lease to tell; one that lives gives a sign much sooner.
    """
    crew = Crew(folder / "workers", lease, clock)
    names = crew.names()
    workers = [w for n in names if (w := crew.get(n)) is not None]
    if not names or any((w.job, w.work) == (me.job, me.work) for w in workers):
        return True
    unknown = [w for w in workers if not crew.gone(w.name)]
    if unknown:
        say(f"looking whether {', '.join(w.name for w in unknown)} is still at work")
    while unknown:
        if any((w.machine and w.machine == me.machine) or crew.moved(w.name) for w in unknown):
            return True
        unknown = [w for w in unknown if not crew.dead(w.name)]
        if unknown:
            sleep(min(POLL, lease / 4))
    return False


def numbers(root: Path) -> list[int]:
    """Rounds that there are."""
    with suppress(FileNotFoundError):
        return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())
    return []


def newest(root: Path) -> int:
    """The round that counts; 0 if there is none."""
    return max(numbers(root), default=0)


def finished(root: Path) -> list[list[str]]:
    """(job, work) of the processes that were in the last round when it was finished."""
    try:
        return json.loads((root / FINISHED).read_text())["done"]
    except (OSError, ValueError, KeyError):
        return []
