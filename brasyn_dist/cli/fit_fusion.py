"""Fit the weights by which several views are fused.

    brasyn fit-fusion --weights W [W ...] --cases DIR --out FILE.json

Synthesises every modality of complete validation cases, as if it were missing, with each model and view. Fits
one weight for each view and target modality (least squares; at least 0, with sum 1). Prints the mean absolute
errors of each view, of their mean and of the fusion, on cases that the fit has not seen. Give cases that the
models were not trained on. Use the file by `brasyn infer ... --fusion FILE.json`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Option

from brasyn_dist.cli.command import Command, Precision, SkipBadOption, View
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.modality_set import ModalitySet

if TYPE_CHECKING:
    from brasyn_dist.data.nifti import CaseVolumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitFusionOptions:
    """Options of `brasyn fit-fusion`."""

    weights: Annotated[list[str], Option("--weights", metavar="W...", help="As of `brasyn infer`.")]
    cases: Annotated[Path, Option("--cases", metavar="DIR", help="Folder of complete cases.")]
    out: Annotated[Path, Option("--out", metavar="FILE", help="File to write, ending in .json.")]
    views: Annotated[
        list[View] | None,
        Option("--views", help="Views to run over.  [default: all that a model was trained on]"),
    ] = None
    any_view: Annotated[bool, Option("--any-view", help="Allow views that a model was not trained on.")] = (
        False
    )
    voxels: Annotated[int, Option("--voxels", min=1, help="Random voxels of each case and modality.")] = 20000
    seed: Annotated[int, Option("--seed", min=0, help="Seed of the choice of voxels.")] = 0
    batch_size: Annotated[
        int | None,
        Option("--batch-size", min=1, help="Slices at a time.  [default: 16 on GPUs, 4 on CPUs]"),
    ] = None
    precision: Annotated[Precision, Option("--precision", help="Autocast.")] = "no"
    device: Annotated[
        str | None, Option("--device", help="Such as cpu or cuda:1.  [default: a GPU if there is one]")
    ] = None
    skip_bad: SkipBadOption = False

    def __post_init__(self) -> None:
        if self.out.suffix != ".json":
            raise BadParameter("--out must end in .json")


def run(options: FitFusionOptions) -> None:
    """Fit, compare on unseen cases, write the file."""
    from brasyn_dist.inference.ensemble import choose_device, load_members
    from brasyn_dist.inference.fusion import describe_members
    from brasyn_dist.inference.fusion_fitting import Sample, cross_validate, fit_weights, sample_case

    device = choose_device(options.device, options.precision)
    members = load_members(
        options.weights, device, options.views and [str(view) for view in options.views], options.any_view
    )
    if len(members) < 2:
        raise ConfigError(
            f"one member ({members[0].view}) has nothing to be fused with; give several views or weights"
        )
    modality_set = members[0].modality_set
    modalities = modality_set.modalities
    fit = partial(fit_weights, targets=modalities)
    samples: list[Sample] = []
    for volumes in complete_cases(options.cases, modality_set, options.skip_bad):
        samples += sample_case(
            members, volumes, options.voxels, options.seed, options.batch_size, options.precision
        )
        log.info("%s: synthesised %s by %d members", volumes.case.name, ", ".join(modalities), len(members))
    if not samples:
        raise DataError(f"{options.cases}: no complete case; all modalities of a case are needed")
    names = member_names([m.view for m in members], [m.weights_sha256 for m in members])
    errors = cross_validate(samples, names, fit)
    facts = {
        "members": describe_members(members),
        "fit": {
            "cases": sorted({sample.case for sample in samples}),
            "voxels": options.voxels,
            "seed": options.seed,
            "unseen_mae": errors,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fit(samples).save(options.out, facts)
    log.info(error_table(errors) if errors else "a single case: no unseen case is left for a comparison")
    log.info("written: %s", options.out)


def complete_cases(folder: Path, modality_set: ModalitySet, skip_bad: bool) -> Iterator["CaseVolumes"]:
    """Volumes of the complete cases below a folder, one after another.

    Incomplete cases are left out. Bad ones are found before the first is synthesised.
    """
    from brasyn_dist.data.case_folders import find_cohorts, unreadable_cases, without_bad
    from brasyn_dist.data.nifti import read_case

    cases, bad = find_cohorts([folder], modality_set)
    for case in cases:
        if case.missing:
            log.warning("left out: %s: has no %s", case.folder, ", ".join(case.missing))
    complete = [case for case in cases if not case.missing]
    for case in without_bad(complete, bad + unreadable_cases(complete), skip_bad):
        yield read_case(case, segmentation=False)


def member_names(views: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """The view; with the first digits of the hash if two members have the same view."""
    return [v if views.count(v) == 1 else f"{v} {h[:6]}" for v, h in zip(views, hashes)]


def error_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Mean absolute errors as a table, and the modalities for which the fusion is no better than the mean."""
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
