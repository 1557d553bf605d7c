"""Compare evaluations in one table: metric, validation set and class by run, as Markdown, CSV and LaTeX.

    brasyn table evaluation/r1 evaluation/r2 R8S=evaluation/r8_sagittal --out table

The rows are those of the thesis' Table 5.1 (all cases, then each cohort), followed by the other scores. A
column is named after the folder of the evaluation, or by NAME=DIR. Writes OUT/table.md, table.csv and
table.tex, and prints the Markdown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument

from brasyn_dist.cli.command import Command
from brasyn_dist.common.files import read_json
from brasyn_dist.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of `brasyn table`."""

    evaluations: Annotated[list[str], Argument(metavar="[NAME=]EVALUATION")]
    """Folders that `brasyn evaluate` wrote."""
    out: Path | None = None
    """Folder for table.md, table.csv and table.tex."""
    method: str = "synthetic"
    """Method whose scores are compared, such as `mean of available`."""


def run(options: TableOptions) -> None:
    """Read the evaluations, write and print the table."""
    from brasyn_dist.common.files import atomic_write_text
    from brasyn_dist.evaluation.comparison_table import comparison, latex, markdown, titled
    from brasyn_dist.evaluation.tables import read_table, reference_note

    folders: dict[str, Path] = {}
    for word in options.evaluations:
        name, separator, path = word.rpartition("=")
        folder = Path(path)
        name = name if separator else folder.resolve().name
        if name in folders:
            raise DataError(f"{word}: two evaluations are called {name}; name one of them NAME={path}")
        folders[name] = folder
    tables = {name: read_table(folder) for name, folder in folders.items()}
    for name, table in tables.items():
        if options.method not in set(table.method):
            known = ", ".join(sorted(set(table.method)))
            raise DataError(f"{folders[name]}: no method {options.method!r}; it has {known}")
    frame = comparison(tables, options.method)
    references = {name: reference_kind(folder) for name, folder in folders.items()}
    notes = sorted({reference_note(kind) for kind in references.values()})
    if len(notes) > 1:
        pseudo = ", ".join(name for name, kind in references.items() if kind == "pseudo")
        notes = [f"Reference segmentations: those of the cases, but pseudo-labels for {pseudo}."]
    text = f"{markdown(frame)}\nBold: the best run of a row. {notes[0]}\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        atomic_write_text(options.out / "table.md", text)
        atomic_write_text(options.out / "table.csv", titled(frame).to_csv(float_format="%.4f"))
        atomic_write_text(options.out / "table.tex", latex(frame))
    print(text, end="")


def reference_kind(folder: Path) -> str:
    """`given` or `pseudo`, from the summary.json of an evaluation; older ones have given references."""
    return str(read_json(folder / "summary.json").get("reference_segmentation", "given"))


main = Command("table", TableOptions, run)
