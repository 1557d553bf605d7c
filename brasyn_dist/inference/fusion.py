"""Weighted fusion of the members' volumes: fitted by `brasyn fit-fusion`, used by `infer --fusion FILE`.

    cases --sample_case--> voxels of every member and of the real volume --fit_weights--> WeightedFusion
                                   |
                                   +--cross_validate--> mean absolute error on cases that a fit has not seen

The fused volume is a convex combination of the members' volumes, with one set of weights for each target
modality. The file is JSON and names the members (view and hash of the weights) that it was fitted for. It is
refused for other members.

Every case and modality has the same weight in a fit: the same number of voxels is drawn from each, as a
function of (seed, case, target).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.common.files import read_text, write_json
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.synthesis import (
    PLAIN,
    Member,
    SynthesisOptions,
    brain_mask,
    member_volumes,
)

FORMAT = "brasyn_dist.fusion"
FORMAT_VERSION = 1
KIND = "weights"
FOLDS = 4
"""Largest number of folds of the cross-validation."""
RIDGE = 1e-9
"""Relative; equal members share their weight instead of giving a singular matrix."""


@dataclass(frozen=True)
class WeightedFusion:
    """`weights[target]`: one weight for each member, at least 0, with sum 1."""

    weights: dict[str, tuple[float, ...]]

    def __call__(self, volumes_VXYZ: Tensor, target: str) -> Tensor:
        """(x, y, z) weighted sum of the members' volumes (V, x, y, z)."""
        weights_V = torch.tensor(self.weights[target], dtype=volumes_VXYZ.dtype, device=volumes_VXYZ.device)
        return torch.tensordot(weights_V, volumes_VXYZ, dims=1)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the file; `facts` (JSON) are added to it."""
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": KIND}
        weights = {target: list(values) for target, values in self.weights.items()}
        write_json(path, header | {"weights": weights} | dict(facts))


def describe_members(members: Sequence[Member]) -> list[dict[str, str]]:
    """View and hash of the weights of each member: equal for equal members in any folder."""
    return [{"view": m.view, "weights_sha256": m.weights_sha256} for m in members]


def load_fusion(path: Path | str, members: Sequence[Member]) -> WeightedFusion:
    """Read the fusion in a file.

    Raises:
        DataError: The file cannot be read.
        CheckpointError: It is damaged, was fitted for other members, or has a kind that is no longer
            supported.
    """
    path = Path(path)
    try:
        values = json.loads(read_text(path, "make one with `brasyn fit-fusion`"))
        if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {values['format']} {values['format_version']}")
        if values["kind"] != KIND:
            raise CheckpointError(
                f"{path}: fusions of kind {values['kind']!r} are no longer supported; "
                "fit weights by `brasyn fit-fusion`"
            )
        _check_members(values["members"], members, path)
        targets = members[0].modality_set.modalities
        return WeightedFusion({t: _checked(values["weights"][t], t, len(members)) for t in targets})
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: no fusion of {FORMAT} version {FORMAT_VERSION} ({error}); "
            "make it with `brasyn fit-fusion`"
        ) from None


def _check_members(fitted: Sequence[Mapping[str, str]], members: Sequence[Member], path: Path) -> None:
    now = describe_members(members)
    if list(fitted) != now:
        old, new = (
            ", ".join(f"{m['view']} of weights {m['weights_sha256'][:12]}" for m in side)
            for side in (fitted, now)
        )
        raise CheckpointError(
            f"{path} was fitted for other members ({old}; now {new}); fit it again, or leave --fusion out"
        )


def _checked(values: Sequence[float], target: str, count: int) -> tuple[float, ...]:
    weights = tuple(map(float, values))
    if len(weights) != count or min(weights) < 0 or not abs(sum(weights) - 1) <= 1e-6:  # NaN, too
        raise ValueError(f"weights of {target} {weights}: expected {count}, at least 0, adding up to 1")
    return weights


@dataclass(frozen=True, eq=False)
class VoxelSample:
    """Voxels of one case and target modality, in the units of the files."""

    case: str
    target: str
    views_NV: np.ndarray
    """float32, of each member."""
    real_N: np.ndarray
    """float32, of the real volume."""


def sample_case(
    members: Sequence[Member],
    volumes: CaseVolumes,
    voxels: int,
    seed: int,
    options: SynthesisOptions = PLAIN,
) -> list[VoxelSample]:
    """One sample for each target: at most `voxels` brain voxels, synthesised from all other modalities."""
    device = next(members[0].generator.parameters()).device
    images = torch.from_numpy(volumes.images).to(device)
    modality_set = members[0].modality_set
    samples = []
    for number, target in enumerate(modality_set.modalities):
        available = [m for m in modality_set.modalities if m != target]
        made_VXYZ = member_volumes(members, images, available, target, options)
        # Voxels that are background whatever the weights are cannot be fitted.
        inside = (brain_mask(images, modality_set.indices(available)) & (images[number] > 0)).cpu().numpy()
        chosen = random_subset(np.flatnonzero(inside), voxels, seed, f"{volumes.case.name} {target}")
        if len(chosen) == 0:
            raise DataError(f"{volumes.case.folder}: {target} has no brain; leave the case out")
        views_NV = made_VXYZ.flatten(1)[:, torch.from_numpy(chosen).to(device)].T.cpu().numpy()
        real_N = volumes.images[number].reshape(-1)[chosen].astype(np.float32)
        samples.append(VoxelSample(volumes.case.name, target, views_NV, real_N))
    return samples


def random_subset(candidates: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """At most `count` of the candidates, as a function of (seed, name)."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    words = np.asarray(np.random.Philox(key=key).random_raw(len(candidates)))
    return candidates[np.sort(np.argsort(words, kind="stable")[:count])]


def fit_weights(samples: Sequence[VoxelSample], targets: Sequence[str]) -> WeightedFusion:
    """For each target modality, the convex combination with the smallest mean squared error over cases.

    Raises:
        DataError: A target has no sample.
    """
    weights = {}
    for target in targets:
        moments = [error_moments(s) for s in samples if s.target == target]
        if not moments:
            raise DataError(f"no case to fit the weights of {target} on")
        weights[target] = tuple(float(w) for w in simplex_weights(np.mean(moments, axis=0)))
    return WeightedFusion(weights)


def error_moments(sample: VoxelSample) -> np.ndarray:
    """(V, V) mean of e e^T, where e are the members' errors at a voxel.

    The mean squared error of weights w with sum 1 is w^T E w.
    """
    errors_NV = sample.views_NV.astype(np.float64) - sample.real_N[:, None]
    return errors_NV.T @ errors_NV / len(errors_NV)


def simplex_weights(moments_VV: np.ndarray) -> np.ndarray:
    """The w >= 0 with sum 1 that minimises w^T E w exactly: the best solution over subsets of the members.

    On one subset, w is E^-1 1 / (1^T E^-1 1) (Bates and Granger, 1969, doi:10.1057/jors.1969.103). A subset
    whose solution has a negative weight is skipped, because the optimum then lies on a smaller subset.
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


def cross_validate(
    samples: Sequence[VoxelSample],
    names: Sequence[str],
    fit: Callable[[Sequence[VoxelSample]], WeightedFusion],
) -> dict[str, dict[str, float]] | None:
    """Mean absolute error by target: of each member (by `names`), of their mean and of the fusion.

    The unit is that of the files. The fusion is scored on cases that its fit has not seen, in at most `FOLDS`
    folds of cases. None for a single case.
    """
    cases = sorted({s.case for s in samples})
    folds = min(FOLDS, len(cases))
    if folds < 2:
        return None
    errors: dict[str, list[dict[str, float]]] = {sample.target: [] for sample in samples}
    for fold in range(folds):
        unseen = set(cases[fold::folds])
        fusion = fit([s for s in samples if s.case not in unseen])
        for sample in (s for s in samples if s.case in unseen):
            errors[sample.target].append(_absolute_errors(sample, names, fusion))
    return {
        target: {name: float(np.mean([e[name] for e in entries])) for name in entries[0]}
        for target, entries in errors.items()
    }


def _absolute_errors(sample: VoxelSample, names: Sequence[str], fusion: WeightedFusion) -> dict[str, float]:
    views_V11N = torch.from_numpy(sample.views_NV.T[:, None, None, :].copy())
    fused_N = fusion(views_V11N, sample.target).flatten().numpy()
    columns = dict(zip(names, sample.views_NV.T)) | {"mean": sample.views_NV.mean(1), "fused": fused_N}
    return {name: float(np.abs(values - sample.real_N).mean()) for name, values in columns.items()}
