"""What each part of the method gives: one change at a time, each trained and evaluated as the base is.

    python tools/ablate.py CASES --out DIR [--plan tools/ablations.yaml] [--only NAME] [--folds 4] [--fold N] [section.key=value ...]

The plan names runs and the options that each changes; `base`, which changes none, comes before them. Another seed shows what
chance alone does. Each run is tools/cross_validate.py in DIR/NAME, over all folds or those of --fold; `section.key=value` holds
for all. What is evaluated already is not done again, so runs can be spread over processes by --only (which, as --fold, may be
given several times); a run that was made with other options is refused. The table comes last: DIR/ablations.md, with the runs
that are there, and the differences from `base` on the very same volumes.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from brasyn_dist.cli.subcommands import PYTHON, REPOSITORY, call, exit_status, title
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.typed_yaml import read_yaml
from brasyn_dist.errors import ConfigError
from brasyn_dist.evaluation.scoring import SYNTHETIC
from brasyn_dist.evaluation.tables import mean_of, number, read_table

BASE = "base"
SCORES = {"mae/brain": "MAE", "psnr/brain": "PSNR, dB", "ssim/healthy": "SSIM, healthy"}
Plan = dict[str, list[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_status(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("cases", type=Path, metavar="CASES", help="folder of complete cases")
    add("overrides", nargs="*", metavar="section.key=value", help="options of all trainings")
    add("--out", type=Path, required=True, help="where everything goes, a folder for each run")
    add("--plan", type=Path, default=REPOSITORY / "tools/ablations.yaml")
    add("--only", action="append", metavar="NAME", help="this run of the plan")
    add("--config", type=Path, default=REPOSITORY / "configs/narrow.yaml", help="of the base")
    add("--folds", type=int, default=4)
    add("--fold", type=int, action="append", metavar="N", help="this fold alone (from 0)")
    return made


def run(options: argparse.Namespace) -> None:
    plan = read_plan(options.plan)
    unknown = sorted(set(options.only or ()) - set(plan))
    if unknown:
        raise ConfigError(f"{options.plan}: no run is called {unknown[0]!r}; there are {', '.join(plan)}")
    folds = options.fold or range(options.folds)
    for name in options.only or plan:
        note_options(options, plan[name], options.out / folder(name) / "options.json")
        for fold in folds:
            if not evaluation(options.out, name, fold).exists():
                title(f"{name}: {', '.join(plan[name]) or 'nothing changed'}")
                call(
                    *PYTHON, str(REPOSITORY / "tools/cross_validate.py"), str(options.cases),
                    "--out", str(options.out / folder(name)), "--config", str(options.config),
                    "--folds", str(options.folds), "--fold", str(fold), *options.overrides, *plan[name],
                )  # fmt: skip
    scores = {name: scores_of(options.out, name, folds) for name in plan}
    text = table(plan, {name: found for name, found in scores.items() if found is not None})
    atomic_write_text(options.out / "ablations.md", text)
    title("Ablations")
    print(text, end="")


def note_options(options: argparse.Namespace, changed: Sequence[str], path: Path) -> None:
    """Write down what a run is made of. Raises ConfigError if it was begun with something else: its results would be mixed."""
    made_of = {
        "config": read_yaml(options.config), "folds": options.folds, "options": [*options.overrides, *changed],
    }  # fmt: skip
    if path.exists() and json.loads(path.read_text()) != made_of:
        raise ConfigError(
            f"{path.parent} was made with other options; give another --out, or remove that folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made_of)


def read_plan(path: Path) -> Plan:
    """Options by name of run, the base first. Raises ConfigError unless it is such a plan."""
    values = read_yaml(path)
    for name, changed in values.items():
        if not isinstance(changed, list) or not all(isinstance(o, str) and "=" in o for o in changed):
            raise ConfigError(f"{path}: {name}: a list of section.key=value is expected, got {changed!r}")
    return {BASE: [], **values}


def folder(name: str) -> str:
    return name.replace(" ", "-")


def evaluation(out: Path, name: str, fold: int) -> Path:
    """Written last: if it is there, the fold is done."""
    return out / folder(name) / f"fold-{fold}" / "evaluation" / "cases.csv"


def scores_of(out: Path, name: str, folds: Sequence[int]) -> pd.DataFrame | None:
    """Metrics of the synthetic volumes of the folds that are done, by (case, modality); None if no fold is done."""
    done = [path for fold in folds if (path := evaluation(out, name, fold)).exists()]
    if not done:
        return None
    rows = pd.concat([read_table(path) for path in done])
    return rows[rows.method == SYNTHETIC].set_index(["case", "modality"])


def table(plan: Plan, scores: Mapping[str, pd.DataFrame]) -> str:
    """Markdown: means of each run over its volumes, and of the differences from the base on the volumes that both have."""
    head = ["run", "changed", "volumes", *SCORES.values(), *(f"{s} - {BASE}" for s in SCORES.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in scores.items():
        cells = [name, ", ".join(plan[name]), str(len(found))]
        cells += [mean(found[score], "{0.mean:.4g}") for score in SCORES]
        base = scores.get(BASE) if name != BASE else None
        cells += [mean(found[score] - base[score]) if base is not None else "" for score in SCORES]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "± half of the 95 % interval over volumes, of one seed: look at what another seed changes."]
    return "\n".join(lines) + "\n"


def mean(values: pd.Series, form: str | None = None) -> str:
    """Mean of the known values with its interval, or formatted by `form`; empty if no value is known."""
    known = values.dropna()
    return "" if known.empty else form.format(mean_of(known)) if form else number(mean_of(known))


if __name__ == "__main__":
    sys.exit(main())
