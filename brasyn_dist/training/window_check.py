"""Share of the brain that lies outside the network's window: reported before training.

largest slices of some cases --> foreground outside the centred window --> one line for the log

Training crops such slices, and inference refuses such brains, so the whole training would be lost.
"""

import numpy as np

from brasyn_dist.brats import IMAGE_SIZE, VIEWS
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.preprocessing.slicing import pad_or_crop

EXAMINED = 64
"""Most slices that are read."""
_SAMPLES = 2000
"""Slices of the first shards among which they are chosen; shards have the slices of all cases, mixed."""


def describe_brain_outside(selection: Selection, shape_HW: tuple[int, int]) -> str:
    """A warning if brain lies outside a window of `shape_HW` in the middle of the slices; else empty."""
    if min(shape_HW) >= IMAGE_SIZE:  # no slice of a shard set is larger
        return ""
    samples = _largest_slices(selection)
    worst, total, key = 0.0, 0.0, ""
    batch = read_samples(selection, samples, (IMAGE_SIZE, IMAGE_SIZE))
    for sample, planes_MHW in zip(samples, batch.planes.numpy()):
        brain = (planes_MHW > 0).sum(axis=0) * 2 >= len(planes_MHW)
        share = 1 - int(pad_or_crop(brain, shape_HW).sum()) / max(1, int(brain.sum()))
        total += share
        if share > worst:
            worst, key = share, selection.key(sample)
    if not worst:
        return ""
    height, width = shape_HW
    return (
        f"{worst:.1%} of the brain in {key} lies outside the {height} x {width} pixels that the network sees "
        f"({total / len(samples):.1%} on average of {len(samples)} large slices); inference refuses such "
        "brains: set a larger image_size"
    )


def _largest_slices(selection: Selection) -> list[int]:
    """The slice with most bytes of some cases and views."""
    size, case, view = (selection.column(name, slice(_SAMPLES)) for name in ("size", "case", "view"))
    order = np.argsort(-size, kind="stable")
    _, first = np.unique(case[order] * len(VIEWS) + view[order], return_index=True)
    chosen = order[first]
    return chosen[np.linspace(0, len(chosen) - 1, min(EXAMINED, len(chosen))).astype(int)].tolist()
