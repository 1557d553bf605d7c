"""Modalities and labels of a data set or a model: plain data, stored with shards and exported weights.

`brats.BRATS` is the preset. No module above `brats.py` may assume four modalities or the labels of BraTS.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from brasyn_dist.common.files import read_text
from brasyn_dist.errors import DataError

SEGMENTATION = "seg"
"""Key of the segmentation in `ModalitySet.suffixes` and in `Case.files`."""
MAX_LABEL = 255
"""Labels are stored as uint8."""


@dataclass(frozen=True)
class ModalitySet:
    """Names, file suffixes, labels and regions of one kind of study.

    The order of `modalities` is the channel order of every (M, ...) array and of exported weights.
    """

    name: str
    modalities: tuple[str, ...]
    titles: Mapping[str, str] = field(default_factory=dict)
    """Modality -> name for people; a modality without a title is shown by its own name."""
    suffixes: Mapping[str, str] = field(default_factory=dict)
    """File suffix, in lower case -> modality or `seg`. Empty: the name of each modality is its suffix."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Canonical label value (1 to 255) -> name. Empty: no segmentations."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Region -> the labels that it unites."""

    def __post_init__(self) -> None:
        where = f"modality set {self.name}"
        if len(self.modalities) < 2 or len(set(self.modalities)) != len(self.modalities):
            raise DataError(
                f"{where}: modalities {list(self.modalities)}; at least two different names are needed"
            )
        unusable = [
            m for m in self.modalities if m == SEGMENTATION or not re.fullmatch(r"[A-Za-z0-9_.+-]+", m)
        ]
        if unusable:
            raise DataError(
                f"{where}: modality {unusable[0]!r}; use letters, digits and _ . + - in names, and not `seg`"
            )
        unknown = set(self.suffixes.values()) - {SEGMENTATION, *self.modalities}
        if unknown:
            raise DataError(f"{where}: suffixes name unknown modalities {', '.join(sorted(unknown))}")
        without = set(self.modalities) - set(self.suffixes.values()) if self.suffixes else set()
        if without:
            raise DataError(f"{where}: no file suffix for {', '.join(sorted(without))}")
        if any(not 0 < value <= MAX_LABEL for value in self.labels):
            raise DataError(f"{where}: labels {sorted(self.labels)}; values must be from 1 to {MAX_LABEL}")
        for region, values in self.regions.items():
            if not values or set(values) - set(self.labels):
                raise DataError(
                    f"{where}: region {region} has labels {list(values)}; choose from {sorted(self.labels)}"
                )

    def __len__(self) -> int:
        return len(self.modalities)

    @property
    def highest_label(self) -> int:
        """Largest label of a tumour. Larger values (brats.CAVITY) are neither tumour nor healthy tissue."""
        return max(self.labels, default=0)

    def title(self, modality: str) -> str:
        """Name for people."""
        return self.titles.get(modality, modality)

    def index(self, modality: str) -> int:
        """Channel number. Raises DataError for a name that is not in the set."""
        if modality not in self.modalities:
            raise DataError(f"unknown modality {modality!r}; choose from {', '.join(self.modalities)}")
        return self.modalities.index(modality)

    def indices(self, modalities: Iterable[str]) -> tuple[int, ...]:
        """Channel numbers in channel order."""
        return tuple(sorted(self.index(m) for m in modalities))

    def parse_file_name(self, name: str) -> tuple[str, str] | None:
        """(case name, modality or `seg`) of a file called `<case>-<suffix>.nii.gz`.

        `_` may replace `-`, and `.nii` may replace `.nii.gz`. Returns None if the name has another form.
        """
        match = self._file_pattern.match(name)
        return (match["case"], self._suffix_table[match["suffix"].lower()]) if match else None

    @functools.cached_property
    def _suffix_table(self) -> dict[str, str]:
        table = dict(self.suffixes) or {m.lower(): m for m in self.modalities}
        if not self.labels:
            return {suffix: m for suffix, m in table.items() if m != SEGMENTATION}
        return table if SEGMENTATION in table.values() else {**table, SEGMENTATION: SEGMENTATION}

    @functools.cached_property
    def _file_pattern(self) -> re.Pattern[str]:
        # Longer suffixes come first, so that `ep2d_adc` is not read as `adc`.
        suffixes = "|".join(re.escape(s) for s in sorted(self._suffix_table, key=len, reverse=True))
        return re.compile(rf"^(?P<case>.+?)[-_](?P<suffix>{suffixes})\.nii(\.gz)?$", re.I | re.S)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible mapping; `from_dict` reads it back as an equal set."""
        return {
            "name": self.name,
            "modalities": list(self.modalities),
            "titles": dict(self.titles),
            "suffixes": dict(self.suffixes),
            "labels": {str(value): name for value, name in self.labels.items()},
            "regions": {name: list(values) for name, values in self.regions.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModalitySet":
        """Inverse of `to_dict`. Raises DataError if `values` are not a modality set."""
        try:
            unknown = set(values) - set(cls.__dataclass_fields__)
            if unknown or isinstance(values["modalities"], str):
                raise ValueError(", ".join(sorted(unknown)) or "modalities must be a list")
            return cls(
                name=str(values["name"]),
                modalities=tuple(map(str, values["modalities"])),
                titles={str(m): str(title) for m, title in values.get("titles", {}).items()},
                suffixes={str(key).lower(): str(m) for key, m in values.get("suffixes", {}).items()},
                labels={int(value): str(name) for value, name in values.get("labels", {}).items()},
                regions={
                    str(name): tuple(map(int, labels)) for name, labels in values.get("regions", {}).items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a modality set ({error!r}): {values!r}") from None


def read_modality_set(path: Path | str) -> ModalitySet:
    """Read a modality set from a YAML or JSON file.

    Args:
        path: File with the fields of `ModalitySet`; `name` and `modalities` are required.

    Raises:
        DataError: The file cannot be read, or its content is not a modality set.
    """
    text = read_text(path)
    try:
        return ModalitySet.from_dict(yaml.safe_load(text))  # JSON is a subset of YAML
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: not valid YAML or JSON ({' '.join(str(error).split())})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
