"""Tumours: position, displacement of tissue, and labels.

plan_lesions --> push_away (mass effect on the coordinates) --> anatomy --> grow_lesions --> labels
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from brasyn_dist.brats import ED, ET, NETC
from brasyn_dist.phantom.grid import Grid

Kind = Literal["GLI", "MET"]


@dataclass(frozen=True)
class Lesion:
    """A roughly round tumour; lengths in mm of a full-size head."""

    centre: tuple[float, float, float]
    radius: float
    """Of the core: necrosis and enhancing rim."""
    rim: float
    """Thickness of the enhancing rim; 0: no enhancement, as in many low-grade gliomas."""
    oedema: float
    """Width of the oedema around the core."""
    push: float
    """Displacement of tissue at the border of the core."""


def plan_lesions(rng: np.random.Generator, kind: Kind) -> list[Lesion]:
    """GLI: one large tumour in the white matter of a hemisphere. MET: several small ones below the cortex."""
    if kind == "MET":
        return [_metastasis(rng) for _ in range(int(rng.integers(2, 8)))]
    radius = rng.uniform(13, 24)
    rim = 0.0 if rng.random() < 0.2 else rng.uniform(2.5, 5.5)
    centre = rng.choice([-1, 1]) * rng.uniform(22, 36), rng.uniform(-45, 42), rng.uniform(-2, 34)
    return [Lesion(centre, radius, rim, rng.uniform(5, 18), rng.uniform(2, 7))]


def _metastasis(rng: np.random.Generator) -> Lesion:
    direction = rng.normal(size=3)
    x, y, z = direction / np.linalg.norm(direction) * rng.uniform(0.45, 0.75) * (60, 80, 50)
    x += np.copysign(8, x)  # not in the midline
    radius = float(np.clip(rng.lognormal(1.6, 0.4), 2.5, 13))
    rim = radius if radius < 5 else rng.uniform(2, 4)  # small ones enhance throughout
    return Lesion((x, y, z + 12), radius, rim, radius * rng.uniform(0.2, 1.6), 0.15 * radius)


def push_away(grid: Grid, lesions: list[Lesion]) -> Grid:
    """Coordinates of the tissue before the lesions grew.

    Displacement is largest at the border of the core.
    """
    moves = [np.zeros(grid.shape, np.float32) for _ in range(3)]
    for lesion in lesions:
        reach = 3.5 * lesion.radius
        box = grid.box(lesion.centre, (reach,) * 3)
        distance = grid.distance(lesion.centre, box) + np.float32(1e-3)
        shift = (
            lesion.push * np.clip(1 - distance / reach, 0, 1) ** 2 * np.clip(distance / lesion.radius, 0, 1)
        )
        for move, offset in zip(moves, grid.offsets(lesion.centre, box)):
            move[box] -= shift * offset / distance
    return grid.moved(moves)


def grow_lesions(
    rng: np.random.Generator, grid: Grid, lesions: list[Lesion], below_pia: np.ndarray, ventricle: np.ndarray
) -> np.ndarray:
    """Labels (nx, ny, nz) uint8.

    Args:
        rng: Random numbers.
        grid: Coordinates of the head.
        lesions: Tumours.
        below_pia: (nx, ny, nz) mm below the pia.
        ventricle: (nx, ny, nz) fraction of ventricle.
    """
    labels = np.zeros(grid.shape, np.uint8)
    coarse, fine, pockets = grid.field(rng, 12), grid.field(rng, 5), grid.field(rng, 3.5)
    for lesion in lesions:
        box = grid.box(lesion.centre, (1.6 * (lesion.radius + lesion.oedema) + 4,) * 3)
        rough = coarse[box] + 0.5 * fine[box]
        core = lesion.radius * (1 + 0.2 * rough) - grid.distance(lesion.centre, box)
        # Oedema follows white matter: it spares cortex and ventricles, and its width varies.
        swelling = core + lesion.oedema * (1 + 0.45 * coarse[box] + 0.2 * fine[box])
        part, free = labels[box], ventricle[box] < 0.4
        part[(swelling > 0) & (below_pia[box] > 2) & free & (part == 0)] = ED
        solid = (core > 0) & (below_pia[box] > -1)
        rim = lesion.rim * (1 + 0.5 * fine[box] + 0.4 * pockets[box])
        part[solid] = np.where(core[solid] < rim[solid], ET, NETC)
    return labels
