"""Cut BraTS cases into shards of slices: see brasyn_dist/data/sharding/write_shards.py for what happens.

    python tools/shard_dataset.py data/train_gli data/train_met --out shards --workers 8

Each COHORT_DIR holds case folders (CASE/CASE-t1c.nii.gz, or the names of older editions); its name is recorded with every
slice. Interrupted: run the same command again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.brats import VIEWS
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.process_pool import available_processors
from brasyn_dist.data.format.codec import CODECS, DEFAULT_CODEC
from brasyn_dist.data.format.contents import summary
from brasyn_dist.data.format.index import rebuild_index
from brasyn_dist.data.sharding.patient_split import read_split_file
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import BrasynError
from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("cohorts", nargs="*", type=Path, metavar="COHORT_DIR")
    add("--out", type=Path, help="folder of the shard set")
    add("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    add(
        "--workers",
        type=int,
        default=available_processors(8),
        help="processes, 0.5 GB each (default %(default)s)",
    )
    add("--statistics", help="a statistics.json, or `published`; default: computed from the training cases")
    split = made.add_mutually_exclusive_group()
    split.add_argument(
        "--split", type=Path, help="file with the names of the cases to hold out (JSON list or one a line)"
    )
    split.add_argument(
        "--validation-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="of each cohort's patients, held out",
    )
    add("--seed", type=int, default=0, help="of the split and of the order of slices")
    add("--skip-bad", action="store_true", help="leave bad cases out instead of stopping")
    add("--round", action="store_true", help="round intensities that are not whole numbers")
    add("--codec", choices=CODECS, default=DEFAULT_CODEC)
    add("--samples-per-shard", type=int, default=1000, metavar="N")
    add("--minimum-foreground", type=int, default=MINIMUM_FOREGROUND, metavar="N",
        help="pixels that every modality of a slice must have (default %(default)s)")  # fmt: skip
    add("--headroom", type=float, default=1.0, metavar="F",
        help="computed statistics clip at F x the 99.5th percentile; above 1 for small cohorts, which may lack scans as "
        "bright as those to come (default %(default)s)")  # fmt: skip
    add(
        "--rebuild-index",
        type=Path,
        metavar="DIR",
        help="write index.json anew from the tars in DIR, and end",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if the set is complete, 1 if not (the message says why)."""
    set_up_logging()
    options = parser().parse_args(arguments)
    if options.rebuild_index is None and not (options.cohorts and options.out):
        parser().error("give at least one COHORT_DIR, and --out")
    try:
        rebuild(options.rebuild_index) if options.rebuild_index else shard(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # the disk is full, a folder must not be written
        print(f"error: {error}; run the same command again once that is mended", file=sys.stderr)
        return 1
    return 0


def shard(options: argparse.Namespace) -> None:
    make_shards(
        options.cohorts,
        options.out,
        ShardOptions(
            views=tuple(options.views),
            seed=options.seed,
            validation_fraction=options.validation_fraction,
            validation_cases=read_split_file(options.split) if options.split else None,
            minimum_foreground=options.minimum_foreground,
            samples_per_shard=options.samples_per_shard,
            codec=options.codec,
            round_values=options.round,
            headroom=options.headroom,
        ),
        statistics=given_statistics(options.statistics),
        workers=options.workers,
        skip_bad=options.skip_bad,
    )


def rebuild(folder: Path) -> None:
    index = rebuild_index(folder)
    index.save(folder)
    print(summary(index))


def given_statistics(option: str | None) -> Statistics | None:
    if option is None:
        return None
    return PUBLISHED if option == "published" else Statistics.load(option)


if __name__ == "__main__":
    sys.exit(main())
