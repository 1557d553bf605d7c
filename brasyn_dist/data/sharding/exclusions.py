"""Cases that a user leaves out of a shard set because of the findings of `brasyn inspect`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from brasyn_dist.common.files import read_text
from brasyn_dist.errors import DataError


def read_exclusions(path: Path, kinds: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """(case, reason) of the cases in a file, sorted by name.

    Args:
        path: findings.json or inspection.json of `brasyn inspect`, from which entries may have been removed;
            or a JSON list of names; or one name on each line, with # comments.
        kinds: Kinds of findings that exclude a case; empty: all in the file.

    Raises:
        DataError: The file has another content, or no finding of one of the kinds.
    """
    text = read_text(path)
    try:
        values: Any
        if text.lstrip().startswith(("[", "{")):
            values = json.loads(text)
        else:
            values = [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]
        entries = values["findings"] if isinstance(values, dict) else values
        findings = [_finding(entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no findings ({error!r}); give findings.json of `brasyn inspect`, or names of cases"
        ) from None
    known = sorted({kind for _, kind, _ in findings})
    if unknown := sorted(set(kinds) - set(known)):
        raise DataError(f"{path}: no finding of kind {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    reasons: dict[str, list[str]] = {}
    for case, kind, reason in findings:
        if not kinds or kind in kinds:
            reasons.setdefault(case, []).append(reason)
    return tuple((case, "; ".join(dict.fromkeys(found))) for case, found in sorted(reasons.items()))


def _finding(entry: Any) -> tuple[str, str, str]:
    """(case, kind, reason) of an entry of the file."""
    if isinstance(entry, str):
        return entry, "listed", "listed"
    words = [entry["kind"], entry.get("modality", ""), entry.get("detail", "")]
    return str(entry["case"]), str(entry["kind"]), " ".join(word for word in words if word)
