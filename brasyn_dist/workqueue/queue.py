"""The work queue: an iterator over the items that no other process has, with a record for each item.

    with WorkQueue(folder, items, basis=..., job=...) as queue:
        for item in queue:                  # claimed by this process; ends when every item has a record
            queue.record(item, work(item))
        if queue.claim_merge():             # true in one process; the others wait until it has finished
            merge(queue.records)
            queue.finish()

A claim is a file that is created with O_EXCL: only one process succeeds, also on NFS. A process that takes
over an item from a dead worker creates the claim with the next number. Claims are never removed during a
pass.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from brasyn_dist.common.files import canonical_json, naming, write_json
from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue.heartbeat import Heartbeat, Workers, this_worker

log = logging.getLogger(__name__)

FOLDER = ".workqueue"
"""Inside the folder of the results, while the work is not finished."""
FINISHED_JOBS = "finished.json"
"""Jobs of the last finished pass, for processes of these jobs that start later."""
MERGE = ".merge"
"""The claim of the process that merges the records."""
LEASE = 60.0
"""Default lease in seconds: longer than the pauses of a loaded node or file server."""
POLL = 1.0
"""Seconds between two checks for items to take over."""
MAXIMUM_DEATHS = 3
"""Number of workers that may die while they process an item before the item is given up."""


class WorkQueue:
    """Items shared with all processes that use the same folder.

    A context manager: on exit, unfinished claims are released.

    `record` may be called in another thread than the one that iterates.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[str],
        *,
        basis: Any,
        settings: Any = None,
        job: str | None = None,
        details: dict[str, Any] | None = None,
        lease: float | None = None,
    ) -> None:
        """Describe the work. The queue joins the other processes when the context is entered.

        Args:
            folder: Folder of the results. The processes communicate through files in its subfolder
                `.workqueue`.
            items: Names that are valid as file names; equal in all processes.
            basis: (JSON) what a record depends on beside its item. Records of an interrupted pass with
                another basis do not count.
            settings: (JSON) everything else that must be equal in all processes.
            job: Name of the job (`LaunchContext.job`).
            details: (JSON) facts about this process, for `worker_details`.
            lease: Heartbeat timeout in seconds, after which another worker takes over an item.

        Raises:
            ConfigError: The lease is shorter than 1 s.
        """
        self._lease = LEASE if lease is None else lease
        if self._lease < 1:
            raise ConfigError(f"a lease of {lease} s is too short for heartbeats to arrive; give at least 1")
        self._root, self._items = folder / FOLDER, list(items)
        hashes = [_hash(basis), _hash([basis, settings, self._items])]
        self._worker = this_worker(job, hashes[0], hashes[1], details or {})
        self.name = self._worker.name
        """This process' name in the pass."""
        self.opened = False
        """Whether this process has started the pass."""
        self.finished_before = False
        """Whether other processes of this job had finished the work before this one joined."""
        self.records: dict[str, list[Any]] = {}
        """Recorded values by item; several where two processes did the same item."""
        self._held: set[str] = set()
        self._closed, self._changed, self._reading = Event(), Event(), Lock()
        self._heartbeat: Heartbeat | None = None
        self._use_pass(0)

    def __enter__(self) -> "WorkQueue":
        """Join the pass in progress, or start a new one.

        Raises:
            ConfigError: Processes with other options or items are working in the folder.
        """
        self._join()
        if not self.finished_before:
            self._heartbeat = Heartbeat(self._folder / "workers" / self.name, self._lease)
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._changed.set()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._workers.leave(self.name)

    # Work

    def __iter__(self) -> Iterator[str]:
        """Claimed items, until every item has a record.

        Waits while all remaining items are claimed by live workers.
        """
        waiting = False
        while not self.ended():
            self._read_records()
            item = self._claim_next()
            if item is not None:
                waiting = False
                yield item
            elif not (unrecorded := self._unrecorded()):
                return
            else:
                if not (waiting or self._held):
                    log.info("waiting for %d items of other workers", len(unrecorded))
                    waiting = True
                self._pause()

    def record(self, item: str, value: Any) -> int:
        """Store the (JSON) result of an item permanently. Returns the number of items that have a record."""
        try:
            # The file is opened for every line, because other clients of NFS see new content only after it
            # was closed. The line feed in front separates the entry from one that was written only in part
            # (disk full).
            path = self._folder / "records" / f"{self.name}.jsonl"
            with naming(path), path.open("ab") as file:
                file.write(f"\n{json.dumps({'item': item, 'value': value})}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # If the pass has ended, this process was stopped and others have done the item meanwhile.
            if not self.ended():
                raise
        self._held.discard(item)
        self._read_records()
        self._changed.set()
        return len(self.records)

    def given_up(self, item: str) -> bool:
        """Whether the item's previous workers died so often that it should not be processed again."""
        claims = range(1, self._newest_claims().get(item, 0) + 1)
        owners = {self._owner(item, number) for number in claims} - {"", self.name}
        return sum(not self._workers.has_left(name) for name in owners) >= MAXIMUM_DEATHS

    def interrupted_records(self) -> dict[str, list[Any]]:
        """Values that interrupted passes with the same basis have recorded, by item."""
        found: dict[str, list[Any]] = {}
        for number in (n for n in _passes(self._root) if n < self._number):
            folder = self._root / f"{number:06d}"
            workers = Workers(folder / "workers", self._lease)
            for name, item, value in _new_entries(folder / "records", {}):
                worker = workers.get(name)
                if worker is not None and worker.basis == self._worker.basis:
                    found.setdefault(item, []).append(value)
        return found

    def worker_details(self) -> dict[str, dict[str, Any]]:
        """`details` of the workers of this pass and of interrupted ones, by name."""
        folders = (self._root / f"{number:06d}" / "workers" for number in _passes(self._root))
        return {worker.name: worker.details for f in folders for worker in Workers(f, self._lease).all()}

    # End

    def claim_merge(self) -> bool:
        """Wait until this process may merge the records (true), or another process has done so (false)."""
        while not self.ended():
            if self._take(MERGE, self._newest_claims()):
                return True
            self._pause()
        return False

    def finish(self) -> None:
        """End the pass after merging: remove its files, and note its jobs for processes that start later."""
        jobs = {(worker.job, worker.settings) for worker in self._workers.all() if worker.job is not None}
        if jobs:
            write_json(self._root / FINISHED_JOBS, sorted(map(list, jobs)))
        for number in (n for n in _passes(self._root) if n <= self._number):
            with suppress(OSError):
                # Renamed first: no process may see a pass that is partly removed.
                (self._root / f"{number:06d}").rename(self._root / f".finished-{uuid.uuid4().hex[:8]}")
        for rest in self._root.glob(".finished-*"):
            shutil.rmtree(rest, ignore_errors=True)
        with suppress(OSError):
            self._root.rmdir()

    def ended(self) -> bool:
        """Whether the pass was finished, was replaced while this process was stopped, or was left."""
        if self._closed.is_set() or self.finished_before:
            return True
        return not self._workers.present(self.name) or _newest(self._root) != self._number

    # Joining

    def _join(self) -> None:
        while True:
            if [self._worker.job, self._worker.settings] in _finished_jobs(self._root):
                self.finished_before = True
                return
            number = _newest(self._root)
            if self._enter(number if number and self._joinable(number) else number + 1):
                return

    def _use_pass(self, number: int) -> None:
        self._number, self._folder = number, self._root / f"{number:06d}"
        self._workers = Workers(self._folder / "workers", self._lease)
        self._offsets: dict[str, int] = {}

    def _joinable(self, number: int) -> bool:
        """Whether a pass is continued: it is this job's, or one of its workers is alive.

        For a worker of another machine, this takes until its next heartbeat or the end of the lease.
        """
        self._use_pass(number)
        workers, me = self._workers.all(), self._worker
        if not workers or any(me.job and (w.job, w.settings) == (me.job, me.settings) for w in workers):
            return True
        candidates = [w for w in workers if not self._workers.has_ended(w.name)]
        if candidates:
            log.info("checking whether %s is alive", ", ".join(w.name for w in candidates))
        while candidates:
            if any(
                (w.machine and w.machine == me.machine) or self._workers.has_changed(w.name)
                for w in candidates
            ):
                return True
            candidates = [w for w in candidates if not self._workers.is_dead(w.name)]
            if candidates:
                self._pause()
        return False

    def _enter(self, number: int) -> bool:
        """Register as a worker of a pass. False if the pass has ended in the meantime."""
        self._use_pass(number)
        try:
            self.opened = False
            with suppress(FileExistsError):
                self._folder.mkdir(parents=True)
                self.opened = True
            for name in ("workers", "claims", "records"):
                (self._folder / name).mkdir(exist_ok=True)
            self._workers.register(self._worker)
        except FileNotFoundError:
            return False
        if _newest(self._root) != number:
            self._workers.leave(self.name)
            return False
        strangers = [
            n for n in self._others() if (w := self._workers.get(n)) and w.settings != self._worker.settings
        ]
        if strangers:
            self._workers.leave(self.name)
            raise ConfigError(
                f"{self._root.parent}: {', '.join(strangers)} is at work there with other options or cases; "
                "wait until it has ended, or give another folder"
            )
        return True

    # Claims and records

    def _claim_next(self) -> str | None:
        """Claim an item for this process; None if there is none at the moment."""
        newest, unrecorded = self._newest_claims(), self._unrecorded()
        unclaimed = [item for item in unrecorded if item not in newest]
        if self._held:
            # The last items are left to idle workers. Abandoned items are taken one at a time: if one of them
            # kills its workers, no other item is held together with it again.
            candidates = unclaimed if len(unclaimed) > len(self._others()) else []
        else:
            candidates = [*unclaimed, *(item for item in unrecorded if item in newest)]
        for item in candidates:
            if self._take(item, newest):
                self._held.add(item)
                return item
        return None

    def _take(self, item: str, newest: dict[str, int]) -> bool:
        """Claim an item that is unclaimed, or whose worker is dead. False if that fails."""
        number = newest.get(item, 0)
        if number and not self._abandoned(item, number):
            return False
        path = self._claim_file(item, number + 1)
        with suppress(FileExistsError, FileNotFoundError), naming(path), path.open("x") as file:
            file.write(self.name)
            return True
        return False

    def _abandoned(self, item: str, number: int) -> bool:
        owner = self._owner(item, number)
        if (
            not owner
        ):  # the worker has created the file and not yet written its name, or was killed in between
            return self._workers.unchanged(f"{item}.{number}", 0)
        return owner == self.name or self._workers.is_dead(owner)

    def _newest_claims(self) -> dict[str, int]:
        """Number of the newest claim of every claimed item.

        A network file system may return an outdated list.
        """
        newest: dict[str, int] = {}
        with suppress(FileNotFoundError):
            for path in (self._folder / "claims").iterdir():
                item, _, number = path.name.rpartition(".")
                if number.isdecimal():  # not a foreign file
                    newest[item] = max(newest.get(item, 0), int(number))
        return newest

    def _claim_file(self, item: str, number: int) -> Path:
        return self._folder / "claims" / f"{item}.{number}"

    def _owner(self, item: str, number: int) -> str:
        with suppress(OSError):
            return self._claim_file(item, number).read_text()
        return ""

    def _others(self) -> list[str]:
        """Workers beside this one that are not known to have ended."""
        return [n for n in self._workers.names() if n != self.name and not self._workers.has_ended(n)]

    def _unrecorded(self) -> list[str]:
        return [item for item in self._items if item not in self.records]

    def _read_records(self) -> None:
        with self._reading:
            for _, item, value in _new_entries(self._folder / "records", self._offsets):
                self.records.setdefault(item, []).append(value)

    def _pause(self) -> None:
        """Wait for the next check, or until this process has recorded an item."""
        self._changed.wait(min(POLL, self._lease / 4))
        self._changed.clear()


def _new_entries(folder: Path, offsets: dict[str, int]) -> Iterator[tuple[str, str, Any]]:
    """(worker, item, value) of the complete lines behind the `offsets` of the files, which are advanced.

    Lines that a killed worker has left incomplete are skipped.
    """
    for path in sorted(folder.glob("*.jsonl")):
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(offsets.get(path.name, 0))
            data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            offsets[path.name] = offsets.get(path.name, 0) + len(complete)
            for line in complete.splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    yield path.stem, entry["item"], entry["value"]


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _passes(root: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    return []


def _newest(root: Path) -> int:
    """Number of the pass in progress; 0 if there is none."""
    return max(_passes(root), default=0)


def _finished_jobs(root: Path) -> list[list[str]]:
    """(job, settings) of the processes of the last finished pass."""
    with suppress(OSError, ValueError):
        return json.loads((root / FINISHED_JOBS).read_text())
    return []
