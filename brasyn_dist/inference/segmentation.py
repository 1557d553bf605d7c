"""Segmentation of one case with the project's segmenter.

    integers (M, x, y, z) --slices of each view--> class probabilities --sum over views, argmax--> labels

As in synthesis, slices without brain are not run, and voxels that are 0 in at least two modalities are
background.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from brasyn_dist.brats import BACKGROUND, VIEWS
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.synthesis import (
    brain_mask,
    check_window,
    default_batch_size,
    full_batches,
    padding_to,
    to_slices,
)
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.preprocessing.normalisation import foreground_medians


@torch.inference_mode()
def segment_volume(
    segmenter: Segmenter,
    images_MXYZ: np.ndarray,
    tumour_type: int,
    views: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Segment one case with all modalities.

    Args:
        segmenter: In evaluation mode, on its device, loaded by `Segmenter.from_pretrained`.
        images_MXYZ: Integers, (x, y, z) in LPS order.
        tumour_type: Index in TUMOUR_TYPES, or UNKNOWN_TYPE.
        views: Views to run over; default: those that the segmenter was trained on.
        batch_size: Slices in a batch; default: `default_batch_size`.

    Returns:
        (x, y, z) uint8 canonical labels.

    Raises:
        DataError: There is no brain, or the output is not finite.
        CheckpointError: The segmenter has no statistics or views.
    """
    preprocessing = segmenter.preprocessing
    views = tuple(views or (preprocessing.views if preprocessing else ()))
    if preprocessing is None or not views:
        raise CheckpointError(
            "the segmenter has no statistics or views; load it with Segmenter.from_pretrained"
        )
    device = next(segmenter.parameters()).device
    images = torch.from_numpy(images_MXYZ).to(device)
    every = range(len(images))
    brain_XYZ = brain_mask(images, every)
    if not brain_XYZ.any():
        raise DataError("no brain to segment: the modalities are background everywhere (all voxels are 0)")
    normaliser = preprocessing.normaliser(device)
    medians_1M = foreground_medians(images, every) if preprocessing.normalisation == "case" else None
    sums_CXYZ = torch.zeros(segmenter.classes, *brain_XYZ.shape, device=device)
    for view in views:
        # Views into the volumes: adding to a slice adds to its volume.
        inputs_KMHW, sums_KCHW = to_slices(images, view), to_slices(sums_CXYZ, view)
        padding = padding_to(inputs_KMHW.shape[2:], segmenter.config.image_size)
        check_window(to_slices(brain_XYZ, view), padding, view)
        slices_K = to_slices(brain_XYZ, view).flatten(1).any(1).nonzero()[:, 0]
        done = 0
        for slices_B in full_batches(slices_K, batch_size or default_batch_size(device)):
            numbers_B = torch.full((len(slices_B),), VIEWS.index(view), device=device)
            x_BMHW = normaliser(F.pad(inputs_KMHW[slices_B], padding), medians_BM=medians_1M)
            logits_BCHW = segmenter(x_BMHW, numbers_B, torch.full_like(numbers_B, tumour_type))
            probabilities_BCHW = F.pad(logits_BCHW.float().softmax(1), [-n for n in padding])
            # The last batch repeats its last slice, which is counted once.
            new = min(len(slices_B), len(slices_K) - done)
            sums_KCHW[slices_B[:new]] += probabilities_BCHW[:new]
            done += new
    if not torch.isfinite(sums_CXYZ).all():
        raise DataError("the segmenter's output is not finite; check its weights")
    labels_XYZ = torch.where(brain_XYZ, sums_CXYZ.argmax(0), BACKGROUND)
    return labels_XYZ.to(torch.uint8).cpu().numpy()
