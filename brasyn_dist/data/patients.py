"""Patients: which cases belong together, so that a split never divides them.

names, or a file of the user --> patient of each case
equal volumes                --> cases of one patient, whatever their names
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from brasyn_dist.brats import Case
from brasyn_dist.common.files import read_text
from brasyn_dist.errors import DataError

_NUMBERED = re.compile(r"^(?P<stem>.*\d)[-_ ](?P<number>\d{1,3}|[a-z])$", re.I)
"""Names that may be time points: a stem that ends with a digit, and a short number or letter."""


def read_patients_file(path: Path) -> dict[str, str]:
    """Case -> patient: a JSON object, or lines `case,patient` (also with `;` or a tab, with # comments).

    Raises:
        DataError: The file cannot be read, a line has another form, or a case has two patients.
    """
    text = read_text(path)
    try:
        if text.lstrip().startswith("{"):
            return {str(case): str(patient) for case, patient in json.loads(text).items()}
    except ValueError as error:
        raise DataError(f"{path}: no mapping of cases to patients ({error})") from None
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    delimiter = next((d for d in "\t,;" if any(d in line for line in lines)), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(filter(None, lines), delimiter=delimiter)]
    wrong = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if wrong is not None or not rows:
        raise DataError(
            f"{path}: expected lines `case,patient` or a JSON object, found {(delimiter.join(wrong or []))!r}"
        )
    patients: dict[str, str] = {}
    for case, patient in rows:
        if patients.setdefault(case, patient) != patient:
            raise DataError(f"{path}: {case} has two patients, {patients[case]} and {patient}; remove one")
    return {case: p for case, p in patients.items() if (case.lower(), p.lower()) != ("case", "patient")}


def with_patients(cases: Sequence[Case], patients: Mapping[str, str]) -> list[Case]:
    """The cases with the patients of a file; cases that it does not name keep the patient of their name.

    Patients whose names differ in case only are one patient.

    Raises:
        DataError: The file names cases, but none of these.
    """
    if patients and not any(case.name in patients for case in cases):
        raise DataError(
            f"--patients: none of its {len(patients)} names is a case, such as {next(iter(patients))}; "
            "names are those of the case folders"
        )
    named = [replace(c, patient_id=patients[c.name]) if c.name in patients else c for c in cases]
    return _unite(named, [])[0]


def unite_equal(
    cases: Sequence[Case], fingerprints: Mapping[str, Sequence[str]]
) -> tuple[list[Case], list[str]]:
    """The cases, with one patient for those that share a volume, and one line for each such pair.

    Args:
        cases: Cases with patients by name or file.
        fingerprints: Name of a case -> one value for each of its volumes; equal volumes have equal values.
    """
    first: dict[str, str] = {}
    pairs: dict[tuple[str, str], None] = {}
    for case in sorted(cases, key=lambda c: c.name):
        for value in fingerprints.get(case.name, ()):
            other = first.setdefault(value, case.name)
            if other != case.name:
                pairs[other, case.name] = None
    return _unite(cases, list(pairs))


def _unite(cases: Sequence[Case], pairs: Sequence[tuple[str, str]]) -> tuple[list[Case], list[str]]:
    """Unite the patients of the pairs of cases, and those whose names differ in case only."""
    root: dict[str, str] = {}

    def find(patient: str) -> str:
        while (parent := root.get(patient, patient)) != patient:
            patient = parent
        return patient

    def join(one: str, other: str) -> None:
        least, most = sorted((find(one), find(other)))
        root[most] = least

    by_name = {case.name: case for case in cases}
    folded: dict[str, str] = {}
    for case in sorted(cases, key=lambda c: c.name):
        join(case.patient, folded.setdefault(case.patient.casefold(), case.patient))
    notes = []
    for one, other in pairs:
        join(by_name[one].patient, by_name[other].patient)
        notes.append(f"{other} has a volume of {one}: treated as one patient")
    united = [c if find(c.patient) == c.patient else replace(c, patient_id=find(c.patient)) for c in cases]
    return united, notes


def possible_time_points(cases: Sequence[Case]) -> str:
    """A warning if the names of different patients look like time points of one; empty otherwise."""
    stems: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if case.patient == case.name and (match := _NUMBERED.match(case.name)):
            stems[match["stem"]].append(case.name)
    several = {stem: names for stem, names in sorted(stems.items()) if len(names) > 1}
    if len(stems) < 2 or not several:  # a single stem is the name of the collection
        return ""
    names = next(iter(several.values()))
    return (
        f"{names[0]} and {names[1]} look like time points of one patient ({len(several)} such groups) and "
        "are split as different patients; if they are one, give --patients FILE"
    )
