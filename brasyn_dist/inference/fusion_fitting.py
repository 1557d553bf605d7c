"""Fitting a fusion on complete cases: each modality is synthesised as if it were missing, and compared with the real one.

    cases --sample_case--> voxels of every member, of the inputs, of the truth --fit_weights--> WeightedFusion
                                                                               --fit_network--> LearnedFusion
                                                          compare: mean absolute error on cases that a fit has not seen

Every case and modality counts the same: as many voxels are drawn from each, by numbers that depend on (seed, case, target).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.brats import MODALITIES
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.errors import DataError
from brasyn_dist.inference.fusion import Fusion, LearnedFusion, WeightedFusion, build_network
from brasyn_dist.inference.synthesis import Member, Precision, brain_mask, member_volumes
from brasyn_dist.preprocessing.statistics import Statistics

FOLDS = 4
"""Largest number of parts that cases are dealt into for the comparison."""
RIDGE = 1e-9
"""Relative; makes members that are equal share their weight instead of failing."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Voxels of one case and target modality, in the units of the files."""

    case: str
    target: str
    views_NV: np.ndarray
    """float32, as the members made them."""
    inputs_NM: np.ndarray
    """Integers; the target's column is the truth."""

    @property
    def real_N(self) -> np.ndarray:
        return self.inputs_NM[:, MODALITIES.index(self.target)].astype(np.float32)


@dataclass(frozen=True)
class NetworkOptions:
    """How the fusion network is trained."""

    hidden: int = 16
    """Channels of its two hidden layers."""
    steps: int = 600
    batch: int = 8192
    """Voxels a step."""
    rate: float = 3e-3
    """Adam's at the start; it falls to 0 by a cosine."""
    seed: int = 0


def sample_case(
    members: Sequence[Member],
    volumes: CaseVolumes,
    voxels: int,
    seed: int,
    batch_size: int | None = None,
    precision: Precision = "no",
) -> list[Sample]:
    """One sample for each target modality, of at most `voxels` voxels of its brain, all other modalities being given."""
    device = next(members[0].generator.parameters()).device
    images = torch.from_numpy(volumes.images).to(device)
    samples = []
    for number, target in enumerate(MODALITIES):
        available = [m for m in MODALITIES if m != target]
        made_VXYZ = member_volumes(
            members, images, available, target, batch_size=batch_size, precision=precision
        )
        # Where the volume pipeline writes 0 whatever is fused, there is nothing to learn.
        inside = (brain_mask(images, available) & (images[number] > 0)).cpu().numpy()
        chosen = draw(np.flatnonzero(inside), voxels, seed, f"{volumes.case.name} {target}")
        if len(chosen) == 0:
            raise DataError(f"{volumes.case.folder}: {target} has no brain; leave the case out")
        views_NV = made_VXYZ.flatten(1)[:, torch.from_numpy(chosen).to(device)].T.cpu().numpy()
        inputs_NM = volumes.images.reshape(len(MODALITIES), -1)[:, chosen].T
        samples.append(Sample(volumes.case.name, target, views_NV, np.ascontiguousarray(inputs_NM)))
    return samples


def draw(candidates: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """At most `count` of the candidates, a function of (seed, name)."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    words = np.asarray(np.random.Philox(key=key).random_raw(len(candidates)))
    return candidates[np.sort(np.argsort(words, kind="stable")[:count])]


# ---- weights


def fit_weights(samples: Sequence[Sample]) -> WeightedFusion:
    """For each target modality, the convex combination with the smallest mean squared error over cases.

    Raises DataError if a modality has no sample.
    """
    weights = {}
    for target in MODALITIES:
        moments = [error_moments(s) for s in samples if s.target == target]
        if not moments:
            raise DataError(f"no case to fit the weights of {target} on")
        weights[target] = tuple(float(w) for w in simplex_weights(np.mean(moments, axis=0)))
    return WeightedFusion(weights)


def error_moments(sample: Sample) -> np.ndarray:
    """(V, V) mean of e e^T, e being the members' errors at a voxel: w^T E w is the error of weights w that add up to 1."""
    errors_NV = sample.views_NV.astype(np.float64) - sample.real_N[:, None]
    return errors_NV.T @ errors_NV / len(errors_NV)


def simplex_weights(moments_VV: np.ndarray) -> np.ndarray:
    """The w >= 0 with sum 1 that minimises w^T E w, exactly: the best among all sets of members that share the weight.

    On one set, w is E^-1 1 / (1^T E^-1 1) (Bates and Granger, 1969). A set whose solution has a negative weight is passed
    over; the optimum is then on a smaller one.
    """
    count = len(moments_VV)
    matrix = moments_VV + RIDGE * max(float(np.trace(moments_VV)), 1e-30) * np.eye(count)
    best, smallest = np.eye(count)[0], np.inf
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            solved = np.linalg.solve(matrix[np.ix_(chosen, chosen)], np.ones(size))
            weights = np.zeros(count)
            weights[list(chosen)] = solved / solved.sum()
            error = float(weights @ matrix @ weights)
            if weights.min() >= 0 and error < smallest:
                best, smallest = weights, error
    return best


# ---- network


def fit_network(
    samples: Sequence[Sample], statistics: Statistics, options: NetworkOptions | None = None
) -> LearnedFusion:
    """A fusion network trained for the mean absolute error, in units of the target's deviation; on the CPU.

    A function of the samples and the seed. Raises DataError if there is no sample.
    """
    options = options or NetworkOptions()
    if not samples:
        raise DataError("no case to fit a fusion network on")
    network = build_network(samples[0].views_NV.shape[1], options.hidden, options.seed)
    fusion = LearnedFusion(network, statistics)
    rows = [training_rows(fusion, s) for s in samples]
    columns = [torch.cat(parts) for parts in zip(*rows)]
    optimiser = torch.optim.Adam(network.parameters(), lr=options.rate)
    for step in range(options.steps):
        optimiser.param_groups[0]["lr"] = options.rate * 0.5 * (1 + np.cos(np.pi * step / options.steps))
        chosen_B = draw_rows(len(columns[0]), options.batch, options.seed, step)
        views, inputs, targets, real = (column[chosen_B] for column in columns)
        loss = (network(views, inputs, targets) - real).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    return fusion


def training_rows(fusion: LearnedFusion, sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the network sees of a sample, and the truth, normalised."""
    number = MODALITIES.index(sample.target)
    seen = fusion.rows(torch.from_numpy(sample.views_NV), torch.from_numpy(sample.inputs_NM), number)
    normaliser = fusion.normaliser
    real_N = (torch.from_numpy(sample.real_N) - normaliser.mean_M[number]) / normaliser.std_M[number]
    return *seen, real_N


def draw_rows(rows: int, count: int, seed: int, step: int) -> Tensor:
    """(count,) row numbers of a step, drawn with replacement: a function of (seed, step)."""
    words = np.random.Philox(key=np.array([seed % 2**64, step], np.uint64)).random_raw(count)
    return torch.from_numpy(((words >> np.uint64(32)) * np.uint64(rows) >> np.uint64(32)).astype(np.int64))


# ---- comparison


def compare(
    samples: Sequence[Sample], names: Sequence[str], fit: Callable[[Sequence[Sample]], Fusion]
) -> dict[str, dict[str, float]] | None:
    """Mean absolute error by target modality: of each member (by `names`), of their mean, of the fusion, in the files' units.

    The fusion is scored on cases that its fit has not seen: cases are dealt into at most `FOLDS` parts, each scored by a
    fit on the others. None for a single case.
    """
    cases = sorted({s.case for s in samples})
    folds = min(FOLDS, len(cases))
    if folds < 2:
        return None
    errors: dict[str, list[dict[str, float]]] = {target: [] for target in MODALITIES}
    for fold in range(folds):
        unseen = set(cases[fold::folds])
        fusion = fit([s for s in samples if s.case not in unseen])
        for sample in (s for s in samples if s.case in unseen):
            errors[sample.target].append(errors_of(sample, names, fusion))
    return {
        target: {name: float(np.mean([e[name] for e in entries])) for name in entries[0]}
        for target, entries in errors.items()
    }


def errors_of(sample: Sample, names: Sequence[str], fusion: Fusion) -> dict[str, float]:
    """Mean absolute errors of one sample by method."""
    # A fusion takes volumes: the voxels, as a column.
    views = torch.from_numpy(sample.views_NV.T[..., None, None].copy())
    inputs = torch.from_numpy(sample.inputs_NM.T[..., None, None].copy())
    available = [m for m in MODALITIES if m != sample.target]
    fused = fusion(views, inputs, available, sample.target).flatten().numpy()
    columns = dict(zip(names, sample.views_NV.T)) | {"mean": sample.views_NV.mean(1), "fused": fused}
    return {name: float(np.abs(values - sample.real_N).mean()) for name, values in columns.items()}


def case_names(samples: Iterable[Sample]) -> list[str]:
    return sorted({s.case for s in samples})
