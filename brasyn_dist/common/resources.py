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
    """A file by path, or a packaged file by name: `r3` is `configs/thesis/r3.yaml`.

    A name that several subfolders have is that of the outermost: `published/r3` is
    `configs/thesis/published/r3.yaml`. A file that exists is returned unchanged, and so is a path that names
    no packaged file. A folder of the same name in the working directory (`demo/`, `r3/`) is not a file.
    """
    path = Path(name)
    if path.is_file() or path.is_absolute():
        return path
    words = path.parts[1:] if path.parts[:1] == (folder,) else path.parts
    root = resource_folder(folder)
    for wanted in ("/".join(words), f"{'/'.join(words)}.yaml"):
        found = [p for p in root.rglob("*.*") if f"/{p.relative_to(root).as_posix()}".endswith(f"/{wanted}")]
        if found:
            return min(found, key=lambda p: len(p.parts))
    return path
