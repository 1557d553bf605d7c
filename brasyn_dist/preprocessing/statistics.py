"""Intensity statistics of a data set from histograms of integers: exact and independent of the case order.

    voxels > 0 of each training case --> Histogram (+ Histogram + ...) --> Statistics --> statistics.json

The clipping maximum is the 99.5th percentile of the foreground; mean and standard deviation are those after
clipping (docs/explanation/method.md, section 2).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.common.files import canonical_json, read_text, write_json
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet

VERSION = 1
PERCENTILE = 99.5
"""Default percentile of the foreground at which intensities are clipped."""
CANDIDATES = (95.0, 98.0, 99.0, 99.5)
"""Percentiles that the thesis compares (Table 4.1)."""


@dataclass(frozen=True)
class ModalityStatistics:
    """Foreground intensities of one modality, in the units of the files."""

    clip_max: float
    mean: float
    std: float
    voxels: int


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set; `modalities` by name, in the order of the modality set."""

    modalities: dict[str, ModalityStatistics]
    cases: int = 0
    case_list_hash: str = ""
    version: int = VERSION

    @property
    def hash(self) -> str:
        """SHA-256 of the content of statistics.json."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def column(self, name: str) -> tuple[float, ...]:
        """`clip_max`, `mean`, `std` or `voxels` in modality order."""
        return tuple(getattr(entry, name) for entry in self.modalities.values())

    def to_dict(self) -> dict[str, Any]:
        """Content of statistics.json."""
        return {
            "version": self.version,
            "cases": self.cases,
            "case_list_hash": self.case_list_hash,
            "modalities": {m: asdict(entry) for m, entry in self.modalities.items()},
        }

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], where: object = "statistics", modality_set: ModalitySet = BRATS
    ) -> "Statistics":
        """Inverse of `to_dict`, in any order of the modalities.

        Raises:
            DataError: A value is missing or impossible, or a modality of `modality_set` is missing; with
                `where`.
        """
        try:
            if values["version"] != VERSION:
                raise DataError(f"{where}: version {values['version']}, this program reads {VERSION}")
            modalities = {m: ModalityStatistics(**values["modalities"][m]) for m in modality_set.modalities}
            statistics = cls(modalities, values["cases"], values["case_list_hash"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{where}: no valid statistics ({error!r}); make them with `brasyn shard`"
            ) from None
        for name, entry in modalities.items():
            if not (entry.std > 0 and entry.clip_max > 0):
                raise DataError(
                    f"{where}: {name} has std {entry.std} and clip_max {entry.clip_max}; both must exceed 0"
                )
        return statistics

    def save(self, path: Path | str) -> None:
        """Write a statistics.json."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str, modality_set: ModalitySet = BRATS) -> "Statistics":
        """Read a statistics.json; `published` stands for PUBLISHED. Raises DataError, see `from_dict`."""
        if str(path) == "published":
            if set(modality_set.modalities) - set(PUBLISHED.modalities):
                raise DataError(
                    f"the published statistics have no {', '.join(modality_set.modalities)}; give the "
                    "statistics.json of a shard set"
                )
            return PUBLISHED
        text = read_text(path, "give a statistics.json, or `published`")
        try:
            return cls.from_dict(json.loads(text), path, modality_set)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from None


PUBLISHED = Statistics(
    {
        "t1c": ModalityStatistics(8664.0, 1066.3375, 1301.7006, 0),
        "t1n": ModalityStatistics(7315.0, 781.2247, 944.3418, 0),
        "t2f": ModalityStatistics(8842.0, 510.9852, 769.4159, 0),
        "t2w": ModalityStatistics(8233.0, 673.4393, 804.3864, 0),
    }
)
"""Published statistics of the BraSyn training set (thesis, Table 4.2)."""


def case_list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted case names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


class Histogram:
    """Occurrences of each positive integer in the foreground of each modality; their sum is exact."""

    def __init__(self, modality_set: ModalitySet = BRATS) -> None:
        self.modalities = modality_set.modalities
        self.counts: list[np.ndarray] = [np.zeros(1, np.int64) for _ in self.modalities]

    def add(self, counts: Sequence[np.ndarray], times: int = 1) -> "Histogram":
        """Add the `foreground_counts` of each modality `times` times; with -1, remove them."""
        for modality, new in enumerate(counts):
            total = self.counts[modality]
            total = np.pad(total, (0, max(0, len(new) - len(total))))
            total[: len(new)] += times * new
            self.counts[modality] = total
        return self

    def statistics(
        self, cases: Iterable[str], headroom: float = 1.0, percent: float = PERCENTILE
    ) -> Statistics:
        """Statistics of the counted voxels (see `summarise`) and the names of their cases.

        Raises:
            DataError: A modality has no foreground.
        """
        names = list(cases)
        summaries = {}
        for name, counts in zip(self.modalities, self.counts):
            if not counts.sum():
                raise DataError(f"no foreground in any training volume of {name}: all voxels are 0")
            summaries[name] = summarise(counts, headroom, percent)
        return Statistics(summaries, len(names), case_list_hash(names))


def summarise(counts: np.ndarray, headroom: float = 1.0, percent: float = PERCENTILE) -> ModalityStatistics:
    """Exact statistics of integers v that occur counts[v] times, clipped at `headroom` x percentile."""
    voxels = int(counts.sum())
    clip_max = headroom * percentile(counts, percent)
    values = np.minimum(np.arange(len(counts), dtype=np.float64), clip_max)
    # Offsets from the mean: the plain sum of squares would suffer from cancellation.
    mean = float(np.dot(values, counts) / voxels)
    variance = float(np.dot((values - mean) ** 2, counts) / voxels)
    return ModalityStatistics(clip_max, mean, float(np.sqrt(variance)), voxels)


def percentile(counts: np.ndarray, percent: float) -> float:
    """`numpy.percentile` (linear interpolation) of that multiset."""
    cumulative = np.cumsum(counts)
    position = (int(cumulative[-1]) - 1) * percent / 100
    below = int(np.floor(position))
    low, high = np.searchsorted(cumulative, [below, min(below + 1, int(cumulative[-1]) - 1)], side="right")
    return float(low + (high - low) * (position - below))
