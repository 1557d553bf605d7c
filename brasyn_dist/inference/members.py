"""From `--weights` to members: the models, on their device, and the views that they may run over."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from brasyn_dist.brats import VIEWS
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.synthesis import Member, Precision
from brasyn_dist.inference.weights_config import InferenceConfig, Weights, load_inference
from brasyn_dist.models.generator import Generator, default_execution
from brasyn_dist.models.pretrained import CONFIG_FILE, export_folder, read_config


def load_members(
    weights: Weights | InferenceConfig,
    device: torch.device,
    views: Sequence[str] | None = None,
    any_view: bool = False,
) -> tuple[Member, ...]:
    """One member for each model that `weights` names (see inference/weights_config.py) and each view that `choose_views` gives it.

    Sorted by view, then by hash, whatever the order asked for: sums depend on it. A model of several views is loaded once.
    Raises CheckpointError if a model is not intact, ConfigError for views that it was not trained on, or the same twice.
    """
    plan = weights if isinstance(weights, InferenceConfig) else load_inference(weights, views, any_view)
    members: list[Member] = []
    for entry in plan.members:
        folder = export_folder(Path(entry.weights))
        config = read_config(folder / CONFIG_FILE)
        chosen = choose_views(config["views"], entry.views, plan.any_view, folder)
        generator = Generator.from_pretrained(folder, encoder_execution=default_execution(device)).to(device)
        members += [Member(view, generator, folder, config["weights_sha256"]) for view in chosen]
    for (view, digest), count in Counter((m.view, m.weights_sha256) for m in members).items():
        if count > 1:
            raise ConfigError(f"the {view} view of one model is given {count} times (weights {digest[:12]})")
    return tuple(sorted(members, key=lambda m: (VIEWS.index(m.view), m.weights_sha256)))


def choose_views(
    trained: Sequence[str], wanted: Sequence[str] | None, any_view: bool, folder: Path
) -> tuple[str, ...]:
    """Views to run over, in the order of `VIEWS`.

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
