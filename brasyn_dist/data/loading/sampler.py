"""Which slices form global batch k, and all that is random about it: pure functions of (seed, k, position in the batch).

    position p = k * G + i --> epoch p // N, slot p % N --> sample = permutation(seed, epoch)[slot]      SampleOrder
    (seed, k, position)    --> first target, available modalities, what the cycle pass masks             targets_and_masks
    (G, rank, world)       --> the rows of the global batch that a rank takes                            rank_rows

G is the global batch size, N the number of samples. Nothing here knows of ranks (but rank_rows), workers or restarts, and
nothing is consumed: the position of a run is one integer. Epochs join inside a batch; each sample comes once an epoch.

Random numbers are the raw output of Philox4x64-10 (Salmon et al., 2011), a function of key and counter. NumPy guarantees
that stream; it does not guarantee what its `Generator` methods make of it, so none of them is used.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from brasyn_dist.brats import MODALITIES
from brasyn_dist.errors import ConfigError

M = len(MODALITIES)
Availability = Literal["three", "any"]


class Purpose(IntEnum):
    """Keeps streams apart that share seed and counter. Values are part of every run's meaning: never change one."""

    SAMPLES = 1
    SHARDS = 2
    FIRST_TARGETS = 3
    MASKS = 4
    WRITING = 5
    AUGMENTATION = 6


def random_words(seed: int, purpose: Purpose, count: int, a: int = 0, b: int = 0) -> np.ndarray:
    """(count, 4) uint64: row i is Philox's block at counter (i + 1, a, b, 0) under the key (seed, purpose)."""
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    counter = np.array([0, a, b, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * count).reshape(count, 4)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Random words as int64 in [0, bound), uniform to within bound / 2^32."""
    return ((words >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, purpose: Purpose, epoch: int, count: int) -> np.ndarray:
    """(count,) int64: a random order of 0..count-1."""
    words = random_words(seed, purpose, -(-count // 4), epoch).reshape(-1)[:count]
    return np.argsort(words, kind="stable")


class SampleOrder:
    """The order of samples: `batch(k)` are the sample numbers of global batch k, for any k, at any time.

    `shard_of_sample` is (N,), the shard that holds each sample (Selection.shard). With `block_shards` shards are put in
    random order each epoch, and samples are mixed only among so many shards at a time.
    """

    def __init__(
        self, seed: int, shard_of_sample: np.ndarray, global_batch_size: int, block_shards: int | None = None
    ) -> None:
        if len(shard_of_sample) == 0 or global_batch_size < 1:
            raise ConfigError(
                f"no order of {len(shard_of_sample)} samples in batches of {global_batch_size}: give at least one of each"
            )
        self.samples = len(shard_of_sample)
        self.global_batch_size = global_batch_size
        self._seed = seed
        self._block_shards = block_shards
        self._shard_numbers, self._shard = np.unique(shard_of_sample, return_inverse=True)
        # A batch that crosses an epoch's end needs two; with prefetching both sides stay in use for a while.
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def batch(self, k: int) -> np.ndarray:
        """(G,) int64 sample numbers of global batch k >= 0. Thread-safe; microseconds, but for an epoch's first batch."""
        positions = np.arange(k * self.global_batch_size, (k + 1) * self.global_batch_size)
        epochs, slots = np.divmod(positions, self.samples)
        samples = np.empty(self.global_batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            samples[here] = self._epoch_order(epoch)[slots[here]]
        return samples

    def epoch(self, k: int) -> float:
        """Epochs that are finished when batch k starts."""
        return k * self.global_batch_size / self.samples

    def batches(self, epochs: float) -> int:
        """Number of global batches that so many epochs take, rounded up."""
        # Ten decimals: 0.1 epochs of 640 samples are 64 of them, not 64.00000000000001.
        return int(np.ceil(round(epochs * self.samples / self.global_batch_size, 10)))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._recent:
                self._recent[epoch] = self._permute(epoch)
                if len(self._recent) > 2:
                    self._recent.popitem(last=False)
            self._recent.move_to_end(epoch)
            return self._recent[epoch]

    def _permute(self, epoch: int) -> np.ndarray:
        samples = permutation(self._seed, Purpose.SAMPLES, epoch, self.samples)
        if self._block_shards is None:
            return samples
        shards = permutation(self._seed, Purpose.SHARDS, epoch, len(self._shard_numbers))
        block_of_shard = np.empty_like(shards)
        block_of_shard[shards] = np.arange(len(shards)) // self._block_shards
        return samples[np.argsort(block_of_shard[self._shard[samples]], kind="stable")]


@dataclass(frozen=True)
class BatchMasks:
    """What is asked for and what is given, for each row of a global batch (B) or of a part of it.

    `target` (B,) int64, the modality to synthesise; `available` (B, 4) bool, the real modalities given for it. In the
    cycle pass the synthesised slice takes its place: `cycle_available` (B, 4) is `available` with the target and
    without `cycle_target` (B,), one of the available ones, which is asked for.
    """

    target: np.ndarray
    available: np.ndarray
    cycle_target: np.ndarray
    cycle_available: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: slice | np.ndarray) -> "BatchMasks":
        return BatchMasks(
            self.target[rows], self.available[rows], self.cycle_target[rows], self.cycle_available[rows]
        )


def targets_and_masks(
    seed: int, k: int, update: int, global_batch_size: int, availability: Availability = "three"
) -> BatchMasks:
    """Targets and masks of update 0..3 of global batch k: every row starts somewhere and meets all four targets.

    `three`: all modalities but the target are given. `any`: one of them with probability 1/2, two or three with 1/4
    each, all subsets of a size alike (method, section 6). The cycle pass asks for one of the given ones, uniformly.
    """
    target = (first_targets(seed, k, global_batch_size) + update) % M
    words = random_words(seed, Purpose.MASKS, global_batch_size, k, update)
    available = _available(target, words[:, 0], words[:, 1], availability)
    cycle_target = _choose(available, words[:, 2])
    rows = np.arange(global_batch_size)
    cycle_available = available.copy()
    cycle_available[rows, target] = True
    cycle_available[rows, cycle_target] = False
    return BatchMasks(target, available, cycle_target, cycle_available)


def first_targets(seed: int, k: int, global_batch_size: int) -> np.ndarray:
    """(G,) int64: each block of four rows gets the four modalities in random order.

    So the targets of every update are balanced in each whole block, and real slices can be encoded in full batches.
    """
    words = random_words(seed, Purpose.FIRST_TARGETS, -(-global_batch_size // M), k)
    return np.argsort(words, axis=1, kind="stable").reshape(-1)[:global_batch_size]


def _available(
    target: np.ndarray, size_words: np.ndarray, subset_words: np.ndarray, availability: Availability
) -> np.ndarray:
    """(B, 4) bool, never the target."""
    others = np.arange(M) != target[:, None]
    if availability == "three":
        return others
    size = np.array([1, 1, 2, 3])[below(size_words, 4)]
    chosen = np.zeros_like(others)
    chosen[np.arange(len(target)), _choose(others, subset_words)] = True
    # One of three is `chosen`; two of three are the others without it.
    return np.select([size[:, None] == 1, size[:, None] == 2], [chosen, others & ~chosen], others)


def _choose(allowed: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(B,) column of one of each row's allowed entries (B, 4), uniformly."""
    ordinal = below(words, allowed.sum(axis=1))
    return np.argmax(allowed & (np.cumsum(allowed, axis=1) == ordinal[:, None] + 1), axis=1)


def rank_rows(global_batch_size: int, rank: int, world: int, shares: Sequence[float] = ()) -> slice:
    """Rows of the global batch that `rank` of `world` takes: contiguous, at least one.

    Without `shares` numbers differ by at most one, and whenever 4 * world divides the global batch they are whole blocks
    of four, with balanced targets. With `shares` (world,), positive, in any unit, they are as the shares, rounded.
    """
    if world > global_batch_size:
        raise ConfigError(
            f"{world} processes cannot share a global batch of {global_batch_size}: raise training.global_batch_size "
            "or start fewer processes"
        )
    if shares:
        if len(shares) != world:
            raise ConfigError(
                f"runtime.rank_shares has {len(shares)} shares for {world} processes: give one for each"
            )
        bounds = _bounds(global_batch_size, shares)
        return slice(bounds[rank], bounds[rank + 1])
    return slice(rank * global_batch_size // world, (rank + 1) * global_batch_size // world)


def _bounds(rows: int, shares: Sequence[float]) -> list[int]:
    """Where the parts of `rows` begin and end (one more than there are shares); none is empty."""
    total, bounds = sum(shares), [0]
    for number in range(1, len(shares)):
        wanted = round(rows * sum(shares[:number]) / total)
        bounds.append(min(max(wanted, bounds[-1] + 1), rows - (len(shares) - number)))
    return [*bounds, rows]
