"""Which part of each global batch a rank takes, where ranks are not equally fast.

    runtime.rank_shares                          given: for the whole run
    runtime.measure_rank_shares   equal shares --first batches, timed--> shares.json --> from batch k on, for ever

Who takes which rows changes neither the global batch nor its gradient (every term is divided by the global batch size), only
the order in which numbers are added. So that a resume adds in the same order, measured shares are on disk before they are
used, with the batch from which on they hold; a run with another number of processes measures its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brasyn_dist.common.files import write_json
from brasyn_dist.config import RuntimeConfig
from brasyn_dist.data.loading.sampler import rank_rows
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import CheckpointError

SHARES = "shares.json"
WARM_UP = 2
"""Batches of an execution that are not timed: caches fill, compilers work."""
TIMED = 4
"""Batches that are."""


class RankShares:
    """Rows of this rank in any global batch."""

    def __init__(
        self, runtime: RuntimeConfig, run_dir: Path, batch_size: int, distributed: Distributed
    ) -> None:
        self._fixed = runtime.rank_shares
        self._file = run_dir / SHARES
        self._batch_size = batch_size
        self._distributed = distributed
        self._measure = runtime.measure_rank_shares and distributed.world > 1
        known, error = {}, None
        if distributed.is_main and self._measure:
            try:
                known = read_shares(self._file)
            except CheckpointError as problem:
                error = problem
        self._record: dict[str, Any] | None = distributed.main_first(known.get(str(distributed.world)), error)
        self._batches = 0
        self._begun = 0.0

    def rows(self, batch: int) -> slice:
        """Rows of global batch `batch`: a pure function of it and of what has been recorded."""
        shares = self._fixed
        if self._record is not None and batch >= self._record["from_batch"]:
            shares = tuple(self._record["shares"])
        return rank_rows(self._batch_size, self._distributed.rank, self._distributed.world, shares)

    def batch_done(self, batch: int, computed_seconds: Callable[[], float]) -> bool:
        """Count a finished global batch; every rank calls this. Whether shares change after it (all ranks agree on that,
        also those whose own rows stay).

        `computed_seconds` gives the time that this rank has spent computing so far, without waits for others.
        """
        self._batches += 1
        if self._measure and self._record is None:
            if self._batches == WARM_UP:
                self._begun = computed_seconds()
            elif self._batches == WARM_UP + TIMED:
                rows = self.rows(batch)
                speed = (rows.stop - rows.start) / max(computed_seconds() - self._begun, 1e-9)
                self._decide(batch + 1, speed)
        return self._record is not None and self._record["from_batch"] == batch + 1

    def _decide(self, from_batch: int, speed: float) -> None:
        speeds = self._distributed.gather(speed)
        record = {"from_batch": from_batch, "shares": [round(s / sum(speeds), 3) for s in speeds]}
        error = None
        if self._distributed.is_main:
            try:
                write_json(self._file, {**read_shares(self._file), str(self._distributed.world): record})
            except OSError as problem:
                error = problem
        self._record = self._distributed.main_first(record, error)


def read_shares(path: Path) -> dict[str, Any]:
    """Recorded shares by number of processes; empty if there are none yet. Raises CheckpointError."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: unreadable ({error}); restore it, or delete it: shares are measured anew, and the run is then "
            "no longer bit for bit the same"
        ) from None
