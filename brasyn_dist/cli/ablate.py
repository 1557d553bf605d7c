"""Measure single parts of the method, each trained and evaluated as the base is.

    brasyn ablate CASES --out DIR

The plan names runs and the options that each changes; `base`, which changes none, comes first. A run with
another seed shows the effect of chance. Each run is `brasyn cross-validate` in DIR/NAME, over all folds or
those of --fold; `section.key=value` applies to all runs. Finished evaluations are not repeated, so runs can
be spread over processes by --only and --fold, which may be repeated. A run that was made with other options
is refused. Last, the table DIR/ablations.md: the runs that exist, and their differences from `base` on the
same volumes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from brasyn_dist.cli.command import Command, Folds, Overrides
from brasyn_dist.cli.subprocesses import brasyn, call, title
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.resources import find_resource
from brasyn_dist.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
SCORES = {"mae/brain": "MAE", "psnr/brain": "PSNR, dB", "ssim/healthy": "SSIM, healthy"}
Plan = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Options of `brasyn ablate`."""

    cases: Annotated[Path, Argument(metavar="CASES")]
    """Folder of complete cases."""
    overrides: Overrides = None
    """Options of all trainings."""
    out: Path
    """Folder for everything, with one for each run."""
    plan: str = "ablations"
    """YAML file of runs, or a packaged one's name."""
    only: list[str] | None = None
    """This run of the plan; may be repeated."""
    config: str = "laptop"
    """YAML file of the base, or a packaged one's name."""
    folds: Folds = 4
    """Number of folds."""
    fold: list[int] | None = None
    """Only this fold (from 0); may be repeated."""


def run(options: AblateOptions) -> None:
    """Train and evaluate what is missing, then write the table."""
    from brasyn_dist.config import read_yaml

    path = find_resource("configs", options.plan)
    plan = read_plan(path)
    unknown = sorted(set(options.only or ()) - set(plan))
    if unknown:
        raise ConfigError(f"{path}: no run is called {unknown[0]!r}; there are {', '.join(plan)}")
    folds = options.fold or range(options.folds)
    config, overrides = find_resource("configs", options.config), options.overrides or []
    for name in options.only or plan:
        words = [*overrides, *plan[name]]
        made_of = {"config": read_yaml(config), "folds": options.folds, "options": words}
        record_options(options.out / folder(name) / "options.json", made_of)
        for fold in folds:
            if not evaluation(options.out, name, fold).exists():
                title(f"{name}: {', '.join(plan[name]) or 'nothing changed'}")
                call(
                    brasyn(
                        "cross-validate", options.cases, "--out", options.out / folder(name),
                        "--config", config,
                        "--folds", str(options.folds), "--fold", str(fold), *words,
                    )
                )  # fmt: skip
    scores = {name: scores_of(options.out, name, folds) for name in plan}
    text = table(plan, {name: found for name, found in scores.items() if found is not None})
    atomic_write_text(options.out / "ablations.md", text)
    title("Ablations")
    print(text, end="")


def record_options(path: Path, made_of: dict[str, Any]) -> None:
    """Record the options of a run. Raises ConfigError if it was begun with others: results would be mixed."""
    if path.exists() and json.loads(path.read_text()) != made_of:
        raise ConfigError(
            f"{path.parent} was made with other options; give another --out, or remove that folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made_of)


def read_plan(path: Path) -> Plan:
    """Options by name of run, the base first. Raises ConfigError unless the file is such a plan."""
    from brasyn_dist.config import read_yaml

    values = read_yaml(path)
    for name, changed in values.items():
        if not isinstance(changed, list) or not all(isinstance(o, str) and "=" in o for o in changed):
            raise ConfigError(f"{path}: {name}: a list of section.key=value is expected, got {changed!r}")
    return {BASE: [], **values}


def folder(name: str) -> str:
    """Folder of a run."""
    return name.replace(" ", "-")


def evaluation(out: Path, name: str, fold: int) -> Path:
    """Last file of a fold: if it exists, the fold is finished."""
    return out / folder(name) / f"fold-{fold}" / "evaluation" / "cases.csv"


def scores_of(out: Path, name: str, folds: Sequence[int]) -> "pd.DataFrame | None":
    """Scores of the finished folds' synthetic volumes, by (case, modality); None if no fold is finished."""
    import pandas as pd

    from brasyn_dist.evaluation.scoring import SYNTHETIC
    from brasyn_dist.evaluation.tables import read_table

    done = [path for fold in folds if (path := evaluation(out, name, fold)).exists()]
    if not done:
        return None
    rows = pd.concat([read_table(path) for path in done])
    return rows[rows.method == SYNTHETIC].set_index(["case", "modality"])


def table(plan: Plan, scores: "Mapping[str, pd.DataFrame]") -> str:
    """Markdown table: means of each run, and of the differences from the base on common volumes."""
    head = ["run", "changed", "volumes", *SCORES.values(), *(f"{s} - {BASE}" for s in SCORES.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in scores.items():
        cells = [name, ", ".join(plan[name]), str(len(found))]
        cells += [mean(found[score], "{0.mean:.4g}") for score in SCORES]
        base = scores.get(BASE) if name != BASE else None
        cells += [mean(found[score] - base[score]) if base is not None else "" for score in SCORES]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "± half of the 95 % interval over volumes, for one seed; compare with the change by another seed.",
    ]
    return "\n".join(lines) + "\n"


def mean(values: "pd.Series", form: str | None = None) -> str:
    """Mean of the known values with its interval, or formatted by `form`; empty if no value is known."""
    from brasyn_dist.evaluation.tables import mean_of, number

    known = values.dropna()
    return "" if known.empty else form.format(mean_of(known)) if form else number(mean_of(known))


main = Command("ablate", AblateOptions, run)
