"""Label edition of each cohort, decided from the segmentations of all its cases.

    cases --label_values--> values of each file --decide--> EditionDecision of each cohort
                                                            --> cases with label_order

A single file does not show its edition: 4 is enhancing tumour to 2021, a resection cavity in 2024, and oedema
in BraTS-PED. All files of a cohort together do, or they contradict each other. Cases whose names are those of
an edition to 2021 (`BraTS2021_00012`, `BraTS20_Training_001`, `Brats18_2013_21_1`) are decided on their own.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from brasyn_dist.brats import LABEL_NAMES, Case, LabelOrder
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.nifti import label_values
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import SEGMENTATION

log = logging.getLogger(__name__)
LabelEdition = Literal["auto", "brats2021", "brats2023", "brats2024", "ped"]
REMEDY = "give --label-edition brats2021, brats2023, brats2024 or ped, and one edition in a folder"
_OLD_NAME = re.compile(r"brats(1[0-9]|20|201\d|202[01])_", re.I)
_PED = re.compile(r"(^|[^a-z])peds?([^a-z]|$)", re.I)


@dataclass(frozen=True)
class EditionDecision:
    """Label edition of a cohort."""

    edition: LabelOrder
    reason: str
    warning: str = ""
    """What the user should check; empty: nothing."""


def with_label_editions(
    cases: Sequence[Case], edition: LabelEdition = "auto", workers: int = 1
) -> tuple[list[Case], dict[str, EditionDecision]]:
    """The cases with the order of their labels, and the decision for each cohort that has segmentations.

    Decisions are logged. Files that cannot be read take no part: reading the case reports them.

    Args:
        cases: Cases of all cohorts. Only the labels of BraTS have editions.
        edition: `auto`, or the edition of all cohorts.
        workers: Processes.

    Raises:
        DataError: The values of a cohort contradict each other.
    """
    labelled = [c for c in cases if SEGMENTATION in c.files and c.modality_set.labels == LABEL_NAMES]
    cohorts: dict[str, dict[str, frozenset[int]]] = {}
    found = parallel_map("label editions", _values_of, labelled, min(workers, max(1, len(labelled))))
    for case, values in found:
        cohorts.setdefault(_group(case), {})[case.name] = values
    decisions = {
        cohort: decide(cohort, dict(sorted(values.items())), edition) for cohort, values in cohorts.items()
    }
    for cohort, decision in sorted(decisions.items()):
        log.info("%s: label edition %s (%s)", cohort, decision.edition, decision.reason)
        if decision.warning:
            log.warning("%s: %s", cohort, decision.warning)
    return [
        replace(c, label_order=decisions[_group(c)].edition) if _group(c) in decisions else c for c in cases
    ], decisions


def _group(case: Case) -> str:
    """Cases that are decided together."""
    return (
        f"{case.cohort}, cases named as in BraTS 2021 and earlier"
        if _OLD_NAME.match(case.name)
        else case.cohort
    )


def _values_of(case: Case) -> tuple[Case, frozenset[int]]:
    try:
        return case, label_values(Path(case.files[SEGMENTATION]))
    except Exception:  # the file is reported when the case is read
        return case, frozenset()


def decide(
    cohort: str, values: Mapping[str, frozenset[int]], edition: LabelEdition = "auto"
) -> EditionDecision:
    """Edition of a cohort.

    Args:
        cohort: Its name.
        values: Values of the segmentation of each case, by name.
        edition: Given edition, or `auto`.

    Raises:
        DataError: Some files have 3 and others 4, and none has both.
    """
    both = [name for name, found in values.items() if {3, 4} <= found]
    threes = [name for name, found in values.items() if 3 in found and 4 not in found]
    fours = [name for name, found in values.items() if 4 in found and 3 not in found]
    cavities = (
        f"value 4 without 3 in {_some(fours)}: resection cavity without enhancing tumour" if fours else ""
    )
    if edition != "auto":
        return EditionDecision(edition, "as given", cavities if edition == "brats2024" else "")
    if any(_PED.search(name) for name in (cohort, *values)):
        if both or fours:
            return EditionDecision("ped", f"value 4 in {_some(both + fours)}, and the names contain PED")
        return EditionDecision(
            "brats2023",
            "no file has value 4",
            "names contain PED: if 1 is enhancing tumour, 2 non-enhancing and 3 cyst (2024), "
            "give --label-edition ped",
        )
    if both:
        return EditionDecision(
            "brats2024", f"values 3 and 4, enhancing tumour and resection cavity, in {_some(both)}", cavities
        )
    if threes and fours:
        raise DataError(
            f"{cohort}: value 3 in {_some(threes)}, value 4 in {_some(fours)}, both in no file: enhancing "
            f"tumour of two editions, or resection cavities; {REMEDY}"
        )
    if fours:
        recent = [name for name in fours if re.match(r"BraTS-[A-Z]+-", name, re.I)]
        return EditionDecision(
            "brats2021",
            f"value 4, enhancing tumour, in {_some(fours)}; value 3 in none",
            f"names of 2023 or later, such as {recent[0]}, but labels of 2021: if 4 is a resection cavity, "
            "give --label-edition brats2024"
            if recent
            else "",
        )
    return EditionDecision(
        "brats2023",
        f"value 3, enhancing tumour, in {_some(threes)}; value 4 in none"
        if threes
        else "no file has value 3 or 4",
    )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} files (such as {names[0]})" if len(names) > 1 else f"1 file ({names[0]})"


def recorded(decisions: Mapping[str, EditionDecision]) -> dict[str, str]:
    """Cohort -> edition, for the index, without `brats2023`: its sets keep their fingerprint."""
    return {cohort: d.edition for cohort, d in sorted(decisions.items()) if d.edition != "brats2023"}
