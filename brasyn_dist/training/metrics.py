"""Metrics without waiting for the device: sums of terms stay there until the next flush.

A value that is not finite ends the run at the next flush, with the first bad step and its terms. A flush
precedes every save, so no checkpoint contains such a state.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.errors import BrasynError

NORM_SUFFIX = "_norm"


class NonFiniteError(BrasynError):
    """A loss term or gradient is NaN or infinite."""


class MetricBuffer:
    """Collects updates; `flush` turns them into lines of metrics, equal on all ranks.

    Args:
        group: The ranks.
        samples: Synthetic slices of one update over all ranks; sums are divided by it.
        keys: Sample keys of this rank in the update to a step.
        overflow_is_normal: Accept infinite gradient norms. Under fp16 they only reduce the loss scale.
    """

    def __init__(
        self, group: ProcessGroup, samples: int, keys: Callable[[int], list[str]], overflow_is_normal: bool
    ) -> None:
        self._group, self._samples, self._keys = group, samples, keys
        self._overflow_is_normal = overflow_is_normal
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def add(self, facts: Mapping[str, Any], sums: Mapping[str, Tensor]) -> None:
        """Add one update.

        `facts` (with `step`) are copied into its line, `sums` are this rank's device values.
        """
        self._pending.append((dict(facts), dict(sums)))

    def flush(self) -> list[dict[str, Any]]:
        """Lines since the last flush.

        Raises:
            NonFiniteError: Any rank has a bad value. It is raised on every rank.
        """
        if not self._pending:
            return []
        names = list(self._pending[0][1])
        local = torch.stack([torch.stack([s[n].double() for n in names]) for _, s in self._pending]).cpu()
        total = self._group.sum(local)
        self._check(names, local, total)
        # Norms are equal on all ranks; terms are sums over samples.
        counts = [self._group.world if n.endswith(NORM_SUFFIX) else self._samples for n in names]
        lines = []
        for (facts, _), values in zip(self._pending, total):
            means = {n: float(v) / count for n, v, count in zip(names, values, counts)}
            lines.append({**facts, **{k: v if math.isfinite(v) else None for k, v in means.items()}})
        self._pending = []
        return lines

    def _check(self, names: list[str], local: Tensor, total: Tensor) -> None:
        checked = [not (n.endswith(NORM_SUFFIX) and self._overflow_is_normal) for n in names]
        bad = ~torch.isfinite(total) & torch.tensor(checked)
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        step = self._pending[row][0]["step"]
        terms = [n for n, b in zip(names, bad[row]) if b]
        mine = self._keys(step) if not torch.isfinite(local[row]).all() else []
        keys = [k for part in self._group.gather(mine) for k in part]
        raise NonFiniteError(
            f"step {step}: {', '.join(terms)} is not finite. Slices in that update on the ranks concerned: "
            f"{', '.join(keys)}. Checkpoints before this step are intact: the same command continues from "
            "the newest. Look at these slices, or lower optimizer.base_rate, or use runtime.precision=bf16 "
            "instead of fp16"
        )
