"""Sampler: slices, targets and masks of global batch k, pure functions of (seed, k, position in the batch).

    position p = k * G + i --> epoch p // N, slot p % N --> permutation(seed, epoch)[slot]   SampleOrder
    (seed, k, position)    --> first target, available modalities, cycle target              targets_and_masks
    (G, rank, world)       --> rows of the global batch for a rank                           rank_rows

G is the global batch size, N the number of samples. Except for `rank_rows`, nothing depends on ranks, workers
or restarts, and there is no state: the position of a run is one integer. A batch may contain the end of one
epoch and the beginning of the next; each sample occurs once in an epoch.

Random numbers are the raw output of Philox4x64-10 (Salmon et al., 2011, doi:10.1145/2063384.2063405), a
function of key and counter. NumPy guarantees that stream, but not the results of its `Generator` methods, so
none is used.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from typing import Literal

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.errors import ConfigError

Availability = Literal["three", "any", "mixed"]


class Purpose(IntEnum):
    """Separates random streams with equal seed and counter.

    The values determine every run: never change one.
    """

    SAMPLES = 1
    SHARDS = 2
    FIRST_TARGETS = 3
    MASKS = 4
    WRITING = 5
    AUGMENTATION = 6
    CROPS = 7
    PATCHES = 8


def random_words(seed: int, purpose: Purpose, count: int, a: int = 0, b: int = 0) -> np.ndarray:
    """(count, 4) uint64: row i is the Philox block at counter (i + 1, a, b, 0) with key (seed, purpose)."""
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
    """Order of the samples. `batch(k)` are the sample numbers of global batch k, for any k.

    Args:
        seed: Seed of the run.
        shard_of_sample: (N,) number of the shard of each sample (Selection.shard).
        global_batch_size: G.
        block_shards: The shards are put in random order in each epoch, and samples are mixed only among this
            many shards; None: among all.

    Raises:
        ConfigError: There are no samples, or the batch is empty.
    """

    def __init__(
        self, seed: int, shard_of_sample: np.ndarray, global_batch_size: int, block_shards: int | None = None
    ) -> None:
        if len(shard_of_sample) == 0 or global_batch_size < 1:
            raise ConfigError(
                f"no order of {len(shard_of_sample)} samples in batches of {global_batch_size}: "
                "give at least one of each"
            )
        self.samples = len(shard_of_sample)
        self.global_batch_size = global_batch_size
        self._seed = seed
        self._block_shards = block_shards
        self._shard_numbers, self._shard = np.unique(shard_of_sample, return_inverse=True)
        # A batch that contains the end of an epoch needs two permutations.
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def batch(self, k: int) -> np.ndarray:
        """(G,) int64 sample numbers of global batch k >= 0.

        Thread-safe. Only the first batch of an epoch is slow.
        """
        positions = np.arange(k * self.global_batch_size, (k + 1) * self.global_batch_size)
        epochs, slots = np.divmod(positions, self.samples)
        samples = np.empty(self.global_batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            samples[here] = self._epoch_order(epoch)[slots[here]]
        return samples

    def epoch(self, k: int) -> float:
        """Epochs that are complete when batch k starts."""
        return k * self.global_batch_size / self.samples

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
    """Targets and inputs of the rows of a global batch (B), or of a part of it.

    In the cycle pass the synthetic slice is an input, and one of the real inputs is the target.
    """

    target: np.ndarray
    """(B,) int64: modality to synthesise."""
    available: np.ndarray
    """(B, M) bool: real modalities that are inputs."""
    cycle_target: np.ndarray
    """(B,) int64: target of the cycle pass, one of the available modalities."""
    cycle_available: np.ndarray
    """(B, M) bool: inputs of the cycle pass: `available`, with the target and without the cycle target."""

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: slice | np.ndarray) -> "BatchMasks":
        return BatchMasks(
            self.target[rows], self.available[rows], self.cycle_target[rows], self.cycle_available[rows]
        )


def targets_and_masks(
    seed: int,
    k: int,
    update: int,
    global_batch_size: int,
    availability: Availability = "three",
    modalities: int = len(BRATS),
) -> BatchMasks:
    """Targets and masks of one update of global batch k.

    Over the M updates of a batch each row has every modality as its target once. The target of the cycle pass
    is one of the available modalities, uniformly.

    Args:
        seed: Seed of the run.
        k: Number of the global batch.
        update: 0 to M - 1.
        global_batch_size: Rows of a global batch.
        availability: `three`: all modalities but the target are available. `any`: one with probability 1/2,
            otherwise 2 to M - 1, uniformly; all subsets of a size have equal probability
            (docs/explanation/method.md, section 6).
        modalities: M, at least 2.
    """
    target = (first_targets(seed, k, global_batch_size, modalities) + update) % modalities
    words = random_words(seed, Purpose.MASKS, global_batch_size, k, update)
    available = _available(target, words[:, 0], words[:, 1], availability, modalities)
    cycle_target = _choose(available, words[:, 2])
    rows = np.arange(global_batch_size)
    cycle_available = available.copy()
    cycle_available[rows, target] = True
    cycle_available[rows, cycle_target] = False
    return BatchMasks(target, available, cycle_target, cycle_available)


def first_targets(seed: int, k: int, global_batch_size: int, modalities: int = len(BRATS)) -> np.ndarray:
    """(G,) int64: each block of M rows has all M modalities in random order.

    The targets of every update are therefore balanced in each whole block, and real slices can be encoded in
    full batches.
    """
    blocks, of_block = -(-global_batch_size // modalities), -(-modalities // 4)
    words = random_words(seed, Purpose.FIRST_TARGETS, blocks * of_block, k).reshape(blocks, 4 * of_block)
    return np.argsort(words[:, :modalities], axis=1, kind="stable").reshape(-1)[:global_batch_size]


def _available(
    target: np.ndarray,
    size_words: np.ndarray,
    subset_words: np.ndarray,
    availability: Availability,
    modalities: int,
) -> np.ndarray:
    """(B, M) bool, never the target."""
    others = np.arange(modalities) != target[:, None]
    if availability == "three":
        return others
    if availability == "any":
        # One half of the entries is 1; the other half has each of 2 .. M - 1 once.
        sizes = np.array([1] * max(1, modalities - 2) + list(range(2, modalities)))
    else:
        sizes = np.array([*range(1, modalities - 1), *[modalities - 1] * max(1, modalities - 2)])
    size = sizes[below(size_words, len(sizes))]
    available = np.zeros_like(others)
    for count in range(1, modalities):
        subsets = _subsets(modalities - 1, count)
        rows = np.flatnonzero(size == count)
        part = np.zeros((len(rows), modalities), dtype=bool)
        part[others[rows]] = subsets[below(subset_words[rows], len(subsets))].ravel()
        available[rows] = part
    return available


@functools.cache
def _subsets(elements: int, size: int) -> np.ndarray:
    """(subsets, elements) bool: subsets of one size, ordered by what they have (1) or lack (others)."""
    lacking = size > 1
    listed = list(combinations(range(elements), elements - size if lacking else size))
    table = np.full((len(listed), elements), lacking)
    for row, chosen in enumerate(listed):
        table[row, list(chosen)] = not lacking
    return table


def _choose(allowed: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(B,) column of one of the allowed entries (B, M) of each row, uniformly."""
    ordinal = below(words, allowed.sum(axis=1))
    return np.argmax(allowed & (np.cumsum(allowed, axis=1) == ordinal[:, None] + 1), axis=1)


def rank_rows(global_batch_size: int, rank: int, world: int, shares: Sequence[float] = ()) -> slice:
    """Rows of the global batch for `rank` of `world`: contiguous, at least one.

    Args:
        global_batch_size: G.
        rank: 0 to world - 1.
        world: Number of processes.
        shares: Relative numbers of rows of the ranks. Empty: the numbers differ by at most one, and if M *
            world divides G (M modalities), they are whole blocks of M with balanced targets.

    Raises:
        ConfigError: There are more processes than rows, or the number of shares is wrong.
    """
    if world > global_batch_size:
        raise ConfigError(
            f"{world} processes cannot share a global batch of {global_batch_size}: raise "
            "training.global_batch_size "
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
    """Bounds of the parts of `rows`, one more than there are shares; no part is empty."""
    total, bounds = sum(shares), [0]
    for number in range(1, len(shares)):
        wanted = round(rows * sum(shares[:number]) / total)
        bounds.append(min(max(wanted, bounds[-1] + 1), rows - (len(shares) - number)))
    return [*bounds, rows]
