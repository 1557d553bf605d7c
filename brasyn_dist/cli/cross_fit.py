"""Synthesise every case by a network that was not trained on its patient, as training data of a second stage.

    brasyn cross-fit CASES --out DIR [--config laptop] [--folds 3]
    brasyn shard CASES --out SHARDS --chunks 32 --stage1 DIR/predictions
    brasyn train --config refiner data.shards=SHARDS

A refiner that is trained on volumes of training cases would learn to correct errors that are smaller than
those that it meets later. The stages of a fold are those of `brasyn cross-validate`, without the evaluation;
all volumes are in DIR/predictions. The same command again continues with what is missing.
"""

from dataclasses import dataclass

from brasyn_dist.cli.command import Command, Folds
from brasyn_dist.cli.cross_validate import CrossValidateOptions, read_folds, synthesise_fold
from brasyn_dist.cli.subprocesses import title
from brasyn_dist.common.files import atomic_link


@dataclass(frozen=True, kw_only=True)
class CrossFitOptions(CrossValidateOptions):
    """Options of `brasyn cross-fit`."""

    folds: Folds = 3
    """Number of folds, each with a training."""
    fold: int | None = None
    """Do only this fold (from 0)."""


def run(options: CrossFitOptions) -> None:
    """All folds, or one of them."""
    cases, folds = read_folds(options)
    together = options.out / "predictions"
    together.mkdir(parents=True, exist_ok=True)
    for number, held_out in enumerate(folds):
        if options.fold in (None, number):
            folder = options.out / f"fold-{number}"
            synthesise_fold(options, cases, held_out, folder, f"Fold {number + 1} of {len(folds)}")
            for path in sorted((folder / "predictions").glob("*.nii.gz")):
                atomic_link(together / path.name, path)
    title(f"{together}: each volume by a network trained without its patient")


main = Command("cross-fit", CrossFitOptions, run)
