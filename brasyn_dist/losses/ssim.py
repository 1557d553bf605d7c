"""Structural similarity (Wang et al., 2004) as a map, and its mean over regions.

11 x 11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, population variances. Images are reflected at their
border, as in torchmetrics; scikit-image agrees where the window lies inside the image. Computed in at least
float32, because the variances are small differences of large numbers. Wang et al. (2004):
https://doi.org/10.1109/TIP.2003.819861
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def ssim_map(x_B1HW: Tensor, y_B1HW: Tensor, range_B: Tensor) -> Tensor:
    """SSIM at each pixel.

    Args:
        x_B1HW: Images of more than 5 pixels per side; or volumes (B, 1, X, Y, Z), with a window of 11 voxels
            a side.
        y_B1HW: Images to compare with.
        range_B: Width of the intensity range of each image.

    Returns:
        The same shape, in [-1, 1], at least float32, for any input type and autocast.
    """
    with torch.autocast(x_B1HW.device.type, enabled=False):
        x, y, data_range = (at_least_float32(t) for t in (x_B1HW, y_B1HW, range_B))
        moments_B5HW = gaussian_blur(torch.cat([x, y, x * x, y * y, x * y], dim=1))
        mean_x, mean_y, square_x, square_y, product = moments_B5HW.split(1, dim=1)
        c1, c2 = (((k * data_range) ** 2).view(-1, *[1] * (x.ndim - 1)) for k in (K1, K2))
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        variances = (square_x - mean_x**2) + (square_y - mean_y**2)
        return luminance * (2 * (product - mean_x * mean_y) + c2) / (variances + c2)


def region_mean(map_B1HW: Tensor, region_B1HW: Tensor) -> Tensor:
    """(B,) mean of each sample's map over its region (bool); 0 with zero gradient for an empty region."""
    axes = tuple(range(1, region_B1HW.ndim))
    pixels_B = region_B1HW.sum(axes).clamp(min=1)
    return torch.where(region_B1HW, map_B1HW, 0).sum(axes) / pixels_B


def gaussian_blur(x_BCHW: Tensor) -> Tensor:
    """Each channel blurred by the separable window, reflected at the border.

    On CPUs two products with banded matrices, which are faster than a depthwise convolution for slices below
    240 pixels. On GPUs (and in compiled code) a depthwise convolution, which computes in float32: a product
    may round its factors to TF32.
    """
    channels, radius = x_BCHW.shape[1], WINDOW // 2
    if x_BCHW.ndim == 5:
        planes = gaussian_blur(x_BCHW.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, x_BCHW.shape[2]))
        return blur_rows(planes.transpose(1, 2).flatten(3)).unflatten(3, x_BCHW.shape[3:])
    if x_BCHW.device.type == "cpu" and not torch.compiler.is_compiling():
        rows, columns = (torch.from_numpy(blur_matrix(n)).to(x_BCHW.dtype) for n in x_BCHW.shape[2:])
        return rows @ x_BCHW @ columns.T
    rows = row_weights(x_BCHW)
    padded = F.pad(x_BCHW, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def blur_rows(x_BCHW: Tensor) -> Tensor:
    """`gaussian_blur` along H only."""
    if x_BCHW.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.from_numpy(blur_matrix(x_BCHW.shape[2])).to(x_BCHW.dtype) @ x_BCHW
    padded = F.pad(x_BCHW, (0, 0, WINDOW // 2, WINDOW // 2), mode="reflect")
    return F.conv2d(padded, row_weights(x_BCHW), groups=x_BCHW.shape[1])


def row_weights(x_BCHW: Tensor) -> Tensor:
    """(C, 1, 11, 1) weights of a depthwise convolution along H."""
    weight_K = gaussian(x_BCHW.dtype, x_BCHW.device)
    return weight_K.view(1, 1, -1, 1).expand(x_BCHW.shape[1], -1, -1, -1)


@functools.cache
def blur_matrix(size: int) -> np.ndarray:
    """(size, size) float64: row i holds the weights of the pixels around i, with reflection at the ends."""
    # In NumPy: a cached tensor could belong to a fake or an inference mode.
    distance = np.arange(WINDOW) - WINDOW // 2
    weight_K = np.exp(-((distance / SIGMA) ** 2) / 2)
    pixels = np.pad(np.arange(size), WINDOW // 2, mode="reflect")
    weights = np.zeros((size, size))
    for tap, weight in enumerate(weight_K / weight_K.sum()):
        np.add.at(weights, (np.arange(size), pixels[tap : tap + size]), weight)
    return weights


def gaussian(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(11,) weights that sum to 1."""
    distance = torch.arange(WINDOW, dtype=dtype, device=device) - WINDOW // 2
    weight_K = torch.exp(-((distance / SIGMA) ** 2) / 2)
    return weight_K / weight_K.sum()


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
