"""Leave-out evaluation over all cases: every case is synthesised by a network that never saw its patient.

    python tools/cross_validate.py CASES --out DIR [--folds 5] [--config configs/narrow.yaml] [section.key=value ...]

The patients are dealt into folds by a seed. For each fold: shards of the others, a training, each modality of the fold's cases left
out in turn and synthesised, scored beside the baselines (the regression is fitted on the cases of training). The pooled table
comes last: DIR/cases.csv and DIR/summary.json. The same command again continues with what is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brasyn_dist.brats import MODALITIES, Case, find_cases
from brasyn_dist.cli.subcommands import PYTHON, REPOSITORY, call, exit_status, title
from brasyn_dist.common.files import atomic_path, atomic_write_text, write_json
from brasyn_dist.config import load_config
from brasyn_dist.errors import ConfigError
from brasyn_dist.evaluation.tables import (
    read_table,
    summarise,
    summary_json,
    table_csv,
    text_table,
    with_best_copy,
)
from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_status(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("cases", type=Path, metavar="CASES", help="folder of complete cases")
    add("overrides", nargs="*", metavar="section.key=value", help="options of the training")
    add("--out", type=Path, required=True, help="where everything goes, a folder for each fold")
    add("--folds", type=int, default=5)
    add("--config", type=Path, default=REPOSITORY / "configs/narrow.yaml")
    add("--headroom", type=float, default=1.0, metavar="F", help="as of tools/shard_dataset.py")
    add("--minimum-foreground", type=int, default=MINIMUM_FOREGROUND, metavar="N", help="likewise")
    add("--seed", type=int, default=0, help="of the folds")
    add(
        "--fold",
        type=int,
        metavar="N",
        help="do this fold alone (from 0) and pool nothing: for one process a fold",
    )
    return made


def run(options: argparse.Namespace) -> None:
    cases = find_cases(options.cases)
    incomplete = [c.name for c in cases if c.missing]
    if incomplete:
        raise ConfigError(
            f"{options.cases}: only complete cases can be left out; not {', '.join(incomplete)}"
        )
    folds = deal(cases, options.folds, options.seed)
    if options.fold is not None and not 0 <= options.fold < len(folds):
        raise ConfigError(f"--fold {options.fold}: from 0 to {len(folds) - 1}")
    for number, held_out in enumerate(folds):
        if options.fold in (None, number):
            name = f"Fold {number + 1} of {len(folds)}"
            evaluate_fold(options, cases, held_out, options.out / f"fold-{number}", name)
    if options.fold is not None:
        return
    tables = [read_table(options.out / f"fold-{n}" / "evaluation") for n in range(len(folds))]
    table = with_best_copy(pd.concat(tables))
    summary = summarise(table)
    atomic_write_text(options.out / "cases.csv", table_csv(table))
    write_json(options.out / "summary.json", {"means": summary_json(summary)})
    title(f"All folds: {len(cases)} cases, each by a network that never saw it")
    print(text_table(summary))


def deal(cases: Sequence[Case], folds: int, seed: int) -> list[list[Case]]:
    """Cases by fold; a patient's are in one fold. Raises ConfigError if there are fewer patients than folds."""
    patients = sorted({c.patient for c in cases})
    if not 2 <= folds <= len(patients):
        raise ConfigError(f"--folds {folds}: from 2 to {len(patients)}, the number of patients")
    order = np.random.default_rng(seed).permutation(len(patients))
    fold_of = {patients[patient]: place % folds for place, patient in enumerate(order)}
    return [[c for c in cases if fold_of[c.patient] == fold] for fold in range(folds)]


def evaluate_fold(
    options: argparse.Namespace, cases: Sequence[Case], held_out: Sequence[Case], out: Path, name: str
) -> None:
    """Everything of one fold; stages that are complete say so quickly themselves."""
    title(f"{name}: {', '.join(c.name for c in held_out)} left out")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
    unseen, training = (
        link(held_out, out / "unseen"),
        link([c for c in cases if c not in held_out], out / "training"),
    )
    views = load_config(options.config, options.overrides).data.views
    call(
        *PYTHON, str(REPOSITORY / "tools/shard_dataset.py"), str(options.cases), "--out", str(out / "shards"),
        "--split", str(out / "held_out.txt"), "--views", *views, "--headroom", str(options.headroom),
        "--minimum-foreground", str(options.minimum_foreground),
    )  # fmt: skip
    call(
        *PYTHON, "-m", "brasyn_dist.train", "--config", str(options.config), f"data.shards={out / 'shards'}",
        f"runs_dir={out}", "name=run", *options.overrides,
    )  # fmt: skip
    for modality in MODALITIES:
        call(
            *PYTHON, "-m", "brasyn_dist.infer", "--weights", str(out / "run"), "--input", str(unseen),
            "--output", str(out / "predictions"), "--modality", modality,
        )  # fmt: skip
    call(
        *PYTHON, "-m", "brasyn_dist.evaluate", "--predictions", str(out / "predictions"), "--references", str(unseen),
        "--out", str(out / "evaluation"), "--statistics", str(out / "shards/statistics.json"),
        "--regression-cases", str(training), "--curves", str(out / "run"),
    )  # fmt: skip


def link(cases: Sequence[Case], folder: Path) -> Path:
    """A folder of links to the cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        with atomic_path(folder / case.name) as temporary:
            temporary.symlink_to(case.folder.resolve(), target_is_directory=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
