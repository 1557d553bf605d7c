"""From `--weights` to members: the model, on its device, and the views that it may run over."""

from collections.abc import Sequence
from pathlib import Path

import torch

from brasyn_dist.brats import VIEWS
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.volume import Member, Precision
from brasyn_dist.models.export import CONFIG_FILE, export_folder, load_pretrained, read_config
from brasyn_dist.models.generator import default_execution


def load_members(
    weights: Path | str, device: torch.device, views: Sequence[str] | None = None, any_view: bool = False
) -> tuple[Member, ...]:
    """One member for each view that `choose_views` gives, all of the model in a run or export folder.

    Raises CheckpointError if there is no intact model, ConfigError for views that it was not trained on.
    """
    folder = export_folder(Path(weights))
    config = read_config(folder / CONFIG_FILE)
    chosen = choose_views(config["views"], views, any_view, folder)
    generator = load_pretrained(folder, default_execution(device)).to(device)
    return tuple(Member(view, generator, folder, config["weights_sha256"]) for view in chosen)


def choose_views(
    trained: Sequence[str], wanted: Sequence[str] | None, any_view: bool, folder: Path
) -> tuple[str, ...]:
    """Views to run over, in the order of `VIEWS` whatever the order asked for: sums depend on it.

    By default those that the model was trained on. Others make worse images that look no different from good ones, so
    they take an explicit `any_view`. Models that do not tell their views (converted ones) run over any, by default axial.
    """
    unknown = sorted(set(wanted or ()) - set(VIEWS))
    if unknown:
        raise ConfigError(f"unknown view {unknown[0]}; choose from {', '.join(VIEWS)}")
    chosen = tuple(view for view in VIEWS if view in (wanted or trained or VIEWS[:1]))
    untrained = [view for view in chosen if trained and view not in trained]
    if untrained and not any_view:
        raise ConfigError(
            f"{folder} was trained on {', '.join(trained)} slices, not on {', '.join(untrained)} ones; leave --views out, "
            "or give --any-view to run it nevertheless"
        )
    return chosen


def choose_device(name: str | None, precision: Precision) -> torch.device:
    """The device named, or the first GPU, or the CPU. Raises ConfigError if it is absent or cannot do `precision`."""
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
