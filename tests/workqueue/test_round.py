"""The claims' logic with a clock that the tests turn: nobody really sleeps, and who is dead is decided by the test."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue import heartbeat as alive
from brasyn_dist.workqueue import queue as round
from brasyn_dist.workqueue.queue import Round, finished, join

LEASE = 60.0


class Time:
    """Clock and sleep; `while_asleep` happens in each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0
        self.while_asleep = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert self.slept < 10_000, "waits for ever"
        self.now, self.slept = self.now + seconds, self.slept + 1
        self.while_asleep()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is on a machine of its own: nothing but signs of life tells that it lives."""
    count = iter(range(1000))
    monkeypatch.setattr(alive, "machine", lambda: f"machine {next(count)}")


def enter(
    root: Path, items: str, time: Time, job: str | None = "j", work: str = "w", basis: str = "b"
) -> Round:
    entered = join(
        root, list(items), job=job, basis=basis, work=work, lease=LEASE, clock=time, sleep=time.sleep
    )
    assert entered is not None
    return entered


def beat(*workers: Round) -> None:
    """A sign of life, seen as such however coarse the file system's clock is."""
    for worker in workers:
        path = worker.crew._folder / worker.name
        stamp = path.stat().st_mtime_ns + 1_000_000_000
        os.utime(path, ns=(stamp, stamp))


def draw(worker: Round) -> str | None:
    return worker._next()


def do_all(worker: Round) -> list[str]:
    done = []
    for shift in worker.shifts():
        for item in shift:
            worker.record(item, f"{item} by {worker.name}")
            done.append(item)
    return done


def test_one_process_does_everything_in_order_and_leaves_nothing(tmp_path: Path, time: Time) -> None:
    root, ends = tmp_path / ".fanout", []
    with enter(root, "cab", time, job=None) as worker:
        assert worker.opened
        assert do_all(worker) == ["c", "a", "b"]
        assert worker.finish(lambda: ends.append({k: len(v) for k, v in worker.records.items()}))
    assert ends == [{"a": 1, "b": 1, "c": 1}] and not root.exists() and time.slept == 0


def test_each_item_goes_to_one(tmp_path: Path, time: Time) -> None:
    a, b = enter(tmp_path, "abcdef", time), enter(tmp_path, "abcdef", time)
    assert (a.opened, b.opened) == (True, False)
    drawn = []
    for worker in (a, b, b, a, b, a):
        item = draw(worker)
        assert item is not None
        worker.record(item, None)
        drawn.append(item)
    assert drawn == list("abcdef")
    assert draw(a) is None and draw(b) is None
    a.read()
    assert a.complete() and b.complete()


def test_a_claim_that_a_stale_list_does_not_show_is_respected(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems cache lists of folders."""
    a, b = enter(tmp_path, "abc", time), enter(tmp_path, "abc", time)
    assert draw(a) == "a"
    monkeypatch.setattr(b._claims, "generations", dict)
    assert draw(b) == "b"


def test_the_last_items_are_not_read_ahead(tmp_path: Path, time: Time) -> None:
    """A slow process that holds one item must not hold another that a free one could do."""
    a, b = enter(tmp_path, "abc", time), enter(tmp_path, "abc", time)
    assert [draw(a), draw(a)] == ["a", "b"]  # one for now, one to read meanwhile
    assert draw(a) is None  # `c` is the last, and there is another process
    assert draw(b) == "c"


def test_a_dead_owner_is_told_by_its_silence_alone(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b = enter(tmp_path, "ab", time), enter(tmp_path, "ab", time)
    assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)
    assert draw(b) is None
    for _ in range(5):  # alive, however long it takes
        time.now += LEASE - 1
        beat(a)
        assert draw(b) is None
    time.now += LEASE - 1
    assert draw(b) is None
    time.now += 2
    assert draw(b) == "a" and b.deaths("a") == 1
    assert draw(a) is None  # it wakes up: what it held is another's now, but it may end it
    a.record("a", "by a")
    b.record("a", "by b")
    assert sorted(b.records["a"]) == ["by a", "by b"]


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_clocks_of_machines_do_not_matter(tmp_path: Path, time: Time, elsewhere: None, skew: float) -> None:
    """The owner's file has a time that is days off: only that it changes counts."""
    a, b = enter(tmp_path, "ab", time), enter(tmp_path, "ab", time)
    assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)
    path = a.crew._folder / a.name
    begun = path.stat().st_mtime + skew
    for beats in range(4):
        os.utime(path, (begun + beats, begun + beats))
        assert draw(b) is None
        time.now += LEASE * 0.9
    time.now += LEASE
    assert draw(b) == "a"


def test_an_observer_that_slept_itself_accuses_nobody(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b = enter(tmp_path, "ab", time), enter(tmp_path, "ab", time)
    assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)
    assert draw(b) is None
    time.now += 100 * LEASE  # b was stopped; a beat all the time
    beat(a)
    assert draw(b) is None


def test_a_process_of_this_machine_that_has_gone_is_dead_at_once(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = enter(tmp_path, "ab", time), enter(tmp_path, "ab", time)
    assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)
    assert draw(b) is None
    entry = a.crew._folder / a.name
    values = json.loads(entry.read_text())
    entry.write_text(json.dumps({**values, "started": "1"}))  # its number is another process' now
    b.crew._known.clear()
    assert draw(b) == "a"


def test_who_leaves_gives_back_what_it_holds(tmp_path: Path, time: Time) -> None:
    a, b = enter(tmp_path, "abc", time), enter(tmp_path, "abc", time)
    with a:
        assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)
    assert draw(b) == "c"
    b.record("c", None)
    assert draw(b) == "a" and b.deaths("a") == 0


def test_items_that_kill_are_taken_one_at_a_time_and_counted(
    tmp_path: Path, time: Time, elsewhere: None
) -> None:
    items = "abcd"
    first = enter(tmp_path, items, time)
    assert [draw(first) for _ in range(2)] == ["a", "b"]  # then it dies
    last = enter(tmp_path, items, time)
    last.record(draw(last) or "", None)
    last.record(draw(last) or "", None)
    assert draw(last) is None
    time.now += LEASE
    assert draw(last) == "a" and draw(last) is None  # holding one, it takes over no other
    assert last.deaths("a") == 1
    last.record("a", None)
    assert draw(last) == "b"


def test_a_claim_without_a_name_is_nobodys_after_a_while(tmp_path: Path, time: Time) -> None:
    """Killed between making the file and writing into it."""
    a = enter(tmp_path, "a", time)
    (a._claims._folder / "a.1").touch()
    assert draw(a) is None
    time.now += LEASE + 1
    assert draw(a) == "a"


def test_waiting_ends_when_others_record(tmp_path: Path, time: Time) -> None:
    a, b = enter(tmp_path, "ab", time), enter(tmp_path, "ab", time)
    assert (draw(a), draw(b)) == ("a", "b")
    b.record("b", None)

    def others() -> None:
        if time.slept == 3:
            a.record("a", None)

    time.while_asleep = others
    assert list(b.shifts()) == [] and b.complete() and 3 <= time.slept < 6


def test_one_process_ends_the_round(tmp_path: Path, time: Time) -> None:
    a, b, ends = enter(tmp_path, "a", time), enter(tmp_path, "a", time), []
    assert do_all(a) == ["a"] and do_all(b) == []
    assert a.finish(lambda: ends.append("a"))
    assert not b.finish(lambda: ends.append("b"))
    assert ends == ["a"] and [p.name for p in tmp_path.iterdir()] == ["finished.json"]


def test_the_end_is_taken_over_too(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a, b, ends = enter(tmp_path, "a", time), enter(tmp_path, "a", time), []
    do_all(a)

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a.finish(killed)
    begun = time.now
    assert b.finish(lambda: ends.append("b")) and ends == ["b"]
    assert time.now - begun >= LEASE


def test_late_processes_of_the_job_have_nothing_to_do_others_begin_anew(tmp_path: Path, time: Time) -> None:
    a = enter(tmp_path, "a", time)
    do_all(a)
    a.finish(lambda: None)
    assert join(tmp_path, ["a"], job="j", basis="b", work="w", lease=LEASE) is None
    again = enter(tmp_path, "a", time, job="k")
    assert again.opened and do_all(again) == ["a"]
    other = enter(tmp_path / "x", "a", time, job=None)
    do_all(other)
    other.finish(lambda: None)
    assert finished(tmp_path / "x") == []


def test_an_interrupted_pass_is_given_up_for_a_new_one(tmp_path: Path, time: Time, elsewhere: None) -> None:
    """Outputs may have been damaged since: a new command looks at everything again, with what was recorded."""
    a = enter(tmp_path, "ab", time, job=None)
    a.record(draw(a) or "", "record of a")
    begun = time.now
    b = enter(tmp_path, "ab", time, job=None)
    assert time.now - begun >= LEASE and b.opened and b.records == {}
    assert b.earlier() == {"a": ["record of a"]}
    other = enter(tmp_path / "2", "ab", time, job=None)
    other.record("a", 1)
    assert enter(tmp_path / "2", "ab", time, job=None, basis="another").earlier() == {}
    assert a.over() and draw_all(a) == []  # it was only stopped: it ends here
    assert do_all(b) == ["a", "b"] and b.finish(lambda: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2"]


def draw_all(worker: Round) -> list[Iterator[str]]:
    return list(worker.shifts())


def test_a_new_command_joins_who_is_alive(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a = enter(tmp_path, "ab", time, job=None)
    time.while_asleep = lambda: beat(a)
    b = enter(tmp_path, "ab", time, job=None)
    assert not b.opened and time.slept == 1


def test_a_requeued_job_goes_on(tmp_path: Path, time: Time, elsewhere: None) -> None:
    a = enter(tmp_path, "ab", time)
    a.record(draw(a) or "", "record")
    b = enter(tmp_path, "ab", time)
    assert not b.opened and time.slept == 0 and do_all(b) == ["b"]


def test_other_work_at_the_same_place_is_refused(tmp_path: Path, time: Time) -> None:
    a = enter(tmp_path / ".fanout", "ab", time, job=None)
    with pytest.raises(ConfigError, match=f"{a.name} is at work there with other options"):
        enter(tmp_path / ".fanout", "ab", time, job=None, work="other")
    assert not a.over() and do_all(a) == ["a", "b"]


def test_a_round_that_ends_while_one_comes_in(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = enter(tmp_path, "a", time, job=None)
    do_all(a)
    plain, moments = round.joinable, iter([lambda: a.finish(lambda: None)])

    def slow(*arguments: object) -> bool:
        answer = plain(*arguments)  # type: ignore[arg-type]
        next(moments, lambda: None)()
        return answer

    monkeypatch.setattr(round, "joinable", slow)
    b = enter(tmp_path, "a", time, job=None)
    assert b.opened and b.records == {}
    assert do_all(b) == ["a"]


def test_torn_lines_are_passed_over(tmp_path: Path, time: Time) -> None:
    a, b = enter(tmp_path, "abc", time), enter(tmp_path, "abc", time)
    a.record("a", 1)
    journal = tmp_path / "000001" / "journals" / f"{a.name}.jsonl"
    with journal.open("ab") as file:
        file.write(b'\n{"item": "b", "val')
    b.read()
    assert b.records == {"a": [1]}
    a.record("b", 2)  # after a full disk, say
    b.read()
    assert b.records == {"a": [1], "b": [2]}


def test_records_after_the_end_are_dropped(tmp_path: Path, time: Time) -> None:
    a, b = enter(tmp_path, "a", time), enter(tmp_path, "a", time)
    assert draw(a) == "a"
    b.record("a", 1)
    assert b.finish(lambda: None)
    a.record("a", 1)
    assert a.over() and not (tmp_path / "000001").exists()
