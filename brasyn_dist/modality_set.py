"""The set of modalities and labels of a data set or a model: plain data, stored with shards and exported weights.

`brats.BRATS` is the preset. Nothing below `brats.py` may assume four modalities or BraTS' labels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from brasyn_dist.errors import DataError


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
    """File suffix, in lower case -> modality. Empty: each modality's own name is its suffix."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Canonical label value (above 0) -> name. Empty: no segmentations."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Region -> the labels that it unites."""

    def __post_init__(self) -> None:
        if len(self.modalities) < 2 or len(set(self.modalities)) != len(self.modalities):
            raise DataError(
                f"modality set {self.name}: modalities {list(self.modalities)}; at least two different names are needed"
            )
        unknown = {m for m in self.suffixes.values() if m != "seg"} - set(self.modalities)
        if unknown:
            raise DataError(
                f"modality set {self.name}: suffixes name unknown modalities {', '.join(sorted(unknown))}"
            )

    def __len__(self) -> int:
        return len(self.modalities)

    def title(self, modality: str) -> str:
        return self.titles.get(modality, modality)

    def index(self, modality: str) -> int:
        """Channel number. Raises DataError for a name that is not in the set."""
        if modality not in self.modalities:
            raise DataError(f"unknown modality {modality!r}; choose from {', '.join(self.modalities)}")
        return self.modalities.index(modality)

    def indices(self, modalities: Iterable[str]) -> tuple[int, ...]:
        """Channel numbers in channel order."""
        return tuple(sorted(self.index(m) for m in modalities))

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible mapping that `from_dict` reads back equal."""
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
            return cls(
                name=str(values["name"]),
                modalities=tuple(values["modalities"]),
                titles=dict(values.get("titles", {})),
                suffixes={key.lower(): m for key, m in values.get("suffixes", {}).items()},
                labels={int(value): name for value, name in values.get("labels", {}).items()},
                regions={name: tuple(labels) for name, labels in values.get("regions", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a modality set ({error!r}): {values!r}") from None
