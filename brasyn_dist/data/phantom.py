"""Synthetic BraTS cases: real folders of NIfTI volumes with anatomy, tumours and scanner effects, from a seed.

    smooth random fields --> anatomy (tissue fractions) --> tumour labels --> contrast of each sequence
                                                                         --> bias field, noise, scale --> BraTS folder

    python -m brasyn_dist.data.phantom OUT --gli 6 --met 2

It is meant for demonstrations and tests: sequences have the contrasts of real ones and are predictable from one another to a
fair degree, as real ones are. It is no model of disease.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from brasyn_dist.brats import ED, ET, MODALITIES, NETC, VOLUME_SHAPE
from brasyn_dist.data.nifti import compress
from brasyn_dist.files import atomic_write_bytes

Kind = Literal["GLI", "MET"]
TISSUES = ("csf", "grey", "white", "oedema", "necrosis", "enhancing", "vessel")
# Signal of each tissue relative to white matter of a T1 scan; order of TISSUES.
CONTRAST = {
    "t1n": (0.28, 0.66, 0.95, 0.62, 0.42, 0.66, 0.70),
    "t1c": (0.28, 0.68, 0.95, 0.64, 0.46, 1.75, 1.60),
    "t2w": (2.20, 1.05, 0.72, 1.55, 1.75, 1.20, 0.55),
    "t2f": (0.30, 0.95, 0.74, 1.60, 0.95, 1.25, 0.50),
}
# Usual intensity of 1.0 above, in the integers that BraTS files hold; scanners differ by the factor _SCALE_SPREAD.
_LEVEL = {"t1n": 900.0, "t1c": 1150.0, "t2w": 620.0, "t2f": 680.0}
_SCALE_SPREAD = 0.25
_NOISE = 0.025


@dataclass(frozen=True)
class Anatomy:
    """A subject on the grid of its brain's bounding box: fractions of TISSUES (T, x, y, z), brain mask, labels."""

    fractions: np.ndarray
    depth: np.ndarray
    """0 at the brain's surface, 1 at its centre."""
    labels: np.ndarray
    texture: np.ndarray
    origin: tuple[int, int, int]


def smooth_field(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """A random field (x, y, z) float32 of mean 0 and standard deviation about 1, varying over `scale` voxels.

    Cubic B-splines on a coarse grid of normal numbers, one axis after the other.
    """
    knots = [int(np.ceil(n / scale)) + 3 for n in shape]
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, (n, k) in enumerate(zip(shape, knots)):
        field = np.moveaxis(np.tensordot(_spline_weights(n, k, scale), field, (1, axis)), 0, axis)
    return field / np.float32(_SPLINE_STD**3)


_SPLINE_STD = 0.69
"""Standard deviation, per axis, of a cubic B-spline through unit normal coefficients."""


def _spline_weights(points: int, knots: int, scale: float) -> np.ndarray:
    """(points, knots): cubic B-spline weights of each point."""
    distance = np.abs(np.arange(points)[:, None] / scale - (np.arange(knots)[None] - 1))
    near, far = distance < 1, (distance >= 1) & (distance < 2)
    weights = np.where(near, 2 / 3 - distance**2 + distance**3 / 2, 0.0)
    return np.where(far, (2 - distance) ** 3 / 6, weights).astype(np.float32)


def make_anatomy(rng: np.random.Generator, kind: Kind, shape: Sequence[int] = VOLUME_SHAPE) -> Anatomy:
    """A random subject. Proportions follow `shape`; 240 x 240 x 155 gives a brain of about 1.4 litres."""
    size = np.asarray(shape, float)
    centre = size * (0.497, 0.533, 0.48) + rng.normal(0, 0.006, 3) * size
    radii = size * (0.285, 0.347, 0.425) * (1 + rng.normal(0, 0.03, 3))
    low = np.maximum(np.floor(centre - 1.2 * radii), 0).astype(int)
    high = np.minimum(np.ceil(centre + 1.2 * radii) + 1, size).astype(int)
    box = tuple(high - low)
    unit = float(radii.mean()) / 75  # 1 for a full-size brain: scales all structures
    x, y, z = (
        ((np.arange(a, b) - c) / r).astype(np.float32).reshape([-1 if i == d else 1 for i in range(3)])
        for d, (a, b, c, r) in enumerate(zip(low, high, centre, radii))
    )

    def field(scale: float) -> np.ndarray:
        return smooth_field(rng, box, max(2.0, scale * unit))

    # Flatten the base, as brains are; a coarse field makes each one different.
    radius = np.sqrt(x**2 + y**2 + np.where(z < 0, 1.25 * z**2, z**2)) * (1 + 0.035 * field(40))
    depth = np.clip(1 - radius, 0, 1)
    folds, wrinkles = field(9), field(5)
    sulci = np.exp(-((folds / 0.20) ** 2)) * np.clip(1.15 - depth / 0.26, 0, 1)
    fissure = np.exp(-((x / (0.018 + 0.01 * np.abs(z))) ** 2)) * (depth < 0.42)
    csf = np.clip(np.maximum(sulci, fissure) + 0.5 * (depth < 0.012), 0, 1)
    grey = _soft(0.075 + 0.05 * np.abs(folds) + 0.02 * wrinkles - depth, 0.012)
    grey = np.maximum(
        grey, _soft(np.exp(-((folds / 0.55) ** 2)) * np.clip(1.25 - depth / 0.28, 0, 1) - 0.35, 0.06)
    )
    warp = 0.10 * field(18)
    for side in (-1, 1):
        grey = np.maximum(grey, _ellipsoid(x, y, z, (0.19 * side, 0.10, -0.05), (0.13, 0.20, 0.16), warp))
        grey = np.maximum(grey, _ellipsoid(x, y, z, (0.36 * side, -0.10, -0.04), (0.10, 0.26, 0.20), warp))
        for start, extent in (
            ((0.14, -0.16, 0.16), (0.09, 0.34, 0.13)),
            ((0.21, 0.34, 0.07), (0.09, 0.20, 0.12)),
        ):
            ventricle = _ellipsoid(x, y, z, (start[0] * side, start[1], start[2]), extent, warp)
            csf = np.maximum(csf, ventricle)
    csf, grey = np.clip(csf, 0, 1), np.clip(grey, 0, 1)
    vessel = _soft(np.exp(-(((field(14)) / 0.05) ** 2) - (field(14) / 0.05) ** 2) - 0.5, 0.1) * (depth > 0.02)
    vessel = np.maximum(vessel, np.exp(-((x / 0.03) ** 2)) * ((depth < 0.05) & (z > 0.1)))
    labels = _tumour(rng, kind, (x, y, z), depth, csf, field, unit)
    fractions = _blend(csf, grey, vessel * 0.9, labels)
    texture = np.stack([field(4), field(3)])
    brain = depth > 0
    return Anatomy(fractions * brain, depth, labels * brain, texture, tuple(low))


def _soft(value: np.ndarray, width: float) -> np.ndarray:
    """Step from 0 to 1 where `value` passes 0, over about `width`: partial volume."""
    return np.clip(value / (2 * width) + 0.5, 0, 1)


def _ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: Sequence[float],
    extent: Sequence[float],
    warp: np.ndarray,
) -> np.ndarray:
    (a, b, c), (p, q, r) = centre, extent
    return _soft(1 + warp - np.sqrt(((x - a) / p) ** 2 + ((y - b) / q) ** 2 + ((z - c) / r) ** 2), 0.08)


def _tumour(rng, kind, xyz, depth, csf, field, unit) -> np.ndarray:
    """Labels (x, y, z) uint8. GLI: one large mass with necrosis, rim and oedema. MET: several small ones."""
    x, y, z = xyz
    labels = np.zeros(depth.shape, np.uint8)
    rough, spread = field(9), field(16)
    lesions = 1 if kind == "GLI" else int(rng.integers(3, 7))
    for _ in range(lesions):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.3, 0.62) / np.linalg.norm(direction)
        direction[2] = abs(direction[2]) * 0.7
        extent = rng.uniform(0.20, 0.32) if kind == "GLI" else rng.uniform(0.05, 0.12)
        distance = (
            np.sqrt((x - direction[0]) ** 2 + (y - direction[1]) ** 2 + (z - direction[2]) ** 2) / extent
        )
        inside = distance * (1 + 0.16 * rough)
        reach = rng.uniform(1.25, 1.75)
        # Oedema follows white matter: it stays below the cortex and out of the ventricles.
        swollen = (distance * (1 + 0.22 * spread + 0.1 * rough) < reach) & (depth > 0.07) & (csf < 0.3)
        labels[swollen & (labels == 0)] = ED
        labels[(inside < 1) & (depth > 0.03)] = ET
        labels[(inside < rng.uniform(0.6, 0.82)) & (depth > 0.03)] = NETC
    return labels


def _blend(csf: np.ndarray, grey: np.ndarray, vessel: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fractions of TISSUES that add up to 1, lesions laid over the anatomy with soft borders."""
    from scipy.ndimage import gaussian_filter

    lesions = [gaussian_filter((labels == k).astype(np.float32), 0.7) for k in (ED, NETC, ET)]
    # Oedema shows what lies below it; solid tumour does not.
    lesions[0] *= 0.75
    healthy = np.clip(1 - sum(lesions), 0, 1)
    vessel = vessel * healthy
    csf = csf * (healthy - vessel)
    grey = grey * (healthy - vessel - csf)
    white = healthy - vessel - csf - grey
    return np.stack([csf, grey, white, *lesions, vessel]).astype(np.float32)


def make_case(
    seed: int, kind: Kind = "GLI", shape: Sequence[int] = VOLUME_SHAPE
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Volumes by modality, int16 with background 0, and labels uint8 (1 NETC, 2 ED, 3 ET); both (x, y, z), LPS."""
    rng = np.random.default_rng(seed)
    anatomy = make_anatomy(rng, kind, shape)
    box = anatomy.depth.shape
    volumes = {m: _scan(rng, anatomy, m, kind) for m in MODALITIES}
    where = tuple(slice(o, o + n) for o, n in zip(anatomy.origin, box))

    def whole(part: np.ndarray) -> np.ndarray:
        full = np.zeros(shape, part.dtype)
        full[where] = part
        return full

    return {m: whole(v) for m, v in volumes.items()}, whole(anatomy.labels)


def _scan(rng: np.random.Generator, anatomy: Anatomy, modality: str, kind: Kind) -> np.ndarray:
    """One sequence: contrast, texture, bias field, Rician noise, the scanner's scale; integers, 0 outside the brain."""
    box = anatomy.depth.shape
    contrast = np.array(CONTRAST[modality], np.float32) * (1 + 0.05 * rng.standard_normal(len(TISSUES)))
    signal = np.tensordot(contrast.astype(np.float32), anatomy.fractions, 1)
    # What is dark in T1 is bright in T2: texture that sequences share, with a sign, and some of their own.
    sign = 1 if modality in ("t1n", "t1c") else -1
    signal *= 1 + 0.045 * sign * anatomy.texture[0] + 0.02 * smooth_field(rng, box, 3)
    signal *= np.exp(0.07 * smooth_field(rng, box, 0.6 * max(box)))
    noise = _NOISE * rng.standard_normal((2, *box), dtype=np.float32)
    signal = np.hypot(np.clip(signal, 0, None) + noise[0], noise[1])
    level = _LEVEL[modality] * np.exp(_SCALE_SPREAD * rng.standard_normal())
    # Metastasis cases of the challenge come from many sites: their sequences' masks differ at the surface.
    edge = 0.004 * abs(rng.standard_normal()) if kind == "MET" else 0.0
    return np.where(anatomy.depth > edge, np.clip(np.rint(level * signal), 1, 32767), 0).astype(np.int16)


def write_case(
    root: Path | str,
    name: str,
    seed: int,
    kind: Kind = "GLI",
    shape: Sequence[int] = VOLUME_SHAPE,
    segmentation: bool = True,
) -> Path:
    """Write `root`/`name`/`name`-{t1c,t1n,t2f,t2w,seg}.nii.gz with BraTS' header conventions. Returns the case's folder."""
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    volumes, labels = make_case(seed, kind, shape)
    for suffix, array in [*volumes.items(), *([("seg", labels)] if segmentation else [])]:
        atomic_write_bytes(folder / f"{name}-{suffix}.nii.gz", compress(brats_image(array).to_bytes()))
    return folder


def brats_image(array_xyz: np.ndarray) -> nibabel.Nifti1Image:
    """NIfTI image as BraTS stores it: LPS order, 1 mm, origin at the far end of y."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = array_xyz.shape[1] - 1
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="gets the cohort folders train_gli and train_met")
    parser.add_argument("--gli", type=int, default=6, help="glioma cases")
    parser.add_argument("--met", type=int, default=2, help="metastasis cases")
    parser.add_argument("--shape", type=int, nargs=3, default=VOLUME_SHAPE, metavar=("X", "Y", "Z"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from tqdm import tqdm

    plan: list[tuple[Kind, int]] = [("GLI", n) for n in range(options.gli)] + [("MET", n) for n in range(options.met)]
    for number, (kind, n) in enumerate(tqdm(plan, desc="phantom cases", disable=None)):
        cohort = options.out / f"train_{kind.lower()}"
        name = f"BraTS-{kind}-{n:05d}-000"
        # The segmentation is written last: a case that has it is whole.
        if not (cohort / name / f"{name}-seg.nii.gz").exists():
            write_case(cohort, name, options.seed * 100_003 + number, kind, options.shape)
    print(f"{len(plan)} cases in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
