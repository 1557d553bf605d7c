"""The work queue with a clock that the tests set: no test waits, and the tests decide which workers are dead."""

import json
import os
from pathlib import Path

import pytest

from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue import heartbeat
from brasyn_dist.workqueue.queue import FOLDER, MAXIMUM_DEATHS, WorkQueue

LEASE = 60.0


class Time:
    """Replaces the clock; `while_waiting` is called in each pause of a queue."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses = 0
        self.while_waiting = lambda: None

    def monotonic(self) -> float:
        return self.now

    def pause(self, queue: WorkQueue) -> None:
        assert self.pauses < 10_000, "waits forever"
        self.now, self.pauses = self.now + 1, self.pauses + 1
        self.while_waiting()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(heartbeat, "time", time)
    monkeypatch.setattr(WorkQueue, "_pause", lambda self: time.pause(self))
    return time


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is on its own machine: liveness is known from heartbeats only."""
    count = iter(range(1000))
    monkeypatch.setattr(heartbeat, "machine", lambda: f"machine {next(count)}")


def queue_of(
    folder: Path, items: str, job: str | None = "j", settings: str = "s", basis: str = "b"
) -> WorkQueue:
    return WorkQueue(folder, list(items), basis=basis, settings=settings, job=job, lease=LEASE)


def join(folder: Path, items: str, job: str | None = "j", settings: str = "s", basis: str = "b") -> WorkQueue:
    """A worker without a heartbeat thread."""
    queue = queue_of(folder, items, job, settings, basis)
    queue._join()
    return queue


def worker_file(queue: WorkQueue) -> Path:
    return queue._folder / "workers" / queue.name


def beat(*queues: WorkQueue) -> None:
    """A heartbeat that is visible even if the times of the file system are coarse."""
    for queue in queues:
        path = worker_file(queue)
        stamp = path.stat().st_mtime_ns + 1_000_000_000
        os.utime(path, ns=(stamp, stamp))


def claim(queue: WorkQueue) -> str | None:
    queue._read_records()
    return queue._claim_next()


def do_all(queue: WorkQueue) -> list[str]:
    done = []
    for item in queue:
        queue.record(item, f"{item} by {queue.name}")
        done.append(item)
    return done


def merge(queue: WorkQueue) -> bool:
    if queue.claim_merge():
        queue.finish()
        return True
    return False


def test_one_process_does_everything_in_order_and_leaves_nothing(tmp_path: Path, time: Time) -> None:
    for _ in range(2):  # the same command again starts a new pass
        with queue_of(tmp_path, "cab", job=None) as queue:
            assert queue.opened and do_all(queue) == ["c", "a", "b"] and queue.claim_merge()
            assert {item: len(values) for item, values in queue.records.items()} == {"a": 1, "b": 1, "c": 1}
            queue.finish()
    assert not list(tmp_path.iterdir()) and time.pauses == 0


def test_each_item_goes_to_one_process(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "abcdef"), join(tmp_path, "abcdef")
    assert (a.opened, b.opened) == (True, False)
    claimed = []
    for queue in (a, b, b, a, b, a):
        item = claim(queue)
        assert item is not None
        queue.record(item, None)
        claimed.append(item)
    assert claimed == list("abcdef")
    assert do_all(a) == do_all(b) == []


def test_an_outdated_list_of_claims_is_tolerated(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems cache lists of folders."""
    a, b = join(tmp_path, "abc"), join(tmp_path, "abc")
    assert claim(a) == "a"
    monkeypatch.setattr(b, "_newest_claims", dict)
    assert claim(b) == "b"


def test_the_last_items_are_not_claimed_ahead(tmp_path: Path, time: Time) -> None:
    """A slow process that holds one item must not hold another one that an idle process could do."""
    a, b = join(tmp_path, "abc"), join(tmp_path, "abc")
    assert [claim(a), claim(a)] == ["a", "b"]  # one to compute, one to read meanwhile
    assert claim(a) is None  # `c` is the last one, and there is another process
    assert claim(b) == "c"


def test_a_lease_ends_without_heartbeats(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b = join(tmp_path, "ab"), join(tmp_path, "ab")
    assert (claim(a), claim(b)) == ("a", "b")
    b.record("b", None)
    assert claim(b) is None
    for _ in range(5):  # heartbeats arrive, for any duration of the case
        time.now += LEASE - 1
        beat(a)
        assert claim(b) is None
    time.now += LEASE - 1
    assert claim(b) is None
    time.now += 2
    assert claim(b) == "a" and not b.given_up("a")
    assert claim(a) is None  # it continues: another worker has its item now, but it may still record it
    a.record("a", "by a")
    b.record("a", "by b")
    assert sorted(b.records["a"]) == ["by a", "by b"]


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_clocks_of_machines_are_not_compared(
    tmp_path: Path, time: Time, elsewhere: None, skew: float
) -> None:
    """The time of the worker's file is days off: only its changes count."""
    a, b = join(tmp_path, "ab"), join(tmp_path, "ab")
    assert (claim(a), claim(b)) == ("a", "b")
    b.record("b", None)
    path = worker_file(a)
    begun = path.stat().st_mtime + skew
    for beats in range(4):
        os.utime(path, (begun + beats, begun + beats))
        assert claim(b) is None
        time.now += LEASE * 0.9
    time.now += LEASE
    assert claim(b) == "a"


def test_a_stopped_observer_does_not_declare_others_dead(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b = join(tmp_path, "ab"), join(tmp_path, "ab")
    assert (claim(a), claim(b)) == ("a", "b")
    b.record("b", None)
    assert claim(b) is None
    time.now += 100 * LEASE  # b was stopped; a had heartbeats all the time
    beat(a)
    assert claim(b) is None


def test_an_ended_process_of_this_machine_is_dead_at_once(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "ab"), join(tmp_path, "ab")
    assert (claim(a), claim(b)) == ("a", "b")
    b.record("b", None)
    assert claim(b) is None
    values = json.loads(worker_file(a).read_text())
    worker_file(a).write_text(
        json.dumps({**values, "started": "1"})
    )  # its number belongs to another process now
    b._workers._known.clear()
    assert claim(b) == "a"


def test_leaving_releases_claims(tmp_path: Path, time: Time) -> None:
    b = join(tmp_path, "abc")
    with pytest.raises(KeyboardInterrupt), queue_of(tmp_path, "abc") as a:
        assert (claim(a), claim(b)) == ("a", "b")
        raise KeyboardInterrupt
    b.record("b", None)
    assert do_all(b) == ["c", "a"] and not b.given_up("a")


def test_abandoned_items_are_taken_one_at_a_time(tmp_path: Path, time: Time, elsewhere: None) -> None:
    first = join(tmp_path, "abcd")
    assert [claim(first) for _ in range(2)] == ["a", "b"]  # then it is killed
    last = join(tmp_path, "abcd")
    last.record(claim(last) or "", None)
    last.record(claim(last) or "", None)
    assert claim(last) is None
    time.now += LEASE
    assert claim(last) == "a" and claim(last) is None
    last.record("a", None)
    assert claim(last) == "b"


def test_an_item_whose_workers_are_killed_is_given_up(tmp_path: Path, time: Time, elsewhere: None) -> None:
    for number in range(MAXIMUM_DEATHS):
        queue = join(tmp_path, "a")
        if number:
            assert claim(queue) is None  # first observation
        time.now += LEASE
        assert claim(queue) == "a" and not queue.given_up("a")
    last = join(tmp_path, "a")
    assert claim(last) is None
    time.now += LEASE
    assert claim(last) == "a" and last.given_up("a")


def test_a_claim_without_a_name_is_abandoned_after_the_lease(tmp_path: Path, time: Time) -> None:
    """The worker was killed between creating the file and writing its name."""
    a = join(tmp_path, "a")
    (a._folder / "claims" / "a.1").touch()
    assert claim(a) is None
    time.now += LEASE + 1
    assert claim(a) == "a"


def test_waiting_ends_when_others_record(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "ab"), join(tmp_path, "ab")
    assert (claim(a), claim(b)) == ("a", "b")
    b.record("b", None)

    def others() -> None:
        if time.pauses == 3:
            a.record("a", None)

    time.while_waiting = others
    assert list(b) == [] and 3 <= time.pauses < 6


def test_one_process_merges(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "a"), join(tmp_path, "a")
    assert do_all(a) == ["a"] and do_all(b) == []
    assert merge(a) and not merge(b)
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["finished.json"]


def test_merging_is_taken_over_too(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b = join(tmp_path, "a"), join(tmp_path, "a")
    assert do_all(a) == ["a"] and do_all(b) == [] and a.claim_merge()  # then it is killed
    begun = time.now
    assert merge(b) and time.now - begun >= LEASE


def test_a_late_process_of_the_job_has_nothing_to_do(tmp_path: Path, time: Time) -> None:
    with queue_of(tmp_path, "ab") as queue:
        assert do_all(queue) == ["a", "b"] and merge(queue)
    with queue_of(tmp_path, "ab") as late:
        assert late.finished_before and do_all(late) == [] and not merge(late)
        assert late.interrupted_records() == {}
    for other in (
        queue_of(tmp_path, "abc"),
        queue_of(tmp_path, "ab", job="k"),
        queue_of(tmp_path, "ab", job=None),
    ):
        with other:
            assert not other.finished_before and len(do_all(other)) == len(other._items)
            assert merge(other)


def test_records_of_an_interrupted_pass(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a = join(tmp_path, "ab", job=None)
    a.record(claim(a) or "", "record of a")
    begun = time.now
    b = join(tmp_path, "ab", job=None)
    assert time.now - begun >= LEASE and b.opened and b.records == {}
    assert b.interrupted_records() == {"a": ["record of a"]}
    assert set(b.worker_details()) == {a.name, b.name}
    other = join(tmp_path / "2", "ab", job=None)
    other.record("a", 1)
    assert join(tmp_path / "2", "ab", job=None, basis="another").interrupted_records() == {}
    assert a.ended() and do_all(a) == [] and not a.claim_merge()  # it was only stopped: it ends here
    assert do_all(b) == ["a", "b"] and merge(b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2"]


def test_a_new_command_joins_live_workers(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a = join(tmp_path, "ab", job=None)
    time.while_waiting = lambda: beat(a)
    b = join(tmp_path, "ab", job=None)
    assert not b.opened and time.pauses == 1


def test_a_requeued_job_continues_its_pass(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a = join(tmp_path, "ab")
    a.record(claim(a) or "", "record")
    b = join(tmp_path, "ab")
    assert not b.opened and time.pauses == 0 and do_all(b) == ["b"]


def test_other_options_are_refused(tmp_path: Path, time: Time) -> None:
    a = join(tmp_path, "ab", job=None)
    for other in ({"settings": "other"}, {"basis": "other"}, {"items": "abc"}):
        with pytest.raises(ConfigError, match=f"{a.name} is at work there with other options"):
            join(tmp_path, **{"items": "ab", "job": None, **other})  # type: ignore[arg-type]
    assert not a.ended() and do_all(a) == ["a", "b"]
    with pytest.raises(ConfigError, match="too short"):
        WorkQueue(tmp_path, [], basis=None, lease=0.5)


def test_a_pass_that_ends_while_a_process_joins(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = join(tmp_path, "a", job=None)
    do_all(a)
    plain, moments = WorkQueue._joinable, iter([lambda: merge(a)])

    def slow(self: WorkQueue, number: int) -> bool:
        answer = plain(self, number)
        next(moments, lambda: None)()
        return answer

    monkeypatch.setattr(WorkQueue, "_joinable", slow)
    b = join(tmp_path, "a", job=None)
    assert b.opened and b.records == {}
    assert do_all(b) == ["a"]


def test_incomplete_lines_are_skipped(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "abc"), join(tmp_path, "abc")
    a.record("a", 1)
    with (a._folder / "records" / f"{a.name}.jsonl").open("ab") as file:
        file.write(b'\n{"item": "b", "val')
    b._read_records()
    assert b.records == {"a": [1]}
    a.record("b", 2)  # for example after a full disk
    b._read_records()
    assert b.records == {"a": [1], "b": [2]}


def test_records_after_the_end_are_dropped(tmp_path: Path, time: Time) -> None:
    a, b = join(tmp_path, "a"), join(tmp_path, "a")
    assert claim(a) == "a"
    b.record("a", 1)
    assert merge(b)
    a.record("a", 1)
    assert a.ended() and not a._folder.exists()
