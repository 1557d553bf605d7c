"""The rate and the average's decay against torch's own schedulers and hand-computed values."""

import math

import pytest
import torch

from brasyn_dist.config import AdamConfig, OptimizerConfig, TrainingConfig
from brasyn_dist.training.schedule import batches_per_run, ema_decay, rate_factor, scaled_rate, total_steps


def test_rate_factor_equals_torch_warmup_and_cosine():
    total, warmup = 60, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup),
        ],
        milestones=[warmup],
    )
    for step in range(total):
        assert rate_factor(step, total, AdamConfig(warmup_steps=warmup)) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        scheduler.step()
    assert rate_factor(total, total, AdamConfig(warmup_steps=warmup)) == pytest.approx(0.0, abs=1e-12)


def test_run_shorter_than_warmup_reaches_its_peak():
    assert [rate_factor(s, 4, AdamConfig()) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_polynomial_decay_equals_torch():
    config = AdamConfig(warmup_steps=0, decay="polynomial")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, 40, power=0.9)
    for step in range(40):
        assert rate_factor(step, 40, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_rate_scales_linearly_with_the_global_batch():
    assert scaled_rate(OptimizerConfig(base_rate=5e-4, reference_batch=64), 16) == 1.25e-4


def test_length_of_a_run():
    training = TrainingConfig(global_batch_size=64, epochs=2.0, updates_per_batch=4)
    assert batches_per_run(training, 1000) == math.ceil(2000 / 64)
    assert total_steps(training, 1000) == 32 * 4
    assert total_steps(TrainingConfig(max_steps=10, updates_per_batch=4), 1000) == 10
    assert batches_per_run(TrainingConfig(max_steps=10, updates_per_batch=4), 1000) == 3


def test_a_run_can_be_as_long_as_one_on_another_selection():
    """R8: as many slices as 10 epochs of axial GLI, 4.2 epochs of two views."""
    training = TrainingConfig(samples=1_588_670, epochs=3.0)
    assert batches_per_run(training, 377_733) == math.ceil(1_588_670 / 64)
    assert total_steps(TrainingConfig(samples=1_588_670, max_steps=8), 377_733) == 8


def test_average_forgets_the_start_quickly_and_settles():
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(10**6, 0.999) == 0.999
