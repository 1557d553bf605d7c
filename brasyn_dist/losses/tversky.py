"""Focal Tversky loss (Abraham and Khan, 2019, arXiv 1810.07842), one value per sample.

    logits (B, C, H, W) --softmax--> p      labels (B, H, W) --> one-hot t

    TP = sum p t    FN = sum (1 - p) t    FP = sum p (1 - t)      over the pixels of a sample, for each class
    index = (TP + s) / (TP + a FN + b FP + s)        loss = mean (or sum) over classes of (1 - index)^exponent

See docs/explanation/method.md, section 5. The published implementation also sums over the batch. Here each
sample has its own loss, so the gradient of a global batch does not depend on how it is split. `smoothing` s
then determines the loss of a class that is absent (TverskyConfig).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from brasyn_dist.config import TverskyConfig
from brasyn_dist.losses.ssim import at_least_float32


def focal_tversky(config: TverskyConfig, logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Focal Tversky loss of each sample.

    Args:
        config: Weights, exponent and smoothing.
        logits_BCHW: Logits of the classes.
        labels_BHW: Integers 0 .. C - 1.

    Returns:
        (B,) in [0, 1], with `classes: sum` in [0, C], at least float32, for any autocast.
    """
    with torch.autocast(logits_BCHW.device.type, enabled=False):
        p_BCN = at_least_float32(logits_BCHW).softmax(1).flatten(2)
        t_BCN = one_hot_labels(labels_BHW, logits_BCHW.shape[1], p_BCN.dtype)
        hits_BC = (p_BCN * t_BCN).sum(2)
        missed_BC = ((1 - p_BCN) * t_BCN).sum(2)
        wrong_BC = (p_BCN * (1 - t_BCN)).sum(2)
        # 1 - index, with the difference of denominator and numerator computed directly, which avoids
        # cancellation.
        errors_BC = config.false_negative * missed_BC + config.false_positive * wrong_BC
        distance_BC = errors_BC / (hits_BC + errors_BC + config.smoothing)
        # Rounding can give an error slightly below 0, for which the power is NaN.
        loss_BC = distance_BC.clamp(min=0).pow(config.exponent)
        return loss_BC.sum(1) if config.classes == "sum" else loss_BC.mean(1)


def labelled_only(loss_B: Tensor, has_labels_B: Tensor) -> Tensor:
    """The loss; 0 with zero gradient for slices without labels."""
    return torch.where(has_labels_B, loss_B, 0)


def one_hot_labels(labels_BHW: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B, C, H * W): 1 for the class of a pixel, else 0."""
    labels_BN = labels_BHW.long().flatten(1)
    labels_BN = torch.where(labels_BN < classes, labels_BN, 0)
    return F.one_hot(labels_BN, classes).transpose(1, 2).to(dtype)
