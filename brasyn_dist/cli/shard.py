"""Convert cohort folders of BraTS cases into shards of slices, and of chunks of whole volumes.

    brasyn shard COHORT_DIR [COHORT_DIR ...] --out shards [--chunks 32 [--stage1 PREDICTIONS]]

Each COHORT_DIR contains case folders (CASE/CASE-t1c.nii.gz, or the names of older editions); its name is
recorded with every slice. To continue after an interruption, run the same command again. Stages:
brasyn_dist/data/sharding/write_shards.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option

from brasyn_dist.cli.command import (
    Command,
    Headroom,
    Index,
    LabelEditionOption,
    ModalitySetOption,
    Positive,
    SkipBadOption,
    View,
    at_most_one,
)


@dataclass(frozen=True, kw_only=True)
class ShardCommandOptions:
    """Options of `brasyn shard`."""

    cohorts: Annotated[list[Path] | None, Argument(metavar="COHORT_DIR")] = None
    """Folders of case folders."""
    out: Path | None = None
    """Folder of the shard set."""
    views: list[View] | None = None
    """Views to slice.  [default: all]"""
    chunks: Annotated[int | None, Option(metavar="SIDE", min=8, max=128)] = None
    """Also store the whole volumes, as chunks of SIDE voxels (32), for networks of volumes.  [default: no]"""
    slices: Annotated[bool, Option("--slices/--no-slices")] = True
    """Store slices; without them, the set is for networks of volumes only."""
    stage1: Path | None = None
    """Folder with <case>-<modality>.nii.gz of every modality of each case, as `brasyn infer` writes them;
    stored in the chunks."""
    workers: Annotated[int | None, Option(min=1)] = None
    """Processes, 0.5 GB each.  [default: the processors, at most 8]"""
    statistics: str | None = None
    """A statistics.json, or `published`.  [default: computed from the training cases]"""
    split: Path | None = None
    """Names of the held-out cases, as JSON list or one on each line."""
    validation_fraction: Annotated[float | None, Option(min=0, max=1)] = None
    """Fraction of each cohort's patients to hold out.  [default: 0.1]"""
    seed: Index = 0
    """Seed of the split and of the order of slices."""
    skip_bad: SkipBadOption = False
    round: bool = False
    """Round intensities that are not integers."""
    codec: Literal["npy.zst", "npy"] | None = None
    """Storage of a slice.  [default: npy.zst]"""
    samples_per_shard: Positive = 1000
    """Slices of a tar file."""
    minimum_foreground: Annotated[int | None, Option(min=0)] = None
    """Foreground pixels that every modality of a slice must have.  [default: 2000]"""
    clip_percentile: Annotated[float, Option(metavar="P", min=50, max=100)] = 99.5
    """Percentile of the foreground at which computed statistics clip (the thesis compares 95, 98, 99
    and 99.5)."""
    headroom: Headroom = 1.0
    """Computed statistics clip at F x the percentile; above 1 for small cohorts, whose scans may be
    darker than unseen ones."""
    modality_set: ModalitySetOption = None
    label_edition: LabelEditionOption = "auto"
    patients: Path | None = None
    """Patient of each case: lines `case,patient`, or a JSON object.  [default: from the names]"""
    exclude: Path | None = None
    """Cases to leave out: findings.json of `brasyn inspect`, or names."""
    exclude_kind: Annotated[list[str] | None, Option(metavar="KIND")] = None
    """Only findings of these kinds.  [default: all in the file]"""
    assume: Annotated[str | None, Option(metavar="AXES")] = None
    """Order of the axes, such as LPS, of volumes whose headers state none.  [default: refused]"""
    strict: bool = False
    """Refuse cases that are not skull-stripped, not at 1 mm, or whose headers leave something open."""
    rebuild_index: Path | None = None
    """Only rebuild index.json from the tar files in DIR."""

    def __post_init__(self) -> None:
        at_most_one(split=self.split, validation_fraction=self.validation_fraction is not None)
        if not self.slices and (self.views or not self.chunks):
            raise BadParameter("--no-slices needs --chunks, and excludes --views")
        if self.stage1 is not None and not self.chunks:
            raise BadParameter("--stage1 is stored in chunks; give --chunks 32 too")
        if self.rebuild_index is None and not (self.cohorts and self.out):
            raise BadParameter("give at least one COHORT_DIR, and --out")


def run(options: ShardCommandOptions) -> None:
    """Write the shard set, or rebuild an index."""
    if options.rebuild_index is not None:
        rebuild(options.rebuild_index)
    else:
        shard(options)


def shard(options: ShardCommandOptions) -> None:
    """Write the shard set."""
    from brasyn_dist.brats import VIEWS, modality_set_in
    from brasyn_dist.common.processes import available_processors
    from brasyn_dist.data.format.codec import DEFAULT_CODEC
    from brasyn_dist.data.nifti import check_axes
    from brasyn_dist.data.patients import read_patients_file
    from brasyn_dist.data.sharding.exclusions import read_exclusions
    from brasyn_dist.data.sharding.patient_split import read_split_file
    from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
    from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND
    from brasyn_dist.preprocessing.statistics import Statistics

    assert options.cohorts and options.out
    fraction, foreground = options.validation_fraction, options.minimum_foreground
    make_shards(
        options.cohorts,
        options.out,
        ShardOptions(
            views=tuple(map(str, options.views or VIEWS)) if options.slices else (),
            chunks=options.chunks,
            stage1=options.stage1,
            seed=options.seed,
            validation_fraction=0.1 if fraction is None else fraction,
            validation_cases=read_split_file(options.split) if options.split else None,
            minimum_foreground=MINIMUM_FOREGROUND if foreground is None else foreground,
            samples_per_shard=options.samples_per_shard,
            codec=options.codec or DEFAULT_CODEC,
            round_values=options.round,
            clip_percentile=options.clip_percentile,
            headroom=options.headroom,
            modality_set=modality_set_in(options.modality_set),
            label_edition=options.label_edition,
            assume=check_axes(options.assume),
            strict=options.strict,
            patients=tuple(sorted(read_patients_file(options.patients).items())) if options.patients else (),
            exclude=read_exclusions(options.exclude, options.exclude_kind or ()) if options.exclude else (),
        ),
        statistics=None if options.statistics is None else Statistics.load(options.statistics),
        workers=options.workers or available_processors(8),
        skip_bad=options.skip_bad,
    )


def rebuild(folder: Path) -> None:
    """Rebuild index.json from the tar files of a shard set, and print its contents."""
    from brasyn_dist.data.format.contents import contents_summary
    from brasyn_dist.data.format.index import rebuild_index

    index = rebuild_index(folder)
    index.save(folder)
    print(contents_summary(index))


main = Command("shard", ShardCommandOptions, run, lists=("--views", "--exclude-kind"))
