"""Ensemble: which models run over which views, and how their volumes are fused.

--weights, --views, --fusion --load_inference--> InferenceConfig --load_ensemble--> Ensemble

runs/r8                             one model, over all views that it was trained on
runs/r6:axial runs/r7:sagittal      one model for each view
configs/thesis/r9.yaml              the same in a file: `members`, and optionally `fusion` and `any_view`
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from brasyn_dist.brats import VIEWS
from brasyn_dist.common.launch_environment import LaunchContext
from brasyn_dist.config import dataclass, from_dict, read_yaml
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.fusion import load_fusion
from brasyn_dist.inference.synthesis import (
    PLAIN,
    WHOLE,
    Fuse,
    Member,
    Precision,
    StageTimer,
    SynthesisOptions,
    stack_modalities,
    synthesise_case,
)
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.pretrained import (
    CONFIG_FILE,
    REFINER,
    VOLUME,
    export_folder,
    kind_of,
    read_config,
)
from brasyn_dist.models.refiner import Refiner
from brasyn_dist.models.registry import Generator
from brasyn_dist.models.volume_unet import VolumeUNet
from brasyn_dist.preprocessing.normalisation import foreground_medians

PathLike = Path | str
Weights = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class MemberConfig:
    """One model and its views."""

    weights: str = ""
    """Run folder or export folder, relative to the working directory of the command."""
    views: tuple[str, ...] = ()
    """Views that the model runs over; empty: all that it was trained on."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("members: each needs `weights`, a run folder or export folder")
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown:
            raise ConfigError(f"members.views: unknown view {unknown[0]}; choose from {', '.join(VIEWS)}")


@dataclass(frozen=True)
class InferenceConfig:
    """Everything that decides the voxels beside the inputs and the precision."""

    members: tuple[MemberConfig, ...] = ()
    """Each of their views is run, and the results are fused."""
    fusion: str | None = None
    """File of `brasyn fit-fusion`; null: the mean."""
    any_view: bool = False
    """Allow views that a model was not trained on."""
    tta: bool = False
    """Average with the result of mirrored slices, for twice the time (test-time augmentation)."""
    refiner: str | None = None
    """Run folder or export folder of a second stage, which refines the fused volume; null: none."""

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("members: empty; list at least one `weights` with its `views`")


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Loaded members and their fusion. Calling it synthesises the targets of one case."""

    members: tuple[Member, ...]
    fuse: Fuse | None = None
    """Default: the mean."""
    options: SynthesisOptions = PLAIN
    refiner: Member | None = None

    @property
    def modality_set(self) -> ModalitySet:
        """Modalities and labels of all members."""
        return self.members[0].modality_set

    def __call__(
        self, volumes: CaseVolumes, targets: tuple[str, ...], timer: StageTimer
    ) -> dict[str, np.ndarray]:
        """Integer volume (x, y, z) for each target, from the volumes of the available modalities."""
        with timer("prepare"):
            images_MXYZ = stack_modalities(volumes.modalities, volumes.images, self.modality_set)
        return synthesise_case(
            self.members,
            images_MXYZ,
            volumes.modalities,
            targets,
            self.options,
            fuse=self.fuse,
            refiner=self.refiner,
            timer=timer,
        )

    def predict_scales(self, volumes: CaseVolumes, targets: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Predicted median of each target's foreground and its `log_error`, by the last stage."""
        preprocessing = (self.refiner or self.members[0]).preprocessing
        model = preprocessing.intensity_scale
        if preprocessing.normalisation != "case" or model is None:
            return {}
        images = torch.from_numpy(volumes.images)
        medians = foreground_medians(images, range(len(images)))[0].tolist()
        present = self.modality_set.indices(volumes.modalities)
        numbers = {target: self.modality_set.index(target) for target in targets}
        return {
            target: {
                "median": round(model.predict(present, medians, number), 2),
                "log_error": round(model.log_error(present, number), 3),
            }
            for target, number in numbers.items()
        }


def load_inference(
    weights: Weights,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
    tta: bool = False,
    refiner: PathLike | None = None,
) -> InferenceConfig:
    """The configuration that `weights` names, with the other options applied.

    Raises:
        ConfigError: The options contradict each other, or the file is not valid.
    """
    words = [weights] if isinstance(weights, Path | str) else list(weights)
    files = [w for w in words if Path(w).suffix in (".yaml", ".yml")]
    if files and len(words) > 1:
        raise ConfigError(f"{files[0]}: an inference configuration stands alone, without other weights")
    if files:
        config = from_dict(InferenceConfig, read_yaml(Path(files[0])), where=str(files[0]))
    else:
        config = InferenceConfig(tuple(_parse_member(word) for word in words))
    if views:
        config = replace(config, members=tuple(_with_views(m, views) for m in config.members))
    chosen = config.fusion if fusion is None else str(fusion)
    second = config.refiner if refiner is None else str(refiner)
    return replace(
        config, fusion=chosen, any_view=config.any_view or any_view, tta=config.tta or tta, refiner=second
    )


def _parse_member(word: PathLike) -> MemberConfig:
    """`FOLDER` or `FOLDER:VIEW[,VIEW]`; an existing path is a folder, even if its name contains a colon."""
    text = str(word)
    folder, colon, names = text.rpartition(":")
    if not colon or "/" in names or Path(text).exists():
        return MemberConfig(text)
    return MemberConfig(folder, tuple(names.split(",")))


def _with_views(member: MemberConfig, views: Sequence[str]) -> MemberConfig:
    if member.views:
        raise ConfigError(
            f"--views {' '.join(views)}, but {member.weights} is already given {', '.join(member.views)}; "
            "give the views once"
        )
    return replace(member, views=tuple(views))


def load_ensemble(
    config: InferenceConfig, device: torch.device, batch_size: int | None, precision: Precision
) -> Ensemble:
    """The members and the fusion of a configuration on a device.

    Raises as `load_members` and `load_fusion` do.
    """
    members = load_members(config, device)
    fuse = None if config.fusion is None else load_fusion(config.fusion, members)
    refiner = None if config.refiner is None else load_refiner(Path(config.refiner), members[0], device)
    return Ensemble(members, fuse, SynthesisOptions(batch_size, precision, config.tta), refiner)


def load_refiner(path: Path, first: Member, device: torch.device) -> Member:
    """The second stage in a run or export folder.

    Raises:
        CheckpointError: There is no intact refiner.
        ConfigError: Its modalities differ from those of the first stage.
    """
    folder = export_folder(path, REFINER)
    network = Refiner.from_pretrained(folder).to(device)
    exported = read_config(folder / CONFIG_FILE, REFINER)
    member = Member(WHOLE, network, folder, exported["weights_sha256"])
    check_modality_sets([first, member])
    return member


def load_members(
    weights: Weights | InferenceConfig,
    device: torch.device,
    views: Sequence[str] | None = None,
    any_view: bool = False,
) -> tuple[Member, ...]:
    """One member for each model that `weights` names and each of its views.

    The members are sorted by view and hash, because floating-point sums depend on the order. A model of
    several views is loaded once.

    Raises:
        CheckpointError: A model is not intact.
        ConfigError: A model was not trained on a view, a view of a model is given twice, or the modalities of
            the models differ.
    """
    config = weights if isinstance(weights, InferenceConfig) else load_inference(weights, views, any_view)
    members: list[Member] = []
    for entry in config.members:
        folder = export_folder(Path(entry.weights))
        kind = kind_of(folder / CONFIG_FILE)
        if kind == REFINER:
            raise ConfigError(f"{folder} is a refiner: give it as --refiner, with a first stage as --weights")
        if kind == VOLUME:
            if entry.views:
                raise ConfigError(f"{folder} is a network of volumes and has no views; leave them out")
            exported = read_config(folder / CONFIG_FILE, VOLUME)
            network = VolumeUNet.from_pretrained(folder).to(device)
            members.append(Member(WHOLE, network, folder, exported["weights_sha256"]))
            continue
        exported = read_config(folder / CONFIG_FILE)
        chosen = choose_views(exported["views"], entry.views, config.any_view, folder)
        generator = Generator.from_pretrained(folder).to(device)
        members += [Member(view, generator, folder, exported["weights_sha256"]) for view in chosen]
    for (view, digest), count in Counter((m.view, m.weights_sha256) for m in members).items():
        if count > 1:
            raise ConfigError(f"the {view} view of one model is given {count} times (weights {digest[:12]})")
    check_modality_sets(members)
    return tuple(sorted(members, key=lambda m: ((*VIEWS, WHOLE).index(m.view), m.weights_sha256)))


def check_modality_sets(members: Sequence[Member]) -> None:
    """Raise ConfigError unless all members have the same modalities."""
    sets = {m.folder: m.modality_set.modalities for m in members}
    if len(set(sets.values())) > 1:
        given = "; ".join(f"{folder}: {', '.join(names)}" for folder, names in sets.items())
        raise ConfigError(f"the models have different modalities ({given}); give models of one modality set")


def choose_views(
    trained: Sequence[str], wanted: Sequence[str] | None, any_view: bool, folder: Path
) -> tuple[str, ...]:
    """Views to run over, in the order of `VIEWS`; by default those that the model was trained on.

    Other views give worse images without a visible sign, so they need `any_view`. Models without recorded
    views (converted ones) run over any view, by default axial.
    """
    unknown = sorted(set(wanted or ()) - set(VIEWS))
    if unknown:
        raise ConfigError(f"unknown view {unknown[0]}; choose from {', '.join(VIEWS)}")
    chosen = tuple(view for view in VIEWS if view in (wanted or trained or VIEWS[:1]))
    untrained = [view for view in chosen if trained and view not in trained]
    if untrained and not any_view:
        raise ConfigError(
            f"{folder} was trained on {', '.join(trained)} slices, not on {', '.join(untrained)} ones; "
            "leave --views out, or give --any-view to run it nevertheless"
        )
    return chosen


def choose_device(name: str | None, precision: Precision) -> torch.device:
    """The device named, or the first GPU, or the CPU.

    Raises ConfigError if it is absent or cannot do `precision`.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}); leave --device out, or give cpu"
        ) from None
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; use bf16 or no")
    return device


def own_device(context: LaunchContext) -> str | None:
    """Name of the k-th GPU for the k-th process of a node; None if there are fewer than two GPUs."""
    count = torch.cuda.device_count()
    return f"cuda:{context.local_rank % count}" if count > 1 else None
