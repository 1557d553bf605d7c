"""Shard-set metadata: schema and serialisation.

SetHeader --to_dict--> JSON in each tar (tar_shards.py) and in index.json --from_dict--> equal SetHeader
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from brasyn_dist.brats import BRATS, VIEWS
from brasyn_dist.data.format.codec import DTYPES, check_codec
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet

FORMAT = "brasyn_dist shards"
VERSION = 1


@dataclass(frozen=True)
class CaseEntry:
    """One row of the case table of a set."""

    name: str
    cohort: str
    split: str
    patient: str
    segmentation: bool
    """False: the case has no segmentation, and its slices have no label plane."""
    medians: tuple[int, ...] | None = None
    """Median of the foreground of each modality, in modality order; None in sets of earlier versions."""


@dataclass(frozen=True)
class SetHeader:
    """Metadata of a set, stored in each shard and in the index."""

    codec: str
    dtype: str
    seed: int
    """Seed of the split and of the order in which slices were written."""
    views: tuple[str, ...]
    shard_counts: dict[str, int]
    """Number of shards of each split, e.g. {"train": 12, "val": 2}."""
    cases: tuple[CaseEntry, ...]
    statistics: dict[str, Any]
    """Content of statistics.json."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Cases left out: {"case", "cohort", "reason"}."""
    options: dict[str, Any] = field(default_factory=dict)
    """Other options of the set, for the record."""
    modality_set: ModalitySet = BRATS
    """Modalities, labels and regions of its cases."""

    def __post_init__(self) -> None:
        check_codec(self.codec)
        if self.dtype not in DTYPES:
            raise DataError(f"shard set of dtype {self.dtype!r}; this version reads {', '.join(DTYPES)}")
        if set(self.views) - set(VIEWS):
            raise DataError(f"shard set with unknown views {self.views}; expected {', '.join(VIEWS)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON content. The case table is stored as columns, in a third of the size."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        del values["modality_set"]
        if self.modality_set != BRATS:  # sets of BraTS cases keep their fingerprint
            values["modality_set"] = self.modality_set.to_dict()
        values["views"] = list(self.views)
        values["cases"] = {
            name: [getattr(case, name) for case in self.cases] for name in CaseEntry.__dataclass_fields__
        }
        if all(case.medians is None for case in self.cases):
            del values["cases"]["medians"]  # sets of earlier versions keep their fingerprint
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object) -> "SetHeader":
        """Inverse of `to_dict`. Raises DataError, naming `where`, if this version cannot read the set."""
        found = (values.get("format"), values.get("version"))
        if found != (FORMAT, VERSION):
            raise DataError(
                f"{where}: expected {FORMAT!r} version {VERSION}, found {found[0]!r} version {found[1]!r}; "
                "write the shards again with this version, or use the version that wrote them"
            )
        try:
            return cls(
                codec=values["codec"],
                dtype=values["dtype"],
                seed=values["seed"],
                views=tuple(values["views"]),
                shard_counts=values["shard_counts"],
                cases=_case_table(values["cases"]),
                statistics=values["statistics"],
                skipped=values["skipped"],
                options=values["options"],
                modality_set=ModalitySet.from_dict(values["modality_set"])
                if "modality_set" in values
                else BRATS,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: damaged description of the shard set ({error!r})") from None


def _case_table(columns: dict[str, list[Any]]) -> tuple[CaseEntry, ...]:
    names = [name for name in CaseEntry.__dataclass_fields__ if name != "medians"]
    medians = columns.get("medians", [None] * len(columns["name"]))
    rows = zip(*(columns[name] for name in names), strict=True)
    return tuple(
        CaseEntry(**dict(zip(names, row)), medians=None if of_case is None else tuple(of_case))
        for row, of_case in zip(rows, medians, strict=True)
    )
