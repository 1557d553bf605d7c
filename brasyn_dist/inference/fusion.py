"""Fusions of several views into one volume, beside the mean; fitted by fit_fusion.py, used by `infer --fusion FILE`.

    weights   a convex combination of the members' volumes, one set of weights for each target modality
    network   1 x 1 x 1 convolutions over the members' outputs and the inputs: voxel by voxel, which member to believe
              (softmax weights), and a small correction

A file is JSON and names the members (view and hash of the weights) that it was fitted for; with others it is refused. A
network's tensors lie beside it (`<name>.safetensors`), tied to it by their hash. Its own hash stands for the whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from brasyn_dist.brats import MODALITIES
from brasyn_dist.common.files import atomic_path, sha256_of, write_json
from brasyn_dist.errors import BrasynError, CheckpointError, DataError
from brasyn_dist.inference.synthesis import Member
from brasyn_dist.models.layers import seeded_initialisation
from brasyn_dist.models.pretrained import load_tensors
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE, Normaliser
from brasyn_dist.preprocessing.statistics import Statistics

FORMAT = "brasyn_dist.fusion"
FORMAT_VERSION = 1
CHUNK = 1 << 18
"""Voxels that the network sees at a time."""


class Fusion(Protocol):
    """A `volume.Fuse` that knows how to be written."""

    def __call__(
        self, volumes_VXYZ: Tensor, images_MXYZ: Tensor, available: Sequence[str], target: str
    ) -> Tensor: ...

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write FILE (and the tensors beside it); `facts` go into it as they are."""


@dataclass(frozen=True)
class WeightedFusion:
    """`weights[target]`: one weight for each member, at least 0, adding up to 1."""

    weights: dict[str, tuple[float, ...]]

    def __call__(
        self, volumes_VXYZ: Tensor, images_MXYZ: Tensor, available: Sequence[str], target: str
    ) -> Tensor:
        weights_V = torch.tensor(self.weights[target], dtype=volumes_VXYZ.dtype, device=volumes_VXYZ.device)
        return torch.tensordot(weights_V, volumes_VXYZ, dims=1)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        weights = {target: list(values) for target, values in self.weights.items()}
        write_json(path, header("weights") | {"weights": weights} | dict(facts))


class FusionNetwork(nn.Module):
    """Two hidden 1 x 1 x 1 convolutions (as linear layers on rows of voxels); before training, it is the mean.

    Rows: the members' volumes (V), the inputs (4), both normalised, the target as one-hot (4).
    """

    def __init__(self, members: int, hidden: int) -> None:
        super().__init__()
        self.members, self.hidden = members, hidden
        self.layers = nn.Sequential(
            nn.Linear(members + 2 * len(MODALITIES), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.output = nn.Linear(hidden, members + 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, views_NV: Tensor, inputs_NM: Tensor, target_NM: Tensor) -> Tensor:
        """(N,) the fused values, normalised as the members' are."""
        values = self.output(self.layers(torch.cat([views_NV, inputs_NM, target_NM], 1)))
        return (values[:, :-1].softmax(1) * views_NV).sum(1) + values[:, -1]


@dataclass(frozen=True, eq=False)
class LearnedFusion:
    """A fusion network with the statistics that it normalises by."""

    network: FusionNetwork
    statistics: Statistics
    normaliser: Normaliser = field(init=False)

    def __post_init__(self) -> None:
        device = next(self.network.parameters()).device
        object.__setattr__(self, "normaliser", Normaliser(self.statistics, device))

    @torch.inference_mode()
    def __call__(
        self, volumes_VXYZ: Tensor, images_MXYZ: Tensor, available: Sequence[str], target: str
    ) -> Tensor:
        if len(available) < len(MODALITIES) - 1:
            raise DataError(
                f"only {', '.join(available)} given: a fusion network is fitted with three modalities; synthesise such "
                "cases without --fusion, or with one of `--kind weights`, into another folder"
            )
        fused_XYZ = torch.zeros_like(volumes_VXYZ[0])
        voxels = (volumes_VXYZ > 0).any(0).nonzero(as_tuple=True)
        for part in zip(*(index.split(CHUNK) for index in voxels)):
            views_NV = volumes_VXYZ[:, *part].T
            fused_XYZ[part] = self.fuse_rows(views_NV, images_MXYZ[:, *part].T, target)
        return fused_XYZ

    def fuse_rows(self, views_NV: Tensor, inputs_NM: Tensor, target: str) -> Tensor:
        """(N,) fused intensities of voxels, from the members' (N, V) and the inputs' (N, 4) ones."""
        number = MODALITIES.index(target)
        fused_N = self.network(*self.rows(views_NV, inputs_NM, number))
        return self.normaliser.denormalise(fused_N, number)

    def rows(self, views_NV: Tensor, inputs_NM: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees: normalised views, normalised inputs without the target, the target as one-hot."""
        normaliser = self.normaliser
        views = (views_NV - normaliser.mean_M[number]) / normaliser.std_M[number]
        inputs = normaliser(inputs_NM[:, :, None, None])[:, :, 0, 0]
        inputs[:, number] = BACKGROUND_VALUE
        targets = torch.full((len(inputs),), number, device=inputs.device)
        return views, inputs, F.one_hot(targets, len(MODALITIES)).to(inputs.dtype)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        tensors = {
            name: t.detach().float().cpu().contiguous() for name, t in self.network.state_dict().items()
        }
        with atomic_path(tensors_beside(path)) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
            digest = sha256_of(temporary)
        values = {
            "hidden": self.network.hidden,
            "statistics": self.statistics.to_dict(),
            "weights_sha256": digest,
        }
        write_json(path, header("network") | values | dict(facts))


def build_network(members: int, hidden: int, seed: int) -> FusionNetwork:
    with seeded_initialisation(seed, "fusion"):
        return FusionNetwork(members, hidden)


def header(kind: str) -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind}


def describe_members(members: Sequence[Member]) -> list[dict[str, str]]:
    """What tells members apart, wherever they lie: view and hash of the weights."""
    return [{"view": m.view, "weights_sha256": m.weights_sha256} for m in members]


def tensors_beside(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def load_fusion(path: Path | str, members: Sequence[Member], device: torch.device) -> Fusion:
    """The fusion in a file, for exactly these members. Raises CheckpointError if it is not whole or is for others."""
    path = Path(path)
    try:
        values = json.loads(path.read_text())
        if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {values['format']} {values['format_version']}")
        check_members(values["members"], members, path)
        if values["kind"] == "weights":
            return read_weights(values, len(members))
        return read_network(values, len(members), path, device)
    except OSError as error:
        raise CheckpointError(
            f"{path}: no fusion ({error.strerror}); make one with brasyn_dist.fit_fusion"
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: no fusion of {FORMAT} version {FORMAT_VERSION} ({error}); make it with brasyn_dist.fit_fusion"
        ) from None


def check_members(fitted: Sequence[Mapping[str, str]], members: Sequence[Member], path: Path) -> None:
    now = describe_members(members)
    if list(fitted) != now:
        old, new = (
            ", ".join(f"{m['view']} of weights {m['weights_sha256'][:12]}" for m in side)
            for side in (fitted, now)
        )
        raise CheckpointError(
            f"{path} was fitted for other members ({old}; now {new}); fit it again, or leave --fusion out"
        )


def read_weights(values: Mapping[str, Any], count: int) -> WeightedFusion:
    weights = {target: tuple(map(float, values["weights"][target])) for target in MODALITIES}
    for target, row in weights.items():
        if len(row) != count or min(row) < 0 or abs(sum(row) - 1) > 1e-6:
            raise ValueError(f"weights of {target} {row}: expected {count}, at least 0, adding up to 1")
    return WeightedFusion(weights)


def read_network(values: Mapping[str, Any], count: int, path: Path, device: torch.device) -> LearnedFusion:
    file = tensors_beside(path)
    tensors = load_tensors(file)
    if sha256_of(file) != values["weights_sha256"]:
        raise CheckpointError(f"{file} is not the file that {path.name} describes; fit the fusion again")
    try:
        statistics = Statistics.from_dict(values["statistics"], path)
    except BrasynError as error:
        raise CheckpointError(str(error)) from None
    network = FusionNetwork(count, int(values["hidden"]))
    network.load_state_dict(tensors)
    return LearnedFusion(network.to(device).eval(), statistics)
