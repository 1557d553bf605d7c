"""Learning rate and moving-average decay as functions of the optimiser step. They have no state."""

import math

from brasyn_dist.config import AdamConfig, LengthConfig


def scaled_rate(optimizer: AdamConfig, global_batch_size: int) -> float:
    """Peak rate of the main network: the base rate, scaled linearly with the global batch.

    See docs/explanation/method.md, section 6.
    """
    return optimizer.base_rate * global_batch_size / optimizer.reference_batch


def rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor of the peak rate for the update that follows `step` completed ones.

    Linear warm-up over `warmup_steps`, then one cosine to 0 at `total_steps`.
    """
    warmup = min(warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def ema_decay(step: int, decay: float) -> float:
    """Decay of the moving average after `step` completed updates. It is lower at the start of a run."""
    return min(decay, (1 + step) / (10 + step))


def batches_per_run(training: LengthConfig, samples: int) -> int:
    """Global batches of the whole run over `samples` slices."""
    if training.max_steps is not None:
        return math.ceil(training.max_steps / training.updates_per_batch)
    return max(1, math.ceil(training.epochs * samples / training.global_batch_size))


def total_steps(training: LengthConfig, samples: int) -> int:
    """Optimiser steps of the whole run."""
    if training.max_steps is not None:
        return training.max_steps
    return batches_per_run(training, samples) * training.updates_per_batch
