"""Fit the weights by which several views are fused.

    brasyn fit-fusion --weights W [W ...] --cases DIR --out FILE.json

Synthesises every modality of complete validation cases, as if it were missing, with each model and view. Fits
one weight for each view and target modality (least squares; at least 0, with sum 1). Prints the mean absolute
errors of each view, of their mean and of the fusion, on cases that the fit has not seen. Give cases that the
models were not trained on. Use the file by `brasyn infer ... --fusion FILE.json`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typer import BadParameter

from brasyn_dist.cli.command import Command, Index, ModelOptions, Positive, SkipBadOption
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.modality_set import ModalitySet

if TYPE_CHECKING:
    from brasyn_dist.data.nifti import CaseVolumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitFusionOptions(ModelOptions):
    """Options of `brasyn fit-fusion`."""

    cases: Path
    """Folder of complete cases."""
    out: Path
    """File to write, ending in .json."""
    voxels: Positive = 20000
    """Random voxels of each case and modality."""
    seed: Index = 0
    """Seed of the choice of voxels."""
    skip_bad: SkipBadOption = False

    def __post_init__(self) -> None:
        if self.out.suffix != ".json":
            raise BadParameter("--out must end in .json")


def run(options: FitFusionOptions) -> None:
    """Fit, compare on unseen cases, write the file."""
    from brasyn_dist.common.files import make_folder
    from brasyn_dist.inference.ensemble import choose_device, load_members
    from brasyn_dist.inference.fusion import (
        VoxelSample,
        cross_validate,
        describe_members,
        fit_weights,
        sample_case,
    )
    from brasyn_dist.inference.synthesis import SynthesisOptions

    make_folder(options.out.parent)
    device = choose_device(options.device, options.precision)
    members = load_members(options.weights, device, options.views, options.any_view)
    if len(members) < 2:
        raise ConfigError(
            f"one member ({members[0].view}) has nothing to be fused with; give several views or weights"
        )
    modality_set = members[0].modality_set
    modalities = modality_set.modalities
    fit = partial(fit_weights, targets=modalities)
    samples: list[VoxelSample] = []
    how = SynthesisOptions(options.batch_size, options.precision)
    for volumes in complete_cases(options.cases, modality_set, options.skip_bad):
        samples += sample_case(members, volumes, options.voxels, options.seed, how)
        log.info("%s: synthesised %s by %d members", volumes.case.name, ", ".join(modalities), len(members))
    if not samples:
        raise DataError(f"{options.cases}: no complete case; all modalities of a case are needed")
    views = [m.view for m in members]  # with the first digits of the hash if two members have the same view
    names = [m.view if views.count(m.view) == 1 else f"{m.view} {m.weights_sha256[:6]}" for m in members]
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


def error_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Mean absolute errors as a table, and the modalities for which the fusion is no better than the mean."""
    from brasyn_dist.common.text_table import render_text_table

    names = list(next(iter(errors.values())))
    rows = [[target, *(f"{row[name]:.3f}" for name in names)] for target, row in errors.items()]
    table = render_text_table(["target", *names], rows).rstrip()
    lines = ["mean absolute error on cases that the fit has not seen", table]
    worse = [target for target, row in errors.items() if row["fused"] >= row["mean"]]
    if worse:
        lines.append(f"no better than the mean for {', '.join(worse)}")
    return "\n".join(lines)


main = Command("fit-fusion", FitFusionOptions, run, lists=("--weights", "--views"))
