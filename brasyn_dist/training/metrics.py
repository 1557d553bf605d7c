"""Metrics without waiting for the device: term sums stay there until the next flush, then ranks add them up.

A value that is not finite stops the run at the flush that sees it, naming the first bad step and what went wrong in it;
a flush precedes every save, so that no checkpoint is ever made of such a state.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import BrasynError

NORM_SUFFIX = "_norm"


class NonFiniteError(BrasynError):
    """A loss term or gradient became NaN or infinite."""


class Monitor:
    """Collects one update after another; `flush` turns them into lines of metrics, equal on all ranks."""

    def __init__(
        self,
        distributed: Distributed,
        samples: int,
        keys: Callable[[int], list[str]],
        overflow_is_normal: bool,
    ) -> None:
        """`samples`: synthetic slices of one update over all ranks, by which sums are divided.

        `keys` gives the sample keys that this rank had in the update to a step. Under fp16, an infinite gradient norm
        only makes the loss scale shrink: `overflow_is_normal`.
        """
        self._distributed = distributed
        self._samples = samples
        self._keys = keys
        self._overflow_is_normal = overflow_is_normal
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def add(self, facts: Mapping[str, Any], sums: Mapping[str, Tensor]) -> None:
        """Note one update: `facts` (with `step`) go into its line as they are, `sums` are this rank's device values."""
        self._pending.append((dict(facts), dict(sums)))

    def flush(self) -> list[dict[str, Any]]:
        """Lines since the last flush. Raises NonFiniteError on every rank if any rank has a bad value."""
        if not self._pending:
            return []
        names = list(self._pending[0][1])
        local = torch.stack([torch.stack([s[n].double() for n in names]) for _, s in self._pending]).cpu()
        steps = [facts["step"] for facts, _ in self._pending]
        total = self._distributed.sum(local)
        self._check(names, steps, local, total)
        lines = []
        for (facts, _), values in zip(self._pending, total):
            means = {n: self._mean(n, float(v)) for n, v in zip(names, values)}
            lines.append({**facts, **{k: v if math.isfinite(v) else None for k, v in means.items()}})
        self._pending = []
        return lines

    def _mean(self, name: str, total: float) -> float:
        """Norms are equal on all ranks already; terms are sums over samples."""
        return total / (self._distributed.world if name.endswith(NORM_SUFFIX) else self._samples)

    def _check(self, names: list[str], steps: list[int], local: Tensor, total: Tensor) -> None:
        checked = [not (n.endswith(NORM_SUFFIX) and self._overflow_is_normal) for n in names]
        bad = ~torch.isfinite(total) & torch.tensor(checked)
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        step = steps[row]
        terms = [n for n, b in zip(names, bad[row]) if b]
        mine = self._keys(step) if not torch.isfinite(local[row]).all() else []
        keys = [k for part in self._distributed.gather(mine) for k in part]
        raise NonFiniteError(
            f"step {step}: {', '.join(terms)} is not finite. Slices in that update on the ranks concerned: "
            f"{', '.join(keys)}. Checkpoints before this step are intact: the same command continues from the newest. "
            "Look at these slices, or lower optimizer.base_rate, or use runtime.precision=bf16 instead of fp16"
        )
