"""Scanner model: contrast, texture, bias field, noise and intensity scale.

Measured on ten real subjects: the median of the foreground of a scan is between 100 and 2,000 and differs by
a factor of about 1.6 (one standard deviation) between subjects. The scales of the scans of one subject are
correlated. In the phantoms they are more correlated than in real files: a score of a few held-out subjects
should compare images, and the scale of a missing scan cannot be known.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from brasyn_dist.brats import MODALITIES
from brasyn_dist.phantom.anatomy import TISSUES, Anatomy
from brasyn_dist.phantom.lesions import Kind

# Signal of TISSUES (csf, grey, white, oedema, necrosis, enhancing, vessel); white matter is about 1.
# Tumours were moved towards the medians of eight real subjects: in FLAIR all parts of them are bright.
# No modality is an affine function of another one: T1c has less contrast of grey and white matter than T1n.
CONTRAST = {
    "t1n": (0.32, 0.70, 1.00, 0.66, 0.70, 0.80, 0.80),
    "t1c": (0.46, 0.93, 1.00, 0.82, 0.70, 1.70, 2.30),
    "t2w": (2.70, 1.22, 0.88, 1.85, 1.80, 1.60, 0.75),
    "t2f": (0.28, 1.14, 0.94, 1.75, 1.55, 1.50, 0.80),
}
CONTRAST_SPREAD = 0.08
BIAS = 0.14
"""Standard deviation of the logarithm of the bias field, which has mean 0."""
LEVEL = {"t1c": 480.0, "t1n": 530.0, "t2f": 460.0, "t2w": 420.0}
"""Intensity of white matter in BraTS files (geometric mean of ten subjects)."""
SUBJECT_SPREAD, SCAN_SPREAD = 0.35, 0.06
"""Standard deviations of the logarithm of intensity: common to all scans of a subject, and of each scan."""
NOISE = 0.025
THICK_SLICES = 0.35
"""Fraction of the scans with thick axial slices, which are blurred along z."""


def scan_all(rng: np.random.Generator, anatomy: Anatomy, kind: Kind) -> dict[str, np.ndarray]:
    """All four modalities in the box of the head: int16, at least 1 in the brain and 0 outside."""
    scale = np.exp(SUBJECT_SPREAD * rng.standard_normal())
    texture = anatomy.grid.field(rng, 3.5)[anatomy.brain]
    return {m: scan(rng, anatomy, m, kind, scale, texture) for m in MODALITIES}


def scan(
    rng: np.random.Generator, anatomy: Anatomy, modality: str, kind: Kind, scale: float, texture: np.ndarray
) -> np.ndarray:
    """One modality (nx, ny, nz)."""
    grid, brain = anatomy.grid, anatomy.brain
    tissues = np.array(CONTRAST[modality]) * (
        1 + CONTRAST_SPREAD * rng.standard_normal(len(CONTRAST[modality]))
    )
    signal = np.tensordot(tissues.astype(np.float32), anatomy.fractions, 1)
    # Dark in T1 is bright in T2: common texture of all scans with a sign, and texture of each scan.
    shared = (0.03 + 0.08 * _tumour(anatomy.fractions)) * texture
    signal *= 1 + (shared if modality in ("t1n", "t1c") else -shared) + 0.03 * grid.field(rng, 3)[brain]
    if rng.random() < THICK_SLICES:
        signal = _blurred_along_z(signal, brain, 1.6 * grid.voxels_per_mm[2])
    bias = grid.field(rng, 70)[brain]
    signal *= np.exp(BIAS * (bias - bias.mean()))
    real, imaginary = NOISE * rng.standard_normal((2, len(signal)), dtype=np.float32)
    signal = np.hypot(signal + real, imaginary)  # a magnitude image: Rician noise
    level = LEVEL[modality] * scale * np.exp(SCAN_SPREAD * rng.standard_normal())
    values = np.clip(np.rint(level * signal), 1, np.iinfo(np.int16).max)
    # The metastases of the challenge come from many sites: the masks of their scans differ at the surface.
    edge = 0.7 * abs(rng.standard_normal()) if kind == "MET" else 0.0
    volume = np.zeros(grid.shape, np.int16)
    volume[brain] = np.where(anatomy.depth > edge, values, 0)
    return volume


def _tumour(fractions: np.ndarray) -> np.ndarray:
    """(N,) fraction of tumour core, which is less uniform than healthy tissue."""
    return fractions[TISSUES.index("necrosis")] + fractions[TISSUES.index("enhancing")]


def _blurred_along_z(signal: np.ndarray, brain: np.ndarray, sigma: float) -> np.ndarray:
    """(N,) values blurred within the brain, without influence of the background."""
    volume = np.zeros(brain.shape, np.float32)
    volume[brain] = signal
    weight = gaussian_filter1d(brain.astype(np.float32), sigma, axis=2)
    return gaussian_filter1d(volume, sigma, axis=2)[brain] / weight[brain]
