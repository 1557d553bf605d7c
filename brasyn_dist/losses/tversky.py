"""Focal Tversky loss (Abraham and Khan, 2019), one number per sample (method, section 5).

    logits (B, C, H, W) --softmax--> p      labels (B, H, W) --> one-hot t

    TP = sum p t    FN = sum (1 - p) t    FP = sum p (1 - t)                          over the pixels of a sample, each class
    index = (TP + s) / (TP + a FN + b FP + s)        loss = mean over classes of (1 - index)^exponent

The published implementation sums over the batch as well. Here a sample stands for itself, so that the gradient of a global
batch does not depend on how it is split; `smoothing` s then decides what a class that a slice lacks costs (config.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from brasyn_dist.config import TverskyConfig
from brasyn_dist.losses.ssim import at_least_float32


def focal_tversky(config: TverskyConfig, logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """(B,) loss in [0, 1], in float32 or better whatever the autocast. `labels` integers 0 .. C - 1."""
    with torch.autocast(logits_BCHW.device.type, enabled=False):
        p_BCN = at_least_float32(logits_BCHW).softmax(1).flatten(2)
        t_BCN = one_hot_labels(labels_BHW, logits_BCHW.shape[1], p_BCN.dtype)
        hits_BC = (p_BCN * t_BCN).sum(2)
        missed_BC = ((1 - p_BCN) * t_BCN).sum(2)
        wrong_BC = (p_BCN * (1 - t_BCN)).sum(2)
        # 1 - index, with the difference of numerator and denominator written out: no cancellation where it is small.
        errors_BC = config.false_negative * missed_BC + config.false_positive * wrong_BC
        distance_BC = errors_BC / (hits_BC + errors_BC + config.smoothing)
        # Rounding may put an error a hair below 0, of which no power exists.
        return distance_BC.clamp(min=0).pow(config.exponent).mean(1)


def labelled_only(loss_B: Tensor, has_labels_B: Tensor) -> Tensor:
    """The loss, 0 (with zero gradient) for slices without labels."""
    return torch.where(has_labels_B, loss_B, 0)


def one_hot_labels(labels_BHW: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B, C, H * W): 1 where a pixel has the class."""
    return F.one_hot(labels_BHW.long().flatten(1), classes).transpose(1, 2).to(dtype)
