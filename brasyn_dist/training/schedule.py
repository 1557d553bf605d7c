"""Learning rate and moving-average decay as functions of the optimiser step. They have no state."""

import math

from brasyn_dist.config import AdamConfig, LengthConfig

POLYNOMIAL_POWER = 0.9
"""As in nnU-Net; the published segmenter training has a polynomial decay without a stated power."""


def scaled_rate(optimizer: AdamConfig, global_batch_size: int) -> float:
    """Peak rate of the main network: the base rate, scaled linearly with the global batch.

    See docs/explanation/method.md, section 6.
    """
    return optimizer.base_rate * global_batch_size / optimizer.reference_batch


def rate_factor(step: int, total_steps: int, optimizer: AdamConfig) -> float:
    """Factor of the peak rate for the update that follows `step` completed ones.

    Linear warm-up over `warmup_steps`, then one cosine or a polynomial to 0 at `total_steps`.
    """
    warmup = min(optimizer.warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if optimizer.decay == "polynomial":
        return (1.0 - progress) ** POLYNOMIAL_POWER
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(step: int, decay: float) -> float:
    """Decay of the moving average after `step` completed updates. It is lower at the start of a run."""
    return min(decay, (1 + step) / (10 + step))


def batches_per_run(training: LengthConfig, samples: int) -> int:
    """Global batches of the whole run over `samples` slices."""
    if training.max_steps is not None:
        return math.ceil(training.max_steps / training.updates_per_batch)
    total = training.samples or training.epochs * samples
    return max(1, math.ceil(total / training.global_batch_size))


def total_steps(training: LengthConfig, samples: int) -> int:
    """Optimiser steps of the whole run."""
    if training.max_steps is not None:
        return training.max_steps
    return batches_per_run(training, samples) * training.updates_per_batch
