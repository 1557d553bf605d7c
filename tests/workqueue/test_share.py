"""The loop around rounds, in one process."""

from pathlib import Path

import pytest

from brasyn_dist.common.launch_environment import Place
from brasyn_dist.errors import ConfigError
from brasyn_dist.workqueue.queue import Round
from brasyn_dist.workqueue.share import share

ITEMS = ["a", "b", "c"]


def run(folder: Path, items: list[str], place: Place, merged: list[dict], lease: float | None = None) -> bool:
    def work(round: Round) -> None:
        for item in (item for shift in round.shifts() for item in shift):
            round.record(item, f"made of {item}")

    return share(
        folder,
        items,
        basis={},
        rest=None,
        work=work,
        finish=lambda round: merged.append({name: values[0] for name, values in round.records.items()}),
        place=place,
        lease=lease,
    )


def test_alone(tmp_path: Path) -> None:
    merged: list[dict] = []
    assert run(tmp_path, ITEMS, Place(), merged)
    assert merged == [{item: f"made of {item}" for item in ITEMS}] and not list(tmp_path.iterdir())
    assert run(tmp_path, ITEMS, Place(), merged) and len(merged) == 2  # the same command again looks again


def test_a_late_process_of_the_job(tmp_path: Path) -> None:
    merged: list[dict] = []
    assert run(tmp_path, ITEMS, Place(job="j"), merged)
    assert not run(tmp_path, ITEMS, Place(job="j"), merged) and len(merged) == 1
    assert run(tmp_path, [*ITEMS, "d"], Place(job="j"), merged)  # other work
    assert run(tmp_path, ITEMS, Place(job="k"), merged)


def test_failing_work_gives_back_what_it_holds(tmp_path: Path) -> None:
    def fail(round: Round) -> None:
        next(next(round.shifts()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share(
            tmp_path, ITEMS, basis={}, rest=None, work=fail, finish=lambda round: None, place=Place(job="j")
        )
    merged: list[dict] = []
    assert run(tmp_path, ITEMS, Place(job="j"), merged) and sorted(merged[0]) == ITEMS


def test_a_lease_that_no_sign_of_life_can_keep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        run(tmp_path, ITEMS, Place(), [], lease=0.5)
