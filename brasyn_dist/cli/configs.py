"""List the packaged configurations, launch files and Slurm scripts, or copy them.

    brasyn configs [NAME ...] [--copy DIR]

`brasyn train --config NAME` finds a configuration by its name; launch files and Slurm scripts are used by
their path.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command
from brasyn_dist.common.files import atomic_path
from brasyn_dist.common.resources import Folder, resource_folder
from brasyn_dist.errors import BrasynError

FOLDERS: tuple[Folder, ...] = ("configs", "launch", "slurm")


@dataclass(frozen=True, kw_only=True)
class ConfigsOptions:
    """Options of `brasyn configs`."""

    names: Annotated[list[str] | None, Argument(metavar="NAME")] = None
    """Folders or files, such as `slurm` or `r3.yaml`; all without."""
    copy: Annotated[Path | None, Option(metavar="DIR")] = None
    """Copy them to folders of the same name in DIR."""
    path: bool = False
    """Print nothing but the full paths."""


def run(options: ConfigsOptions) -> None:
    """Copy, or print one line for each file: path and first comment line."""
    found = [file for folder in FOLDERS for file in sorted(resource_folder(folder).rglob("*"))]
    chosen = [file for file in found if file.is_file() and file.suffix not in (".py", ".pyc")]
    names = options.names or []
    for name in names:
        if not any(matches(file, name) for file in chosen):
            raise BrasynError(f"no packaged file or folder is called {name!r}; `brasyn configs` lists them")
    for file in chosen:
        if names and not any(matches(file, name) for name in names):
            continue
        if options.copy is not None:
            target = options.copy / path_in_clone(file)
            if target.exists() and target.read_bytes() != file.read_bytes():
                raise BrasynError(f"{target} exists and differs; remove it, or choose another folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                shutil.copy2(file, temporary)
            print(target)
        elif options.path:
            print(file)
        else:
            print(f"{path_in_clone(file).as_posix():<48}{description(file)}")


def path_in_clone(file: Path) -> Path:
    """`configs/thesis/r3.yaml` of a packaged file."""
    roots = [resource_folder(folder) for folder in FOLDERS]
    return next(Path(root.name) / file.relative_to(root) for root in roots if file.is_relative_to(root))


def matches(file: Path, name: str) -> bool:
    """Whether `name` is one of the file's folders, its path, name, or name without suffix."""
    path = path_in_clone(file)
    return name in (*map(str, path.parents), file.parent.name, file.name, file.stem, str(path))


def description(file: Path) -> str:
    """First comment line."""
    lines = [line.strip("# \n") for line in file.read_text().splitlines() if line.startswith("# ")]
    return lines[0] if lines else ""


main = Command("configs", ConfigsOptions, run)
