"""Coordinates of a head, and smooth random fields on them.

All anatomy is described in millimetres of a full-size head around the brain's middle: x to the left, y to the
back, z up (the directions in which indices of an LPS array grow). Smaller arrays hold a smaller head of the
same proportions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import map_coordinates

from brasyn_dist.brats import VOLUME_SHAPE

MIDDLE = (0.494, 0.535, 0.475)
"""Middle of the brain in a BraTS volume, as fractions of its shape (mean of ten subjects)."""
REACH = ((-70, 70), (-89, 89), (-74, 72))
"""Box around every head, in mm from the middle."""
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Grid:
    """Coordinates of the voxels of a box.

    `x`, `y`, `z` are float32 mm and broadcast to `shape`. The box begins at voxel `origin` of the volume.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    shape: tuple[int, int, int]
    origin: tuple[int, int, int]
    voxels_per_mm: tuple[float, float, float]

    def box(self, centre: Sequence[float], reach_mm: Sequence[float]) -> Box:
        """Voxels within `reach_mm` of `centre` along each axis."""
        slices = []
        for c, reach, (low, _), voxels, n in zip(centre, reach_mm, REACH, self.voxels_per_mm, self.shape):
            first, last = int((c - reach - low) * voxels) - 1, int((c + reach - low) * voxels) + 3
            slices.append(slice(min(max(0, first), n), max(0, min(n, last))))
        return slices[0], slices[1], slices[2]

    def offsets(self, centre: Sequence[float], box: Box) -> list[np.ndarray]:
        """Offsets in mm from `centre` along x, y, z at the voxels of a box."""
        return [_cut(axis, box) - np.float32(c) for axis, c in zip((self.x, self.y, self.z), centre)]

    def distance(self, centre: Sequence[float], box: Box) -> np.ndarray:
        """Distance in mm from `centre` at the voxels of a box."""
        x, y, z = self.offsets(centre, box)
        return np.sqrt(x * x + y * y + z * z)

    def depth_in(self, centre: Sequence[float], radii: Sequence[float], box: Box | None = None) -> np.ndarray:
        """Approximate mm below the surface of an ellipsoid (negative outside)."""
        ratios = [o / np.float32(r) for o, r in zip(self.offsets(centre, box or _ALL), radii)]
        x, y, z = (r * r for r in ratios)
        level = np.sqrt(x + y + z) + np.float32(1e-6)
        a, b, c = (np.float32(1 / r**2) for r in radii)
        return level * (1 - level) / (np.sqrt(x * a + y * b + z * c) + np.float32(1e-6))

    def mirrored(self) -> "Grid":
        """The grid with the left half on both sides."""
        return replace(self, x=np.abs(self.x))

    def moved(self, move: Sequence[np.ndarray]) -> "Grid":
        """The grid whose coordinates are displaced by `move` (x, y, z)."""
        return replace(self, x=self.x + move[0], y=self.y + move[1], z=self.z + move[2])

    def field(self, rng: np.random.Generator, scale_mm: float) -> np.ndarray:
        """A random field with length scale `scale_mm`, mean 0 and standard deviation about 1."""
        steps = self._steps(scale_mm)
        return spline(rng.standard_normal(_knots(self.shape, steps), dtype=np.float32), self.shape, steps)

    def upright_field(self, rng: np.random.Generator, scale_mm: float) -> np.ndarray:
        """A random field that varies little along rays from the middle."""
        steps = self._steps(scale_mm / 3)
        axes = [
            (low + (np.arange(n) - 1) * (step / v)) / scale_mm
            for (low, _), n, step, v in zip(REACH, _knots(self.shape, steps), steps, self.voxels_per_mm)
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        level = np.sqrt(x**2 + (0.8 * y) ** 2 + z**2) * (scale_mm / 66)  # 1 at the surface
        noise = rng.standard_normal(
            [2 * int(n * 1.7) + 9 for n in (70 / scale_mm, 89 / scale_mm, 74 / scale_mm)]
        )
        stretch = np.clip(level, 0.35, None) ** -0.65
        places = [a * stretch + n / 2 for a, n in zip((x, y, z), noise.shape)]
        knots = map_coordinates(noise.astype(np.float32), places, order=1, mode="wrap")
        return spline(knots, self.shape, steps)

    def slope(self, field: np.ndarray) -> np.ndarray:
        """Length of the gradient of a field, per mm."""
        x, y, z = ((g * np.float32(v)) ** 2 for g, v in zip(np.gradient(field), self.voxels_per_mm))
        return np.sqrt(x + y + z)

    def _steps(self, scale_mm: float) -> list[float]:
        return [max(1.5, scale_mm * v) for v in self.voxels_per_mm]


_ALL: Box = (slice(None), slice(None), slice(None))


def _cut(axis: np.ndarray, box: Box) -> np.ndarray:
    """Part of a coordinate, which may have length 1 along axes that it does not depend on."""
    return axis[tuple(part if n > 1 else slice(None) for part, n in zip(box, axis.shape))]


def make_grid(rng: np.random.Generator, shape: Sequence[int] = VOLUME_SHAPE) -> Grid:
    """The box of a head of random size and position in a volume of this shape."""
    scale = np.asarray(shape) / VOLUME_SHAPE
    middle = MIDDLE * np.asarray(shape) + rng.normal(0, 1.5, 3) * scale
    per_mm = scale * np.clip(rng.normal(1, 0.025, 3), 0.93, 1.04)
    low = np.maximum(0, np.floor(middle + [r[0] for r in REACH] * per_mm)).astype(int)
    high = np.minimum(shape, np.ceil(middle + [r[1] for r in REACH] * per_mm)).astype(int)
    axes = [((np.arange(a, b) - m) / p).astype(np.float32) for a, b, m, p in zip(low, high, middle, per_mm)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    lengths = (len(axes[0]), len(axes[1]), len(axes[2]))
    return Grid(x, y, z, lengths, tuple(low.tolist()), tuple(per_mm.tolist()))


def _knots(shape: Sequence[int], steps: Sequence[float]) -> list[int]:
    return [int(np.ceil(n / step)) + 3 for n, step in zip(shape, steps)]


def spline(knots: np.ndarray, shape: Sequence[int], steps: Sequence[float]) -> np.ndarray:
    """Cubic B-spline float32 through a coarse grid of coefficients, one for every `steps` voxels.

    Unit normal coefficients give a standard deviation of about 1.
    """
    x, y, z = (_spline_weights(n, k, step) for n, k, step in zip(shape, knots.shape, steps))
    return y @ np.tensordot(x, knots, (1, 0)) @ z.T / np.float32(_SPLINE_STD**3)


_SPLINE_STD = 0.69
"""Standard deviation, per axis, of a cubic B-spline through unit normal coefficients."""


def _spline_weights(points: int, knots: int, step: float) -> np.ndarray:
    """(points, knots): cubic B-spline weights of each point."""
    distance = np.abs(np.arange(points)[:, None] / step - (np.arange(knots)[None] - 1))
    near, far = distance < 1, (distance >= 1) & (distance < 2)
    weights = np.where(near, 2 / 3 - distance**2 + distance**3 / 2, 0.0)
    return np.where(far, (2 - distance) ** 3 / 6, weights).astype(np.float32)


def soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """Partial volume at a border: from 0 to 1 where `value` passes 0, linear over `width` on either side."""
    return np.clip(value / np.float32(2 * width) + np.float32(0.5), 0, 1)
