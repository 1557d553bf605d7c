"""Make a validation set from complete cases by leaving out one modality of each.

    brasyn drop-modality CASES OUT

The random choice is the challenge's (docs/explanation/method.md, section 1): cases sorted by name,
`numpy.random.seed(123456)`, `numpy.random.randint(0, 4, size=number_of_cases)` as index of t1c, t1n, t2f,
t2w (or of the modalities of another set). OUT/dropped.json lists what was left out.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from brasyn_dist.cli.command import Command, Index, ModalitySetOption, SkipBadOption
from brasyn_dist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from brasyn_dist.brats import Case

CHALLENGE_SEED = 123456
RECORD = "dropped.json"


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """Options of `brasyn drop-modality`."""

    cases: Annotated[Path, Argument(metavar="CASES")]
    """Folder of complete cases."""
    out: Annotated[Path, Argument(metavar="OUT")]
    """Folder for the incomplete cases."""
    seed: Index = CHALLENGE_SEED
    """Seed of the choice."""
    modality: str | None = None
    """Leave out this modality of every case instead of a random one."""
    keep_segmentation: bool = False
    """Keep segmentations, which the challenge removes."""
    link: bool = False
    """Symbolic links instead of copies."""
    skip_bad: SkipBadOption = False
    modality_set: ModalitySetOption = None


def run(options: DropOptions) -> None:
    """Write the incomplete cases and the list of what was left out."""
    from brasyn_dist.brats import modality_set_in
    from brasyn_dist.common.files import make_folder, write_json
    from brasyn_dist.data.case_folders import usable_cases

    modality_set = modality_set_in(options.modality_set)
    modalities = modality_set.modalities
    if options.modality not in (None, *modalities):
        raise ConfigError(f"--modality {options.modality}: expected {' or '.join(modalities)}")
    cases = usable_cases([options.cases], modality_set, options.skip_bad, complete=True)
    among = modalities if options.modality is None else (options.modality,)
    dropped = choose([c.name for c in cases], among, options.seed)
    check_record(options.out, dropped)
    make_folder(options.out)
    write_json(options.out / RECORD, dropped)
    for case in cases:
        write_case(case, dropped[case.name], options.out, options.keep_segmentation, options.link)
    counts = ", ".join(f"{m} {list(dropped.values()).count(m)}" for m in modalities)
    print(f"{len(cases)} cases in {options.out}; dropped {counts}")


def choose(names: Sequence[str], modalities: Sequence[str], seed: int = CHALLENGE_SEED) -> dict[str, str]:
    """Dropped modality by case name, one of `modalities`; `names` must be sorted."""
    import numpy as np

    indices = np.random.RandomState(seed).randint(0, len(modalities), size=len(names))
    return {name: modalities[i] for name, i in zip(names, indices)}


def check_record(out: Path, dropped: dict[str, str]) -> None:
    """Raise DataError if `out` has another choice: a mixture would show what was left out."""
    record = out / RECORD
    if record.exists():
        if json.loads(record.read_text()) != dropped:
            raise DataError(
                f"{out} holds another choice ({RECORD} differs); remove it or choose another folder"
            )
    elif out.exists() and any(p.is_dir() for p in out.iterdir()):
        raise DataError(f"{out} holds folders but no {RECORD}: other data; choose another folder")


def write_case(case: "Case", dropped: str, out: Path, keep_segmentation: bool, link: bool) -> None:
    """Copy or link the files of a case, without the modality `dropped`."""
    from brasyn_dist.common.files import atomic_link, atomic_path

    folder = out / case.name
    folder.mkdir(parents=True, exist_ok=True)
    for modality, source in case.files.items():
        if modality == dropped or (modality == "seg" and not keep_segmentation):
            continue
        if link:
            atomic_link(folder / source.name, source)
        else:
            with atomic_path(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)


main = Command("drop-modality", DropOptions, run)
