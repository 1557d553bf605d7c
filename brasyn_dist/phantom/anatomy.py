"""A random brain as fractions of tissues: structures are distances in mm, with borders about a voxel wide.

outline --> mm below the surface
fold    --> mm below the pia, which follows sulci and fissures: CSF | cortex | white matter
inside  --> ventricles, deep grey nuclei, vessels
lesions --> replace parts of them
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from brasyn_dist.brats import ED, ET, NETC
from brasyn_dist.phantom.grid import Grid, make_grid, soft_step
from brasyn_dist.phantom.lesions import Kind, grow_lesions, plan_lesions, push_away

TISSUES = ("csf", "grey", "white", "oedema", "necrosis", "enhancing", "vessel")
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Centre and radii, mm."""

_CEREBRUM: Ellipsoid = ((0, -2, 10), (66, 84, 59))
_TEMPORAL: Ellipsoid = ((37, -16, -24), (28, 40, 25))
_CEREBELLUM: Ellipsoid = ((19, 44, -36), (34, 34, 25))
_STEM: Ellipsoid = ((0, 16, -40), (15, 14, 30))
_CALLOSUM: Ellipsoid = ((0, -8, -2), (200, 38, 21))
"""Within it the two halves of the brain are joined."""
_CORE: Ellipsoid = ((0, -4, -2), (34, 42, 24))
"""Nuclei and large fibre tracts, which no sulcus reaches."""
_VENTRICLES: list[Ellipsoid] = [
    ((8, -30, 7), (4, 12, 7)), ((11, -8, 12), (5, 20, 4.5)), ((19, 20, 6), (5.5, 14, 7)),
    ((24, 38, -1), (3.5, 12, 5)),
    ((32, 2, -22), (3, 14, 3)), ((0, -2, -6), (1.8, 13, 8)), ((0, 33, -36), (5, 5, 9)),
]  # fmt: skip
_NUCLEI: list[tuple[Ellipsoid, float]] = [
    (((10, 6, -3), (8, 13, 8)), 0.55), (((12, -24, 3), (5, 10, 8)), 0.9),
    (((24, -8, -4), (5.5, 14, 9)), 0.85), (((17, -5, -6), (4, 8, 6)), 0.4),
]  # fmt: skip
"""Thalamus, caudate, putamen, pallidum, with the fraction of grey matter."""
_CORTEX = 2.7
"""Mean thickness of the cortex, mm."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A subject in the box of its head."""

    grid: Grid
    brain: np.ndarray
    """(nx, ny, nz) bool: the brain after skull stripping, N voxels."""
    depth: np.ndarray
    """(N,) mm below the surface of `brain`."""
    fractions: np.ndarray
    """(T, N) float32 fractions of TISSUES with sum 1."""
    labels: np.ndarray
    """(nx, ny, nz) uint8."""


def make_anatomy(rng: np.random.Generator, kind: Kind, shape: Sequence[int]) -> Anatomy:
    """A random subject with its tumours; `shape` of the volume determines the size of the head."""
    head = make_grid(rng, shape)
    lesions = plan_lesions(rng, kind)
    surface, depth, hindbrain = outline(rng, head)
    brain = surface > 0
    grid = push_away(head, lesions)
    below_pia = fold(rng, grid, depth, hindbrain)
    ventricle = ventricles(rng, grid)
    labels = grow_lesions(rng, head, lesions, below_pia, ventricle) * brain
    cortex = _CORTEX + 0.5 * grid.field(rng, 12)[brain] - hindbrain[brain]
    grey = np.maximum(soft_step(cortex - below_pia[brain], 0.9), nuclei(rng, grid)[brain])
    csf = np.maximum(soft_step(-below_pia[brain], 0.8), ventricle[brain])
    vessel = vessels(rng, grid, depth, ventricle)[brain]
    fractions = blend(csf, grey, vessel, [lesion[brain] for lesion in softened(labels)])
    return Anatomy(head, brain, surface[brain], fractions, labels)


def outline(rng: np.random.Generator, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth in mm below the brain mask and below the tissue surface, and fraction of cerebellum or stem.

    Skull stripping includes the clefts between the parts of the brain: there the mask has CSF.
    """
    both = grid.mirrored()
    fore = np.minimum(grid.depth_in(*_CEREBRUM), grid.z + 26 - 0.12 * np.abs(grid.y + 10))  # flat base
    fore = _joined(fore, both.depth_in(*_TEMPORAL), 6)
    hind = _joined(both.depth_in(*_CEREBELLUM), grid.depth_in(*_STEM), 5)
    wobble = 1.5 * grid.field(rng, 38) + 0.6 * grid.field(rng, 10) + 0.3 * grid.field(rng, 4)
    cleft = 2.5 * np.exp(-(((hind - fore) / 2.5) ** 2)) * (grid.y > 5)  # the tentorium
    tissue = np.maximum(fore, hind) - cleft + wobble - 0.4 * (1 + grid.field(rng, 14))
    return _joined(fore, hind, 4) + wobble, tissue, soft_step(hind - fore, 0.5)


def _joined(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Depth in the union of two bodies, with a rounded crease between them."""
    near = np.clip(blend_mm - np.abs(a - b), 0, None)
    return np.maximum(a, b) + near * near / np.float32(4 * blend_mm)


def fold(rng: np.random.Generator, grid: Grid, depth: np.ndarray, hindbrain: np.ndarray) -> np.ndarray:
    """Depth in mm below the pia: distance to the outer surface or to the nearest sulcus or fissure."""
    width = rng.uniform(0.2, 0.9)  # of sulci: they widen with age
    midline = np.hypot(grid.x + 2 * grid.field(rng, 25), np.maximum(grid.depth_in(*_CALLOSUM), 0))
    below = np.minimum(depth, np.minimum(midline - 0.3, _to_sylvian_fissure(rng, grid) - 0.8) - 0.5 * width)
    deep = 14 + 5 * grid.field(rng, 20)
    core = grid.depth_in(*_CORE) + 2
    for scale_mm, part in ((9, 1.0), (5.5, 0.5)):  # main sulci, and shallow ones between them
        ends = np.maximum(np.maximum(np.minimum(depth, 1.5 * midline) - part * deep, core), 0)
        below = np.minimum(below, np.hypot(_to_sulci(rng, grid, scale_mm), ends) - width * part)
    folia = 1.3 - 2.6 * np.abs(np.sin(0.8 * (grid.z + 0.5 * grid.y) + grid.field(rng, 8)))
    cerebellum = np.minimum(depth, np.maximum(folia + 1.8, 0.3 * depth - 0.5))
    return below + hindbrain * (cerebellum - below)


def _to_sulci(rng: np.random.Generator, grid: Grid, scale_mm: float) -> np.ndarray:
    """Distance in mm to the nearest upright sheet of a random set."""
    field = grid.upright_field(rng, scale_mm)
    return np.abs(field) / np.maximum(grid.slope(field), np.float32(0.3 / scale_mm))


def _to_sylvian_fissure(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Distance in mm to the fissure above the temporal lobe; it ends 34 mm from the midline."""
    sheet = grid.z + 14 - 0.25 * (grid.y + 15) + 2.5 * grid.field(rng, 14)
    beyond = np.maximum(np.abs(grid.y + 8) - 30, 0)
    return np.sqrt(sheet**2 + beyond**2 + np.maximum(34 - np.abs(grid.x), 0) ** 2)


def ventricles(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Fraction of each voxel in a ventricle; the width of ventricles varies much between subjects."""
    width = rng.lognormal(0.1, 0.3)
    found = np.zeros(grid.shape, np.float32)
    wobble = 0.8 * grid.field(rng, 10)
    for centre, (x, y, z) in _VENTRICLES:
        _put(found, grid, (centre, (x * width, y, z * width**0.5)), wobble, 1.0)
    return found


def nuclei(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Fraction of deep grey matter."""
    found = np.zeros(grid.shape, np.float32)
    wobble = grid.field(rng, 8)
    for part, fraction in _NUCLEI:
        _put(found, grid, part, wobble, fraction)
    return found


def _put(found: np.ndarray, grid: Grid, part: Ellipsoid, wobble: np.ndarray, fraction: float) -> None:
    """Set `found` to at least `fraction` inside an ellipsoid, on both sides of the head."""
    (x, y, z), radii = part
    for centre in ((x, y, z), (-x, y, z)):
        box = grid.box(centre, [r + 10 for r in radii])
        inside = fraction * soft_step(grid.depth_in(centre, radii, box) + wobble[box], 1.0)
        found[box] = np.maximum(found[box], inside)


def vessels(rng: np.random.Generator, grid: Grid, depth: np.ndarray, ventricle: np.ndarray) -> np.ndarray:
    """Fraction of healthy tissue that takes up contrast agent: vessels, sagittal sinus, choroid plexus."""
    tubes = np.exp(-((grid.field(rng, 13) / 0.07) ** 2) - (grid.field(rng, 13) / 0.07) ** 2)
    small = 0.9 * tubes * np.clip(1.2 - depth / 25, 0.1, 1)
    sinus = np.exp(-((grid.x / 2) ** 2)) * ((depth < 2) & (grid.z > 0))
    plexus = 0.6 * ventricle * (grid.field(rng, 5) > 1.2) * (grid.y > 5)
    return np.maximum(np.maximum(small, sinus), plexus)


def softened(labels: np.ndarray) -> list[np.ndarray]:
    """Fractions of oedema, necrosis and enhancing tumour, with borders about a voxel wide."""
    occupied = [np.flatnonzero(labels.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(slice(max(0, o[0] - 4), o[-1] + 5) if len(o) else slice(0, 1) for o in occupied)
    found = [np.zeros(labels.shape, np.float32) for _ in range(3)]
    for fraction, label in zip(found, (ED, NETC, ET)):
        fraction[box] = gaussian_filter((labels[box] == label).astype(np.float32), 0.8)
    found[0] *= 0.85  # the tissue below oedema remains visible
    return found


def blend(csf: np.ndarray, grey: np.ndarray, vessel: np.ndarray, lesions: Sequence[np.ndarray]) -> np.ndarray:
    """Fractions (T, N) of TISSUES with sum 1; lesions replace the anatomy."""
    healthy = np.clip(1 - (lesions[0] + lesions[1] + lesions[2]), 0, 1)
    vessel = vessel * healthy
    csf = csf * (healthy - vessel)
    grey = grey * (healthy - vessel - csf)
    return np.stack([csf, grey, healthy - vessel - csf - grey, *lesions, vessel]).astype(np.float32)
