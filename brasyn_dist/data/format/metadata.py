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
CHUNKS_VERSION = 2
"""Version of sets with chunks; earlier versions of the package refuse them."""
CHUNK = "chunk"
"""Kind of the samples that are parts of volumes; the others are slices of a view."""
KINDS = (*VIEWS, CHUNK)
"""The position is the number of a kind in the index."""


OPTIONAL = ("medians", "shape", "stage1_medians")
"""Columns of the case table that not every set has."""


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
    shape: tuple[int, ...] | None = None
    """(x, y, z) of its volumes; None in sets without chunks."""
    stage1_medians: tuple[int, ...] | None = None
    """Like `medians`, of the stage-1 volumes; None in sets without them."""


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
    chunk: int | None = None
    """Side of the chunks in voxels; None: the set has none."""
    stage1: bool = False
    """The chunks also have each modality as stage-1 networks synthesised it."""

    def __post_init__(self) -> None:
        check_codec(self.codec)
        if self.dtype not in DTYPES:
            raise DataError(f"shard set of dtype {self.dtype!r}; this version reads {', '.join(DTYPES)}")
        if set(self.views) - set(VIEWS):
            raise DataError(f"shard set with unknown views {self.views}; expected {', '.join(VIEWS)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of its samples."""
        return (*self.views, *([CHUNK] if self.chunk else []))

    def planes(self, case: int, kind: str) -> int:
        """Number of planes of a sample of a case."""
        images = len(self.modality_set) * (2 if kind == CHUNK and self.stage1 else 1)
        return images + self.cases[case].segmentation

    def to_dict(self) -> dict[str, Any]:
        """JSON content. The case table is stored as columns, in a third of the size."""
        version = CHUNKS_VERSION if self.chunk else VERSION
        values = {"format": FORMAT, "version": version, **asdict(self)}
        if not self.chunk:
            del values["chunk"], values["stage1"]
        del values["modality_set"]
        if self.modality_set != BRATS:  # sets of BraTS cases keep their fingerprint
            values["modality_set"] = self.modality_set.to_dict()
        values["views"] = list(self.views)
        values["cases"] = {
            name: [getattr(case, name) for case in self.cases] for name in CaseEntry.__dataclass_fields__
        }
        for name in OPTIONAL:  # sets of earlier versions keep their fingerprint
            if all(getattr(case, name) is None for case in self.cases):
                del values["cases"][name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object) -> "SetHeader":
        """Inverse of `to_dict`. Raises DataError, naming `where`, if this version cannot read the set."""
        found = (values.get("format"), values.get("version"))
        if found not in ((FORMAT, VERSION), (FORMAT, CHUNKS_VERSION)):
            raise DataError(
                f"{where}: expected {FORMAT!r} version {VERSION} or {CHUNKS_VERSION}, "
                f"found {found[0]!r} version {found[1]!r}; "
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
                chunk=values.get("chunk"),
                stage1=values.get("stage1", False),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: damaged description of the shard set ({error!r})") from None


def _case_table(columns: dict[str, list[Any]]) -> tuple[CaseEntry, ...]:
    names = [name for name in CaseEntry.__dataclass_fields__ if name not in OPTIONAL]
    rows = zip(*(columns[name] for name in names), strict=True)
    missing = [None] * len(columns["name"])
    optional = zip(*(columns.get(name, missing) for name in OPTIONAL), strict=True)
    return tuple(
        CaseEntry(**dict(zip((*names, *OPTIONAL), (*row, *(value and tuple(value) for value in more)))))
        for row, more in zip(rows, optional, strict=True)
    )
