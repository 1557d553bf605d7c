"""Fit how several views are fused: `python -m brasyn_dist.fit_fusion --weights W [W ...] --cases DIR --out FILE.json`.

Synthesises every modality of complete validation cases, as if it were missing, with each model and view, and fits one weight
for each view and target modality (least squares; at least 0, with sum 1). Prints the mean absolute errors of each view, of
their mean and of the fusion, on cases that the fit has not seen. Give cases that the models were not trained on. Use the
file by `python -m brasyn_dist.infer ... --fusion FILE.json`.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from brasyn_dist.brats import VIEWS
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.errors import BrasynError, ConfigError, DataError
from brasyn_dist.modality_set import ModalitySet

if TYPE_CHECKING:
    from brasyn_dist.data.nifti import CaseVolumes

log = logging.getLogger(__name__)


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
    add("--views", nargs="+", choices=VIEWS, help="default: all that a model was trained on")
    add("--any-view", action="store_true", help="allow views that a model was not trained on")
    add("--voxels", type=int, default=20000, help="voxels drawn from each case and modality (default: 20000)")
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
    if options.voxels < 1:
        parser().error("--voxels must be at least 1")
    try:
        run(options)
    except BrasynError as error:
        log.error("%s", error)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    from brasyn_dist.inference.ensemble import choose_device, load_members
    from brasyn_dist.inference.fusion import describe_members
    from brasyn_dist.inference.fusion_fitting import Sample, cross_validate, fit_weights, sample_case

    device = choose_device(options.device, options.precision)
    members = load_members(options.weights, device, options.views, options.any_view)
    if len(members) < 2:
        raise ConfigError(
            f"one member ({members[0].view}) has nothing to be fused with; give several views or weights"
        )
    modality_set = members[0].modality_set
    modalities = modality_set.modalities
    fit = partial(fit_weights, targets=modalities)
    samples: list[Sample] = []
    for volumes in complete_cases(options.cases, modality_set):
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


def complete_cases(folder: Path, modality_set: ModalitySet) -> Iterator["CaseVolumes"]:
    """Volumes of the complete cases below a folder, one after another. Cases that are left out are logged."""
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.nifti import read_case

    cases, problems = find_cohorts([folder], modality_set)
    for problem in problems:
        log.warning("left out: %s", problem)
    for case in cases:
        if case.missing:
            log.warning("left out: %s: has no %s", case.folder, ", ".join(case.missing))
            continue
        yield read_case(case, segmentation=False)


def member_names(views: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """The view; with the first digits of the hash if two members have the same view."""
    return [v if views.count(v) == 1 else f"{v} {h[:6]}" for v, h in zip(views, hashes)]


def error_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """The mean absolute errors as a table, and the modalities for which the fusion is no better than the mean."""
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
