"""Make the challenge's validation set from complete cases: one modality of each is left out, by a seeded draw.

    python tools/drop_modality.py CASES OUT

The draw is the challenge's (method, section 1): cases sorted by name, `numpy.random.seed(123456)`,
`numpy.random.randint(0, 4, size=number_of_cases)` indexing t1c, t1n, t2f, t2w. What was dropped is listed in OUT/dropped.json.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brasyn_dist.brats import MODALITIES, Case, find_cases
from brasyn_dist.common.files import atomic_path, write_json
from brasyn_dist.errors import BrasynError, DataError

CHALLENGE_SEED = 123456
RECORD = "dropped.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, help="folder of complete cases")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=CHALLENGE_SEED)
    parser.add_argument("--modality", choices=MODALITIES, help="drop this one from every case instead")
    parser.add_argument("--keep-segmentation", action="store_true", help="the challenge gives none")
    parser.add_argument("--link", action="store_true", help="symbolic links instead of copies")
    options = parser.parse_args(arguments)
    try:
        cases = complete_cases(options.cases)
        dropped = draw([c.name for c in cases], options.seed, options.modality)
        check_record(options.out, dropped)
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / RECORD, dropped)
        for case in cases:
            write_case(case, dropped[case.name], options.out, options.keep_segmentation, options.link)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = {m: list(dropped.values()).count(m) for m in MODALITIES}
    print(f"{len(cases)} cases in {options.out}; dropped " + ", ".join(f"{m} {n}" for m, n in counts.items()))
    return 0


def complete_cases(folder: Path) -> list[Case]:
    cases = find_cases(folder)
    incomplete = [f"{c.name} lacks {', '.join(c.missing)}" for c in cases if c.missing]
    if incomplete:
        raise DataError(
            f"{folder}: only complete cases can have a modality dropped; " + "; ".join(incomplete)
        )
    return cases


def draw(names: Sequence[str], seed: int = CHALLENGE_SEED, modality: str | None = None) -> dict[str, str]:
    """Dropped modality by case name; `names` must be sorted."""
    if modality is not None:
        return dict.fromkeys(names, modality)
    indices = np.random.RandomState(seed).randint(0, len(MODALITIES), size=len(names))
    return {name: MODALITIES[i] for name, i in zip(names, indices)}


def check_record(out: Path, dropped: dict[str, str]) -> None:
    """Raise DataError if `out` already holds another draw: a mixture would leak what was dropped."""
    record = out / RECORD
    if record.exists():
        if json.loads(record.read_text()) != dropped:
            raise DataError(
                f"{out} holds another draw ({RECORD} differs); remove it or choose another folder"
            )
    elif out.exists() and any(p.is_dir() for p in out.iterdir()):
        raise DataError(f"{out} holds folders but no {RECORD}: other data; choose another folder")


def write_case(case: Case, dropped: str, out: Path, keep_segmentation: bool, link: bool) -> None:
    folder = out / case.name
    folder.mkdir(parents=True, exist_ok=True)
    for modality, source in case.files.items():
        if modality == dropped or (modality == "seg" and not keep_segmentation):
            continue
        with atomic_path(folder / source.name) as temporary:
            if link:
                temporary.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, temporary)


if __name__ == "__main__":
    sys.exit(main())
