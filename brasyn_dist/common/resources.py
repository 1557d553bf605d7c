"""Folders that come with the package: configurations, launch files, Slurm scripts.

In a clone they are top-level folders; a wheel has them inside the package (`brasyn_dist/configs` and so on).
"""

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parents[1]
Folder = Literal["configs", "launch", "slurm"]


def resource_folder(name: Folder) -> Path:
    """Folder `name` of the installed package or of the clone that this code belongs to."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def find_resource(folder: Folder, name: str | Path) -> Path:
    """A file by path, or a packaged file by name: `r3` and `r3.yaml` are `configs/r3.yaml`.

    A file that exists is returned unchanged, and so is a path that names no packaged file. A folder of
    the same name in the working directory (`demo/`, `r3/`) is not a file.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.parent in (Path(), Path(folder)):
        for candidate in (path.name, f"{path.name}.yaml"):
            if (found := resource_folder(folder) / candidate).is_file():
                return found
    return path
