"""The dry run's counts against known sizes, operations against arithmetic, memory against that of a real process."""

import os
import subprocess
import sys

import pytest

from brasyn_dist.config import SegmenterRunConfig, load_config
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.training.cost_model import GIB, cost_report, count_update, measure
from tests.distributed.launch import REPOSITORY
from tests.small import small_shard_set
from tests.training.small import small_config

PUBLISHED = ("generator.decoder=published",)
TINY = ("generator.image_size=24", "discriminator.image_size=24", "generator.channel_multipliers=[1,2]")


@pytest.mark.slow
def test_full_width_has_the_published_size_and_cost():
    """Method, section 3: 80,039,041 parameters and 134 GFLOP a slice and pass; the backward costs twice the forward."""
    plain = count_update(load_config(None, ["training.fast_passes=false", *PUBLISHED]), 4)
    fast = count_update(load_config(None, PUBLISHED), 4)
    assert plain.generator_parameters == 80_039_041 and plain.discriminator_parameters == 4_485_952
    # The discriminator's layers, from the largest to the smallest map; it runs on three slices, and back through all.
    discriminator = sum(
        2 * 16 * inputs * outputs * side**2
        for inputs, outputs, side in (
            (1, 64, 120),
            (64, 128, 60),
            (128, 256, 30),
            (256, 512, 29),
            (512, 1, 28),
        )
    )
    assert plain.operations / 4 == pytest.approx(2 * 3 * 134e9 + 8 * discriminator, rel=0.03)
    # Four of eight modality encodings of 68.5 / 4 GFLOP each are saved, forward and backward.
    assert (plain.operations - fast.operations) / 4 == pytest.approx(4 * 3 * 68.5e9 / 4, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("training.fast_passes=false",),
        ("runtime.recompute=activations",),
        ("training.updates_per_batch=1",),
    ],
    ids=["fast", "plain", "recomputing", "one update"],
)
def test_predicted_memory_is_that_of_a_real_process(more):
    """Peak resident memory of real updates at a quarter of the width and 240 x 240, within 15 %."""
    slices = 1 if more == ("training.updates_per_batch=1",) else 4
    options = (
        "generator.image_size=240", "discriminator.image_size=240", "generator.base_channels=16",
        "discriminator.base_channels=16", f"training.global_batch_size={slices}", *more,
    )  # fmt: skip
    # Freed blocks go back to the system at once, so that what is resident is what is in use.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.training.memory_worker", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
    assert measure(small_config(*options)).peak_bytes(slices) == pytest.approx(int(done.stdout), rel=0.15)


def test_batches_that_fit_follow_from_two_numbers():
    cost = measure(small_config(*TINY))
    assert cost.largest_batch(cost.peak_bytes(7) + 1) == 7
    assert cost.largest_batch(cost.peak_bytes(7) - 1) == 6
    assert cost.largest_batch(0) == 0
    # Another batch size, counted by itself. So small a network's weights matter, and its peak is not quite linear.
    counted = count_update(small_config(*TINY), 8).peak
    moments_and_average = 12 * cost.generator_parameters + 8 * cost.discriminator_parameters
    assert cost.peak_bytes(8) == pytest.approx(counted + moments_and_average, rel=0.05)


@pytest.mark.slow
def test_recomputation_halves_the_memory_of_a_slice_at_full_width():
    kept, recomputed = (
        measure(load_config(None, [f"runtime.recompute={what}", *PUBLISHED]))
        for what in ("nothing", "activations")
    )
    assert recomputed.operations_per_slice == kept.operations_per_slice
    assert recomputed.bytes_per_slice < 0.6 * kept.bytes_per_slice
    assert 0.9 * GIB < kept.bytes_per_slice < 1.2 * GIB


def test_one_update_a_batch_costs_what_it_saves():
    four = count_update(small_config(*TINY), 4)
    one = count_update(small_config(*TINY, "training.updates_per_batch=1"), 4)
    # All four targets in one loss encode 8 slices instead of 4 x 4.
    assert 2 * four.operations < one.operations < 4 * four.operations


def test_report_says_what_fits(tmp_path):
    text = cost_report(small_config(*TINY, f"data.shards={small_shard_set(tmp_path / 'shards')}"))
    assert "fits 48 GB" in text and "slices at a time on each GPU" in text and "GFLOP per slice" in text


def test_the_report_of_a_segmenter_counts_its_update(tmp_path):
    options = ("segmenter.image_size=48", "segmenter.widths=[8,16]", "data.min_tumour_fraction=0.001")
    shards = f"data.shards={small_shard_set(tmp_path / 'shards')}"
    config = load_config(None, [*options, shards], SegmenterRunConfig)
    text = cost_report(config)
    parameters = sum(p.numel() for p in Segmenter(config.segmenter).parameters())
    assert f"segmenter       {parameters:,} parameters" in text and "at least 0.1% tumour" in text
    assert "fits 48 GB" in text and "GFLOP per slice" in text
