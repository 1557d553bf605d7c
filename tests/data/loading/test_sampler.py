"""Order, targets and masks: pure functions, exact, balanced, with the distributions that the method asks
for."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from brasyn_dist.data.loading.sampler import (
    BatchMasks,
    Purpose,
    SampleOrder,
    first_targets,
    random_words,
    rank_rows,
    targets_and_masks,
)
from brasyn_dist.errors import ConfigError

WORLDS = (1, 2, 3, 4, 6, 8)


def philox4x64(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x64-10 as Salmon et al. (2011) define it, in plain integers."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(right >> 64) ^ c[1] ^ k[0], right & mask, (left >> 64) ^ c[3] ^ k[1], left & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return tuple(c)


def test_the_reference_philox_gives_the_authors_known_answer() -> None:
    expected = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)
    assert philox4x64((0, 0, 0, 0), (0, 0)) == expected


@pytest.mark.parametrize(("seed", "a", "b"), [(0, 0, 0), (123, 45, 3), (-1, 2**40, 2), (2**70 + 5, 1, 1)])
def test_random_words_are_philox_of_key_and_counter(seed: int, a: int, b: int) -> None:
    words = random_words(seed, Purpose.MASKS, 5, a, b)
    for i in range(5):
        assert tuple(words[i].tolist()) == philox4x64((i + 1, a, b, 0), (seed % 2**64, Purpose.MASKS))


def test_the_meaning_of_a_seed_does_not_change() -> None:
    """Frozen values: a change of them would change the batches of every unfinished run after its resume."""
    order = SampleOrder(7, np.arange(10) // 3, 4)
    assert [order.batch(k).tolist() for k in range(3)] == GOLDEN["batches"]
    blocked = SampleOrder(7, np.arange(10) // 3, 4, block_shards=2)
    assert [blocked.batch(k).tolist() for k in range(3)] == GOLDEN["blocked"]
    masks = targets_and_masks(7, 5, 1, 6, "any")
    assert masks.target.tolist() == GOLDEN["target"]
    assert masks.cycle_target.tolist() == GOLDEN["cycle_target"]
    assert masks.available.astype(int).tolist() == GOLDEN["available"]


GOLDEN: dict[str, list] = {
    "batches": [[3, 9, 1, 6], [2, 5, 4, 8], [0, 7, 2, 4]],
    "blocked": [[3, 1, 2, 5], [4, 0, 9, 6], [8, 7, 2, 0]],
    "target": [2, 3, 0, 1, 2, 1],
    "cycle_target": [1, 2, 2, 0, 3, 2],
    "available": [[0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0]],
}


@pytest.mark.parametrize("block_shards", [None, 1, 2, 100])
@pytest.mark.parametrize(
    ("samples", "batch"), [(10, 4), (64, 64), (7, 16), (1, 3), (100, 7), (33, 32), (5, 1)]
)
def test_every_sample_comes_exactly_once_an_epoch(samples: int, batch: int, block_shards: int | None) -> None:
    order = SampleOrder(3, np.arange(samples) // 4, batch, block_shards)
    epochs = 5
    sequence = np.concatenate([order.batch(k) for k in range(-(-epochs * samples // batch))])
    for epoch in range(epochs):
        assert sorted(sequence[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_an_epoch_is_the_sorting_order_of_philox_words() -> None:
    order = SampleOrder(9, np.zeros(30, int), 10)
    for epoch in (0, 4):
        words = [w for i in range(8) for w in philox4x64((i + 1, epoch, 0, 0), (9, Purpose.SAMPLES))]
        expected = sorted(range(30), key=words.__getitem__)
        found = np.concatenate([order.batch(k) for k in range(3 * epoch, 3 * epoch + 3)])
        assert found.tolist() == expected


def test_any_batch_can_be_asked_for_at_any_time() -> None:
    shard = np.arange(50) // 5
    forward = [SampleOrder(3, shard, 8).batch(k) for k in range(40)]
    order = SampleOrder(3, shard, 8)
    for k in [39, 0, 17, 17, 3, 38]:
        np.testing.assert_array_equal(order.batch(k), forward[k])


def test_threads_may_ask_at_once() -> None:
    shard = np.zeros(1000, int)
    forward = [SampleOrder(3, shard, 64).batch(k) for k in range(60)]
    order = SampleOrder(3, shard, 64)
    with ThreadPoolExecutor(8) as pool:
        for k, batch in enumerate(pool.map(order.batch, range(60))):
            np.testing.assert_array_equal(batch, forward[k])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [SampleOrder(seed, np.zeros(500, int), 500).batch(k) for seed in (0, 1, 2) for k in (0, 1, 2)]
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_mixing_is_uniform() -> None:
    """Where sample 0..19 come, over 2,000 epochs: a chi-square of 19 x 19 degrees of freedom "
    "(mean 361, deviation 27)."""
    order = SampleOrder(11, np.zeros(20, int), 20)
    counts = np.zeros((20, 20))
    for k in range(2000):
        counts[np.arange(20), order.batch(k)] += 1
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert 361 - 5 * 27 < chi_square < 361 + 5 * 27


@pytest.mark.parametrize("block_shards", [1, 2, 3])
def test_blocks_read_few_shards_at_a_time(block_shards: int) -> None:
    shard = np.repeat([0, 1, 3, 4, 7, 8], 50)  # a selection need not touch every shard
    order = SampleOrder(5, shard, 300, block_shards)
    epochs_seen = set()
    for epoch in range(6):
        sequence = shard[order.batch(epoch)].reshape(-1, 50 * block_shards)
        for block in sequence:
            assert len(set(block.tolist())) == block_shards
            if block_shards > 1:  # mixed, not one shard after the other
                assert len(list(itertools.groupby(block.tolist()))) > 10
        epochs_seen.add(tuple(frozenset(block.tolist()) for block in sequence))
    assert len(epochs_seen) > 3  # shards come in another order, with other companions


def test_epochs_and_batches_convert() -> None:
    order = SampleOrder(0, np.zeros(640, int), 64)
    assert order.epoch(0) == 0 and order.epoch(15) == 1.5


@pytest.mark.parametrize(("samples", "batch"), [(0, 4), (4, 0)])
def test_nothing_cannot_be_ordered(samples: int, batch: int) -> None:
    with pytest.raises(ConfigError, match="no order"):
        SampleOrder(0, np.zeros(samples, int), batch)


def all_masks(availability: str, batches: int = 300) -> list[BatchMasks]:
    return [targets_and_masks(1, k, u, 64, availability) for k in range(batches) for u in range(4)]


@pytest.mark.parametrize("availability", ["three", "any"])
def test_masks_mean_what_they_say(availability: str) -> None:
    for masks in all_masks(availability, batches=50):
        rows = np.arange(len(masks))
        count = masks.available.sum(1)
        assert not masks.available[rows, masks.target].any()
        assert masks.available[rows, masks.cycle_target].all()
        assert masks.cycle_available[rows, masks.target].all()
        assert not masks.cycle_available[rows, masks.cycle_target].any()
        assert (count == 3).all() if availability == "three" else ((count >= 1) & (count <= 3)).all()
        np.testing.assert_array_equal(masks.cycle_available.sum(1), count)
        unchanged = np.ones((len(masks), 4), bool)
        unchanged[rows, masks.target] = unchanged[rows, masks.cycle_target] = False
        assert (masks.available == masks.cycle_available)[unchanged].all()


def within(observed: np.ndarray, probability: np.ndarray) -> None:
    """Counts agree with probabilities within 4.5 standard deviations each."""
    total = observed.sum()
    deviation = np.sqrt(total * probability * (1 - probability))
    assert (np.abs(observed - total * probability) < 4.5 * deviation).all(), (observed / total, probability)


def test_availability_any_has_the_distribution_of_the_method() -> None:
    masks = all_masks("any")
    target = np.concatenate([m.target for m in masks])
    available = np.concatenate([m.available for m in masks])
    within(np.bincount(available.sum(1), minlength=4)[1:], np.array([1 / 2, 1 / 4, 1 / 4]))
    for t in range(4):
        patterns = available[target == t] @ np.array([1, 2, 4, 8])
        others = [m for m in range(4) if m != t]
        for size, share in ((1, 1 / 2), (2, 1 / 4)):
            codes = [sum(2**m for m in subset) for subset in itertools.combinations(others, size)]
            counts = np.array([(patterns == code).sum() for code in codes])
            within(np.append(counts, len(patterns) - counts.sum()), np.array([*[share / 3] * 3, 1 - share]))


@pytest.mark.parametrize("availability", ["three", "any"])
def test_the_cycle_pass_asks_for_each_available_modality_alike(availability: str) -> None:
    masks = all_masks(availability)
    available = np.concatenate([m.available for m in masks])
    cycle_target = np.concatenate([m.cycle_target for m in masks])
    for pattern in np.unique(available, axis=0):
        asked = cycle_target[(available == pattern).all(1)]
        counts = np.bincount(asked, minlength=4)
        assert not counts[~pattern].any()
        if pattern.sum() > 1:
            within(counts[pattern], np.full(pattern.sum(), 1 / pattern.sum()))


def test_targets_are_balanced_in_every_block_of_four_and_uniform_in_each_row() -> None:
    firsts = np.stack([first_targets(2, k, 16) for k in range(3000)])
    assert (np.sort(firsts.reshape(-1, 4), axis=1) == np.arange(4)).all()
    for row in range(16):
        within(np.bincount(firsts[:, row], minlength=4), np.full(4, 1 / 4))
    orders = np.bincount(firsts.reshape(-1, 4) @ np.array([64, 16, 4, 1]))
    orders = orders[orders > 0]
    assert len(orders) == 24
    within(orders, np.full(24, 1 / 24))


@pytest.mark.parametrize("batch", [1, 2, 5, 8, 63])
def test_each_row_meets_all_four_targets(batch: int) -> None:
    targets = np.stack([targets_and_masks(4, 9, u, batch).target for u in range(4)])
    assert (np.sort(targets, axis=0) == np.arange(4)[:, None]).all()
    np.testing.assert_array_equal(targets[0], first_targets(4, 9, batch))


def test_masks_of_updates_batches_and_seeds_are_independent() -> None:
    def draw(seed: int, k: int, update: int) -> bytes:
        # The offset from the target, so that the turn of targets does not make them differ.
        masks = targets_and_masks(seed, k, update, 64, "any")
        return np.stack([np.roll(a, -t) for a, t in zip(masks.available, masks.target)]).tobytes()

    drawn = [draw(seed, k, u) for seed in (0, 1) for k in (0, 1, 2) for u in range(4)]
    assert len(set(drawn)) == len(drawn)


def test_a_row_depends_on_its_position_only_not_on_the_size_of_the_batch() -> None:
    small, large = targets_and_masks(6, 3, 2, 8, "any"), targets_and_masks(6, 3, 2, 64, "any")[slice(0, 8)]
    for name in ("target", "available", "cycle_target", "cycle_available"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("batch", [8, 9, 24, 30, 64, 96])
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, world: int) -> None:
    parts = [rank_rows(batch, rank, world) for rank in range(world)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(batch))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if batch % (4 * world) == 0:
        assert all(part.start % 4 == 0 for part in parts)


def test_more_ranks_than_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"9 processes .* global batch of 8.*training\.global_batch_size"):
        rank_rows(8, 0, 9)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("availability", ["three", "any"])
def test_masks_of_the_ranks_are_those_of_the_global_batch(world: int, availability: str) -> None:
    for k, update in itertools.product((0, 1, 77), range(4)):
        whole = targets_and_masks(0, k, update, 24, availability)
        parts = [
            targets_and_masks(0, k, update, 24, availability)[rank_rows(24, rank, world)]
            for rank in range(world)
        ]
        for name in ("target", "available", "cycle_target", "cycle_available"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
