"""Options of a shard set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brasyn_dist.brats import BRATS, VIEWS, Case
from brasyn_dist.data.format.codec import DEFAULT_CODEC, check_codec
from brasyn_dist.data.label_editions import LabelEdition
from brasyn_dist.data.nifti import check_axes
from brasyn_dist.data.sharding.patient_split import held_out_by_fraction, held_out_by_list
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.chunking import LARGEST, SMALLEST
from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND
from brasyn_dist.preprocessing.statistics import PERCENTILE

ADDED = ("label_edition", "clip_percentile", "assume", "strict", "patients", "exclude", "chunks", "stage1")
"""Fields that sets of version 0.1 do not have. They are recorded only if they differ from the default."""


@dataclass(frozen=True)
class ShardOptions:
    """Content of a shard set. All fields are part of the identity of the set."""

    views: tuple[str, ...] = VIEWS
    """Views of the slices; empty: only chunks."""
    seed: int = 0
    validation_fraction: float = 0.1
    validation_cases: tuple[str, ...] | None = None
    """Names of held-out cases or patients; used instead of the fraction."""
    minimum_foreground: int = MINIMUM_FOREGROUND
    samples_per_shard: int = 1000
    codec: str = DEFAULT_CODEC
    round_values: bool = False
    headroom: float = 1.0
    """Computed statistics clip at this multiple of the percentile. Above 1, brighter scans than those
    of a small cohort are not clipped."""

    modality_set: ModalitySet = BRATS
    """Modalities, file names and labels of the cases."""
    label_edition: LabelEdition = "auto"
    """Edition of the labels of all cohorts; `auto`: decided for each cohort."""
    clip_percentile: float = PERCENTILE
    """Percentile of the foreground at which computed statistics clip."""
    assume: str | None = None
    """Order of the axes of volumes whose headers state none, such as LPS; None: they are refused."""
    strict: bool = False
    """Refuse cases with notes (data/case_notes.py)."""
    patients: tuple[tuple[str, str], ...] = ()
    """(case, patient), sorted; other cases have the patient of their name."""
    exclude: tuple[tuple[str, str], ...] = ()
    """(case, reason) of cases to leave out, sorted."""
    chunks: int | None = None
    """Side of the chunks of the volumes, in voxels; None: no chunks."""
    stage1: Path | None = None
    """Folder of stage-1 volumes to store in the chunks; recorded by the names and sizes of its files."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not (self.views or self.chunks) or len(set(self.views)) < len(self.views):
            raise DataError(
                f"views {', '.join(self.views) or 'none'}: choose from {', '.join(VIEWS)}, each once"
            )
        if self.chunks is not None and not SMALLEST <= self.chunks <= LARGEST:
            raise DataError(f"chunks of {self.chunks} voxels: choose a side of {SMALLEST} to {LARGEST}")
        if self.samples_per_shard < 1:
            raise DataError("samples per shard: must be at least 1")
        if self.headroom < 1:
            raise DataError(f"headroom {self.headroom}: must be at least 1")
        if not 50 <= self.clip_percentile <= 100:
            raise DataError(f"clip percentile {self.clip_percentile}: must be between 50 and 100")
        check_axes(self.assume)
        check_codec(self.codec)

    def training(self, cases: Sequence[Case]) -> set[str]:
        """Names of the training cases; the others are held out."""
        if self.validation_cases is not None:
            held_out = held_out_by_list(cases, self.validation_cases)
        else:
            held_out = held_out_by_fraction(cases, self.validation_fraction, self.seed)
        return {c.name for c in cases} - held_out
