"""A small but real shard set for tests of training: phantom cases of 48 x 48 x 40 voxels, sharded by the real code."""

from pathlib import Path


def small_cases(folder: Path, cases: int = 6, shape: tuple[int, int, int] = (48, 48, 40)) -> Path:
    """Phantom cases (one of them metastatic) in cohort folders below `folder`, unless they are there."""
    from brasyn_dist.phantom import write_case

    if not folder.exists():
        for number in range(cases):
            kind = "MET" if number == cases - 1 else "GLI"
            cohort = folder / f"train_{kind.lower()}"
            write_case(cohort, f"BraTS-{kind}-{number:05d}-000", seed=number, kind=kind, shape=shape)
    return folder


def small_shard_set(folder: Path, views: tuple[str, ...] = ("axial",)) -> Path:
    """Shards of `small_cases`, a third of the patients held out; made once."""
    from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards

    if not (folder / "index.json").exists():
        cases = small_cases(folder.parent / f"{folder.name}-cases")
        options = ShardOptions(
            views=views,
            validation_fraction=0.34,
            minimum_foreground=200,
            samples_per_shard=20,
        )
        make_shards(sorted(cases.iterdir()), folder, options)
    return folder
