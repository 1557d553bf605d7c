"""Evaluate every case with a network that was trained without its patient.

    brasyn cross-validate CASES --out DIR

A seed assigns the patients to folds. For each fold: shards of the other cases, a training, synthesis of each
modality of the fold's cases in turn, evaluation beside the baselines (the regression is fitted on the
training cases). Last, the pooled table: DIR/cases.csv and DIR/summary.json. The same command again continues
with what is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from brasyn_dist.cli.command import (
    Command,
    Folds,
    Headroom,
    Index,
    LabelEditionOption,
    ModalitySetOption,
    Overrides,
    SkipBadOption,
)
from brasyn_dist.cli.subprocesses import brasyn, call, title
from brasyn_dist.common.files import atomic_link, atomic_write_text, write_json
from brasyn_dist.common.resources import find_resource
from brasyn_dist.errors import ConfigError

if TYPE_CHECKING:
    from brasyn_dist.brats import Case
    from brasyn_dist.modality_set import ModalitySet


@dataclass(frozen=True, kw_only=True)
class CrossValidateOptions:
    """Options of `brasyn cross-validate`."""

    cases: Annotated[Path, Argument(metavar="CASES")]
    """Folder of complete cases."""
    overrides: Overrides = None
    """Options of the training."""
    out: Path
    """Folder for everything, with one for each fold."""
    folds: Folds = 5
    """Number of folds."""
    config: str = "laptop"
    """YAML file of the training, or a packaged one's name."""
    headroom: Headroom = 1.0
    """As of `brasyn shard`."""
    minimum_foreground: Index = 2000
    """As of `brasyn shard`."""
    seed: Index = 0
    """Seed of the folds."""
    patients: Path | None = None
    """Patient of each case, as of `brasyn shard`; default: by names."""
    skip_bad: SkipBadOption = False
    modality_set: ModalitySetOption = None
    label_edition: LabelEditionOption = "auto"
    fold: int | None = None
    """Do only this fold (from 0), without the pooled table."""


def run(options: CrossValidateOptions) -> None:
    """All folds, or one of them; then the pooled table."""
    import pandas as pd

    from brasyn_dist.brats import modality_set_in
    from brasyn_dist.evaluation import tables

    modality_set = modality_set_in(options.modality_set)
    cases, folds = read_folds(options)
    for number, held_out in enumerate(folds):
        if options.fold in (None, number):
            name = f"Fold {number + 1} of {len(folds)}"
            evaluate_fold(options, cases, held_out, options.out / f"fold-{number}", name)
    if options.fold is not None:
        return
    parts = [tables.read_table(options.out / f"fold-{n}" / "evaluation") for n in range(len(folds))]
    table = tables.with_best_copy(pd.concat(parts))
    summary = tables.summarise(table)
    atomic_write_text(options.out / "cases.csv", tables.table_csv(table))
    write_json(options.out / "summary.json", {"means": tables.summary_json(summary)})
    title(f"All folds: {len(cases)} cases, each by a network trained without its patient")
    print(tables.text_table(summary, modality_set))


def read_folds(options: CrossValidateOptions) -> "tuple[list[Case], list[list[Case]]]":
    """The cases, and the same by fold."""
    from brasyn_dist.brats import modality_set_in
    from brasyn_dist.data.case_folders import unreadable_cases, usable_cases, without_bad
    from brasyn_dist.data.label_editions import with_label_editions
    from brasyn_dist.data.patients import read_patients_file, with_patients

    for key in ("data.shards", "runs_dir", "name"):
        if any(word.startswith(f"{key}=") for word in options.overrides or ()):
            raise ConfigError(f"{key}: set for every fold by the command; leave it out")
    modality_set = modality_set_in(options.modality_set)
    cases = usable_cases([options.cases], modality_set, options.skip_bad, complete=True)
    if options.patients is not None:
        cases = with_patients(cases, read_patients_file(options.patients))
    cases, _ = with_label_editions(cases, options.label_edition)
    cases = without_bad(cases, unreadable_cases(cases, labels=True), options.skip_bad)
    folds = split_into_folds(cases, options.folds, options.seed)
    if options.fold is not None and not 0 <= options.fold < len(folds):
        raise ConfigError(f"--fold {options.fold}: from 0 to {len(folds) - 1}")
    return list(cases), folds


def split_into_folds(cases: "Sequence[Case]", folds: int, seed: int) -> "list[list[Case]]":
    """Cases by fold; all cases of a patient are in one fold.

    Raises:
        ConfigError: There are fewer patients than folds.
    """
    import numpy as np

    patients = sorted({c.patient for c in cases})
    if len(patients) < 2:
        raise ConfigError(
            f"one patient ({patients[0]}): at least two are needed, since each is left out of training once"
        )
    if not 2 <= folds <= len(patients):
        raise ConfigError(f"--folds {folds}: from 2 to {len(patients)}, the number of patients")
    order = np.random.default_rng(seed).permutation(len(patients))
    fold_of = {patients[patient]: position % folds for position, patient in enumerate(order)}
    return [[c for c in cases if fold_of[c.patient] == fold] for fold in range(folds)]


def evaluate_fold(
    options: CrossValidateOptions, cases: "Sequence[Case]", held_out: "Sequence[Case]", out: Path, name: str
) -> None:
    """All stages of one fold; each stage skips what is complete."""
    synthesise_fold(options, cases, held_out, out, name)
    call(
        brasyn(
            "evaluate", "--predictions", out / "predictions", "--references", out / "unseen",
            "--out", out / "evaluation", "--statistics", out / "shards" / "statistics.json",
            "--regression-cases", out / "training", "--curves", out / "run",
            "--label-edition", options.label_edition,
        )
    )  # fmt: skip


def synthesise_fold(
    options: CrossValidateOptions, cases: "Sequence[Case]", held_out: "Sequence[Case]", out: Path, name: str
) -> None:
    """Train on the other cases, and synthesise every modality of the held-out ones into `out`/predictions."""
    from brasyn_dist.brats import modality_set_in
    from brasyn_dist.config import load_config

    title(f"{name}: {', '.join(c.name for c in held_out)} left out")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
    unseen = link(held_out, out / "unseen")
    link([c for c in cases if c not in held_out], out / "training")
    modality_set = modality_set_in(options.modality_set)
    overrides = [*updates_of(modality_set), *(options.overrides or ())]
    config = find_resource("configs", options.config)
    views = load_config(config, overrides).data.views
    shards, trained, predictions = out / "shards", out / "run", out / "predictions"
    call(
        brasyn("shard", options.cases, "--out", shards, "--split", out / "held_out.txt", "--views", *views,
               *(["--skip-bad"] if options.skip_bad else []),
               *(["--patients", str(options.patients)] if options.patients else []),
               *(["--modality-set", str(options.modality_set)] if options.modality_set else []),
               "--label-edition", options.label_edition,
               "--headroom", str(options.headroom), "--minimum-foreground", str(options.minimum_foreground))
    )  # fmt: skip
    call(
        brasyn(
            "train", "--config", config, f"data.shards={shards}", f"runs_dir={out}", "name=run", *overrides
        )
    )
    for modality in modality_set.modalities:
        call(
            brasyn("infer", "--weights", trained, "--input", unseen, "--output", predictions,
                   "--modality", modality)
        )  # fmt: skip


def updates_of(modality_set: "ModalitySet") -> list[str]:
    """Override of the updates of a batch, one for each target, for another number than BraTS'."""
    from brasyn_dist.brats import BRATS

    count = len(modality_set)
    return [] if count == len(BRATS) else [f"training.updates_per_batch={count}"]


def link(cases: "Sequence[Case]", folder: Path) -> Path:
    """A folder of links to the cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        atomic_link(folder / case.name, case.folder)
    return folder


main = Command("cross-validate", CrossValidateOptions, run)
