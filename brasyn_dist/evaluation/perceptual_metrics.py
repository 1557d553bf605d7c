"""Perceptual image metrics without network weights: multi-scale SSIM and gradient-magnitude similarity.

    ms_ssim   Wang, Simoncelli, Bovik (2003), https://doi.org/10.1109/ACSSC.2003.1292216: five scales, the
              authors' weights; mean over axial slices, in the bounding box of the brain, which is padded with
              background to at least 176 pixels
    gmsd      Xue et al. (2014), https://doi.org/10.1109/TIP.2013.2293423: standard deviation of the
              similarity of gradient magnitudes (here 3-D Prewitt) over a region; lower is better

LPIPS needs an image network that no package contains: the wheel of `lpips` has only the weights of its last
layer. Volumes are scaled to [0, 1] and 0 outside of the brain.
"""

import numpy as np

MINIMUM_SIDE = 176
"""Pixels: a window of 11 at a sixteenth of the size."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
GRADIENT_CONSTANT = 0.0026
"""Of the similarity of gradient magnitudes, for a data range of 1."""
_RADIUS, _SIGMA = 5, 1.5
_WINDOW = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2).astype(np.float32)
_WINDOW /= _WINDOW.sum()


def multi_scale_ssim(x_xyz: np.ndarray, y_xyz: np.ndarray) -> float:
    """Mean multi-scale SSIM of the axial slices of two volumes in [0, 1]."""
    x, y = (padded_slices(v) for v in (x_xyz, y_xyz))
    product = np.ones(len(x))
    for number, weight in enumerate(SCALE_WEIGHTS):
        last = number == len(SCALE_WEIGHTS) - 1
        value = np.clip(similarity(x, y, with_luminance=last), 0, None)
        product *= value**weight
        if not last:
            x, y = halved(x), halved(y)
    return float(product.mean())


def padded_slices(volume_xyz: np.ndarray) -> np.ndarray:
    """(slices, H, W) float32, padded with 0 to at least MINIMUM_SIDE."""
    missing = [max(0, MINIMUM_SIDE - side) for side in volume_xyz.shape[:2]]
    slices = np.moveaxis(volume_xyz, 2, 0).astype(np.float32)
    return np.pad(slices, ((0, 0), *((n // 2, n - n // 2) for n in missing)))


def similarity(x_KHW: np.ndarray, y_KHW: np.ndarray, with_luminance: bool) -> np.ndarray:
    """(K,) mean contrast-structure term, or SSIM, over the pixels whose window is inside of the slice."""
    mean_x, mean_y = blurred(x_KHW), blurred(y_KHW)
    variance_x, variance_y = blurred(x_KHW**2) - mean_x**2, blurred(y_KHW**2) - mean_y**2
    covariance = blurred(x_KHW * y_KHW) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    terms = (2 * covariance + c2) / (variance_x + variance_y + c2)
    if with_luminance:
        terms *= (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return terms.mean((1, 2), dtype=np.float64)


def blurred(x_KHW: np.ndarray) -> np.ndarray:
    """Gaussian mean around each pixel whose window is inside of the slice."""
    from scipy.ndimage import correlate1d

    for axis in (1, 2):
        x_KHW = correlate1d(x_KHW, _WINDOW, axis)
    return x_KHW[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def halved(x_KHW: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    k, h, w = x_KHW.shape
    return x_KHW[:, : h // 2 * 2, : w // 2 * 2].reshape(k, h // 2, 2, w // 2, 2).mean((2, 4))


def gradient_magnitude(volume_xyz: np.ndarray) -> np.ndarray:
    """Magnitude of the Prewitt gradient, as a difference for each voxel of distance."""
    from scipy.ndimage import prewitt

    # A 3-D Prewitt filter adds nine central differences over two voxels.
    squares = sum(prewitt(volume_xyz, axis) ** 2 for axis in range(3))
    return np.sqrt(squares) / 18


def gradient_similarity(x_xyz: np.ndarray, y_xyz: np.ndarray) -> np.ndarray:
    """Map in (0, 1] from the gradient magnitudes of two volumes."""
    return (2 * x_xyz * y_xyz + GRADIENT_CONSTANT) / (x_xyz**2 + y_xyz**2 + GRADIENT_CONSTANT)
