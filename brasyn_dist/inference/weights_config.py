"""Which models run over which views: what `--weights` and `--fusion` say, in words or in a YAML file.

runs/r8                             one model, over all views that it was trained on
runs/r6:axial runs/r7:sagittal      one model a view
configs/r9.yaml                     the same, written down: `members`, and if need be `fusion` and `any_view`
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brasyn_dist.brats import VIEWS
from brasyn_dist.config import dataclass, from_dict, read_yaml
from brasyn_dist.errors import ConfigError

PathLike = Path | str
Weights = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class MemberConfig:
    """One model and its views."""

    weights: str = ""
    """Run folder or export folder, relative to where the command runs."""
    views: tuple[str, ...] = ()
    """Views that it runs over; empty: all that it was trained on."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("members: each needs `weights`, a run folder or export folder")
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown:
            raise ConfigError(f"members.views: unknown view {unknown[0]}; choose from {', '.join(VIEWS)}")


@dataclass(frozen=True)
class InferenceConfig:
    """All that decides the voxels beside the inputs and the precision."""

    members: tuple[MemberConfig, ...] = ()
    """Each of their views is run, and the results are fused."""
    fusion: str | None = None
    """File of brasyn_dist.fit_fusion; null: the mean."""
    any_view: bool = False
    """Allow views that a model was not trained on."""

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("members: empty; list at least one `weights` with its `views`")


def load_inference(
    weights: Weights,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
) -> InferenceConfig:
    """What `weights` says, with the other options laid over it. Raises ConfigError if they contradict each other."""
    words = [weights] if isinstance(weights, Path | str) else list(weights)
    files = [w for w in words if Path(w).suffix in (".yaml", ".yml")]
    if files and len(words) > 1:
        raise ConfigError(f"{files[0]}: an inference configuration stands alone, without other weights")
    if files:
        config = from_dict(InferenceConfig, read_yaml(Path(files[0])), where=str(files[0]))
    else:
        config = InferenceConfig(tuple(parse_member(word) for word in words))
    if views:
        config = replace(config, members=tuple(with_views(m, views) for m in config.members))
    chosen = config.fusion if fusion is None else str(fusion)
    return replace(config, fusion=chosen, any_view=config.any_view or any_view)


def parse_member(word: PathLike) -> MemberConfig:
    """`FOLDER` or `FOLDER:VIEW[,VIEW]`; what exists as it stands is a folder, whatever its name holds."""
    text = str(word)
    folder, colon, names = text.rpartition(":")
    if not colon or "/" in names or Path(text).exists():
        return MemberConfig(text)
    return MemberConfig(folder, tuple(names.split(",")))


def with_views(member: MemberConfig, views: Sequence[str]) -> MemberConfig:
    if member.views:
        raise ConfigError(
            f"--views {' '.join(views)}, but {member.weights} is already given {', '.join(member.views)}; say it once"
        )
    return replace(member, views=tuple(views))
