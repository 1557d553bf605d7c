"""Fit the weights by which several views are fused: `brasyn fit-fusion --weights W [W ...] --cases DIR --out FILE.json`.

Synthesises every modality of complete validation cases, as if it were missing, with each model and view, and fits on that
  --kind weights   one weight for each view and target modality (least squares; at least 0, with sum 1)
  --kind network   1 x 1 x 1 convolutions over the views' outputs and the inputs (with FILE.safetensors beside FILE.json)
Prints the mean absolute errors of each view, of their mean and of the fusion, on cases that the fit has not seen. Give cases
that the models were not trained on. Use the file by `brasyn infer ... --fusion FILE.json`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import BadParameter, Option

from brasyn_dist.cli.command import Command, Precision, View
from brasyn_dist.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class FitFusionOptions:
    """Options of `brasyn fit-fusion`."""

    weights: Annotated[list[str], Option("--weights", metavar="W...", help="As of `brasyn infer`.")]
    cases: Annotated[Path, Option("--cases", metavar="DIR", help="Folder of complete cases.")]
    out: Annotated[Path, Option("--out", metavar="FILE", help="File to write, ending in .json.")]
    kind: Annotated[Literal["weights", "network"], Option("--kind", help="What is fitted.")] = "weights"
    views: Annotated[
        list[View] | None,
        Option("--views", help="Views to run over.  [default: all that a model was trained on]"),
    ] = None
    any_view: Annotated[bool, Option("--any-view", help="Allow views that a model was not trained on.")] = (
        False
    )
    voxels: Annotated[int, Option("--voxels", min=1, help="Random voxels of each case and modality.")] = 20000
    steps: Annotated[int, Option("--steps", min=1, help="Training steps of a network.")] = 600
    seed: Annotated[int, Option("--seed", min=0, help="Seed of the choice of voxels.")] = 0
    batch_size: Annotated[
        int | None,
        Option("--batch-size", min=1, help="Slices at a time.  [default: 16 on GPUs, 4 on CPUs]"),
    ] = None
    precision: Annotated[Precision, Option("--precision", help="Autocast.")] = "no"
    device: Annotated[
        str | None, Option("--device", help="Such as cpu or cuda:1.  [default: a GPU if there is one]")
    ] = None

    def __post_init__(self) -> None:
        if self.out.suffix != ".json":
            raise BadParameter("--out must end in .json")


def run(options: FitFusionOptions) -> None:
    """Fit, compare on unseen cases, write the file."""
    from brasyn_dist.brats import MODALITIES
    from brasyn_dist.inference.fusion import Fusion, describe_members
    from brasyn_dist.inference.fusion_fitting import (
        NetworkOptions,
        Sample,
        case_names,
        compare,
        fit_network,
        fit_weights,
        sample_case,
    )
    from brasyn_dist.inference.members import choose_device, load_members

    device = choose_device(options.device, options.precision)
    members = load_members(
        options.weights, device, options.views and [str(view) for view in options.views], options.any_view
    )
    if len(members) < 2:
        raise ConfigError(
            f"one member ({members[0].view}) has nothing to be fused with; give several views or weights"
        )
    statistics = members[0].preprocessing.statistics
    settings = NetworkOptions(steps=options.steps, seed=options.seed)
    fit = (
        fit_weights
        if options.kind == "weights"
        else partial(fit_network, statistics=statistics, options=settings)
    )
    samples: list[Sample] = []
    for volumes in complete_cases(options.cases):
        samples += sample_case(
            members, volumes, options.voxels, options.seed, options.batch_size, options.precision
        )
        print(
            f"{volumes.case.name}: synthesised {', '.join(MODALITIES)} by {len(members)} members", flush=True
        )
    if not samples:
        raise DataError(f"{options.cases}: no complete case; the four modalities of a case are needed")
    names = member_names([m.view for m in members], [m.weights_sha256 for m in members])
    errors = compare(samples, names, fit)
    fusion: Fusion = fit(samples)
    facts = {
        "members": describe_members(members),
        "fit": {
            "cases": case_names(samples),
            "voxels": options.voxels,
            "seed": options.seed,
            "unseen_mae": errors,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fusion.save(options.out, facts)
    print(verdict(errors) if errors else "a single case: nothing left to compare on", flush=True)
    print(f"written: {options.out}", flush=True)


def complete_cases(folder: Path):
    """Volumes of the complete cases below a folder, one after another; what is left out is printed."""
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.nifti import read_case

    cases, problems = find_cohorts([folder])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr, flush=True)
    for case in cases:
        if case.missing:
            print(f"left out: {case.folder}: has no {', '.join(case.missing)}", file=sys.stderr, flush=True)
            continue
        yield read_case(case, segmentation=False)


def member_names(views: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """The view; with the hash's first digits where two members share it."""
    return [v if views.count(v) == 1 else f"{v} {h[:6]}" for v, h in zip(views, hashes)]


def verdict(errors: Mapping[str, Mapping[str, float]]) -> str:
    """The comparison as a table, and where the fusion is no better than the mean."""
    names = list(next(iter(errors.values())))
    lines = [
        "mean absolute error on cases that the fit has not seen",
        f"{'':<6}" + "".join(f"{n:>18}" for n in names),
    ]
    lines += [f"{t:<6}" + "".join(f"{row[n]:>18.3f}" for n in names) for t, row in errors.items()]
    worse = [target for target, row in errors.items() if row["fused"] >= row["mean"]]
    if worse:
        lines.append(f"no better than the mean for {', '.join(worse)}")
    return "\n".join(lines)


main = Command("fit-fusion", FitFusionOptions, run, lists=("--weights", "--views"))
