"""Patient-level split: all cases of a patient are either trained on or held out for validation.

names in a file, or a fraction --> patients --> names of the held-out cases
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from brasyn_dist.brats import Case, patient_of
from brasyn_dist.common.files import read_text
from brasyn_dist.errors import DataError


def held_out_by_list(cases: Iterable[Case], names: Collection[str]) -> set[str]:
    """Names of all cases of the patients that `names` (of cases or patients) contains."""
    cases = list(cases)
    patients = set(names) | {patient_of(name) for name in names}
    patients |= {c.patient for c in cases if c.name in patients or patient_of(c.name) in patients}
    return {c.name for c in cases if c.patient in patients}


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Raise DataError if one of the names in a split file is not among the `known` cases and patients."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        more = f" (nor {len(unknown) - 1} more of its names)" if len(unknown) > 1 else ""
        raise DataError(
            f"split file: no case or patient is called {unknown[0]}{more}; names are those of the "
            "case folders"
        )


def held_out_by_fraction(cases: Iterable[Case], fraction: float, seed: int) -> set[str]:
    """Names of the held-out cases: in each cohort the given fraction of patients, rounded.

    At least one of two or more patients is held out, but never all. Patients are ranked by a hash of (seed,
    name), so that an additional patient moves at most one other.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation fraction {fraction}: must be at least 0 and below 1")
    cases = list(cases)
    cohorts: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        cohorts[case.cohort].add(case.patient)
    patients: set[str] = set()
    for members in cohorts.values():
        count = round(fraction * len(members))
        if fraction and len(members) > 1:
            count = min(max(1, count), len(members) - 1)
        patients |= set(sorted(members, key=lambda name: _rank(seed, name))[:count])
    return {c.name for c in cases if c.patient in patients}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def read_split_file(path: Path) -> tuple[str, ...]:
    """Names in a split file: a JSON list, or one name on each line, with # comments."""
    text = read_text(path)
    try:
        if not text.lstrip().startswith("["):
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            return tuple(line for line in lines if line)
        return tuple(str(name) for name in json.loads(text))
    except ValueError as error:
        raise DataError(
            f"{path}: not a list of case names ({error}); give a JSON list or one name on each line"
        ) from None
