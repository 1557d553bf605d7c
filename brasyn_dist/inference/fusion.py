"""Weighted fusion of the members' volumes; fitted by fit_fusion.py and used by `infer --fusion FILE`.

The fused volume is a convex combination of the members' volumes, with one set of weights for each target
modality. The file is JSON and names the members (view and hash of the weights) that it was fitted for. It is
refused for other members.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brasyn_dist.common.files import read_text, write_json
from brasyn_dist.errors import CheckpointError
from brasyn_dist.inference.synthesis import Member

FORMAT = "brasyn_dist.fusion"
FORMAT_VERSION = 1
KIND = "weights"


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
