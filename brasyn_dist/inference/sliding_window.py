"""A network of volumes over a whole volume: windows with overlap, averaged with Gaussian weights (MONAI).

volume --windows of the training patches' size--> network --weights that fall off to the border--> volume
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from brasyn_dist.common.optional_packages import require
from brasyn_dist.models.volume_network import VolumeNetwork
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE

OVERLAP = 0.25
"""Of neighbouring windows, as a fraction of their side."""
MARGIN = 8
"""Voxels around the brain that windows cover, too."""


def brain_box(brain_XYZ: Tensor) -> tuple[slice, ...]:
    """Box around the brain with MARGIN voxels on each side, as far as the volume has them."""
    spans = []
    for axis, length in enumerate(brain_XYZ.shape):
        others = tuple(other for other in range(3) if other != axis)
        inside = brain_XYZ.any(others[1]).any(others[0]).nonzero()[:, 0]
        spans.append(slice(max(0, int(inside[0]) - MARGIN), min(length, int(inside[-1]) + 1 + MARGIN)))
    return tuple(spans)


def gaussian_weights(patch: Sequence[int]) -> Tensor:
    """(X, Y, Z) float32 weights of a window, with a standard deviation of an eighth of its side.

    Those of MONAI's `mode="gaussian"` are at least 1e-3. Near the corners of two windows both would have
    this weight up to the border of one of them, where the result would change at once: visible lines.
    """
    x, y, z = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in patch)
    return x[:, None, None] * y[:, None] * z


def slide(
    network: VolumeNetwork,
    x_1MXYZ: Tensor,
    available: Sequence[int],
    target: int,
    stage1_11XYZ: Tensor | None = None,
    overlap: float = OVERLAP,
) -> Tensor:
    """Synthesise modality `target` of a whole volume.

    Args:
        network: Its `preprocessing.patch` is the size of the windows.
        x_1MXYZ: Normalised volumes of all modalities; missing ones may hold any values.
        available: Numbers of the available modalities.
        target: Number of the modality to make.
        stage1_11XYZ: Normalised volume of the first stage, for a refiner.
        overlap: Of neighbouring windows, as a fraction of their side.

    Returns:
        Normalised volume (1, 1, X, Y, Z).

    Raises:
        ConfigError: MONAI is not installed.
    """
    require("monai", "volumes", "a network of volumes")
    from monai.inferers import sliding_window_inference

    assert network.preprocessing is not None and network.preprocessing.patch is not None
    modalities = x_1MXYZ.shape[1]

    def predict(window_BCXYZ: Tensor) -> Tensor:
        stage1 = window_BCXYZ[:, modalities:] if stage1_11XYZ is not None else None
        return network.synthesise(window_BCXYZ[:, :modalities], available, target, stage1).float()

    inputs = x_1MXYZ if stage1_11XYZ is None else torch.cat([x_1MXYZ, stage1_11XYZ], dim=1)
    made = sliding_window_inference(
        inputs,
        network.preprocessing.patch,
        sw_batch_size=1,
        predictor=predict,
        overlap=overlap,
        roi_weight_map=gaussian_weights(network.preprocessing.patch).to(inputs.device),
        padding_mode="constant",
        cval=BACKGROUND_VALUE,
    )
    assert isinstance(made, Tensor)
    return made
