"""Fit how several views are fused: `python -m brasyn_dist.fit_fusion --weights W [W ...] --cases DIR --out FILE.json`.

Synthesises every modality of complete validation cases, as if it were missing, with each model and view, and fits on that
  --kind weights   one weight for each view and target modality (least squares; at least 0, adding up to 1)
  --kind network   1 x 1 x 1 convolutions over the views' outputs and the inputs (with FILE.safetensors beside FILE.json)
Prints the mean absolute errors of each view, of their mean and of the fusion, on cases that the fit has not seen. Give cases
that the models were not trained on. Use it by `python -m brasyn_dist.infer ... --fusion FILE.json`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from brasyn_dist.brats import MODALITIES, VIEWS
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.errors import BrasynError, ConfigError, DataError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.fit_fusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", nargs="+", required=True, metavar="W", help="as for brasyn_dist.infer")
    add("--cases", type=Path, required=True, help="folder of complete cases")
    add("--out", type=Path, required=True, help="file to write, ending in .json")
    add("--kind", choices=("weights", "network"), default="weights")
    add("--views", nargs="+", choices=VIEWS, help="default: all that a model was trained on")
    add("--any-view", action="store_true", help="allow views that a model was not trained on")
    add("--voxels", type=int, default=20000, help="voxels drawn from each case and modality (default: 20000)")
    add("--steps", type=int, default=600, help="training steps of a network (default: 600)")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, help="slices at a time")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast")
    add("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    options = parser().parse_args(arguments)
    if options.out.suffix != ".json":
        parser().error("--out must end in .json")
    if options.voxels < 1 or options.steps < 1:
        parser().error("--voxels and --steps must be at least 1")
    try:
        run(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
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
    members = load_members(options.weights, device, options.views, options.any_view)
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


if __name__ == "__main__":
    sys.exit(main())
