"""Recorded shares: when they begin is agreed among ranks, also by those whose rows they do not change."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import CheckpointError
from brasyn_dist.training.rank_shares import SHARES, TIMED, WARM_UP, RankShares


def main_first(result: Any, error: Exception | None) -> Any:
    if error is not None:
        raise error
    return result


def rank_of_three(rank: int, speeds: tuple[float, ...] = ()) -> Distributed:
    """Stands for one of three ranks; `speeds` is what they gather, rank 0's object is what they broadcast."""
    return cast(
        Distributed,
        SimpleNamespace(
            rank=rank,
            world=3,
            is_main=rank == 0,
            gather=lambda value: list(speeds),
            main_first=main_first,
        ),
    )


MEASURE = RuntimeConfig(measure_rank_shares=True)


def test_recorded_shares_hold_from_their_batch_on(tmp_path: Path):
    (tmp_path / SHARES).write_text(json.dumps({"3": {"from_batch": 2, "shares": [3, 4, 2]}}))
    shares = RankShares(MEASURE, tmp_path, 9, rank_of_three(0))
    assert [shares.rows(k) for k in range(4)] == [slice(0, 3)] * 4  # rank 0's rows stay
    assert [shares.batch_done(k, lambda: 0.0) for k in range(4)] == [False, True, False, False]


def test_measured_shares_are_on_disk_before_they_are_used(tmp_path: Path):
    (tmp_path / SHARES).write_text(json.dumps({"2": {"from_batch": 6, "shares": [0.5, 0.5]}}))
    shares = RankShares(MEASURE, tmp_path, 9, rank_of_three(0, speeds=(3.0, 4.0, 2.0)))
    changes = [shares.batch_done(k, lambda: 1.0) for k in range(10, 10 + WARM_UP + TIMED)]
    assert changes == [False] * (WARM_UP + TIMED - 1) + [True]
    recorded: dict[str, Any] = json.loads((tmp_path / SHARES).read_text())
    assert recorded["3"] == {"from_batch": 16, "shares": [0.333, 0.444, 0.222]} and "2" in recorded
    assert shares.rows(15) == slice(0, 3) and shares.rows(16) == slice(0, 3)


def test_damaged_record_is_an_error_that_says_what_deleting_it_means(tmp_path: Path):
    (tmp_path / SHARES).write_text("{")
    with pytest.raises(CheckpointError, match="measured anew"):
        RankShares(MEASURE, tmp_path, 9, rank_of_three(0))
