"""Patches: three-dimensional parts of cases, from sets that store chunks (`brasyn shard --chunks 32`).

    index.select_chunks("train") --> ChunkSelection: cases 0 .. n - 1
    PatchOrder(config.patches, seed, chunks, G).batch(k) --> case, centre of each row of global batch k
    PatchStream(order, rows, start, stop) --> PatchBatch k
    read_patches(chunks, cases, corners, size) --> PatchBatch, for validation; size may be a whole volume

    order = PatchOrder(config.patches, config.order.seed, chunks, global_batch_size, config.order.block_shards)
    with PatchStream(order, rows, start, stop, threads=2, prefetch=4, pin_memory=False) as stream:
        for batch in stream: ...

`chunks.shapes` is (n, 3): the size of each volume; `chunks.case(i)` its CaseEntry; `chunks.stage1` says
whether the set has stage-1 volumes; `chunks.fingerprint`, `chunks.medians` as those of `Selection`. An epoch
is one patch of each case: `order.epoch(k)`.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PatchBatch:
    """Part of a rank (b rows) of global batch `index`, on the host."""

    index: int
    """Number of the global batch; -1: not part of one."""
    rows: slice
    """Rows of the global batch."""
    volumes: Tensor
    """(b, M, X, Y, Z) int16 or int32: intensities in modality order, 0 outside the volume."""
    stage1: Tensor | None
    """Like `volumes`: each modality as a stage-1 network synthesised it; None: the set has none."""
    labels: Tensor
    """(b, X, Y, Z) uint8: canonical labels, 0 without a segmentation."""
    has_labels: Tensor
    """(b,) bool: the case has a segmentation."""
    tumour_type: Tensor
    """(b,) int64: index into brats.TUMOUR_TYPES, or UNKNOWN_TYPE."""
    medians: Tensor
    """(b, M) float32: median of the foreground of the volumes of the case."""
    cases: Tensor
    """(b,) int64: number of the case in the ChunkSelection."""
    corners: Tensor
    """(b, 3) int64: voxel of the case's volume at which the patch begins; may be negative."""
    keys: list[str]
    """`<case>/<x>-<y>-<z>`: case and corner."""

    def __len__(self) -> int:
        return len(self.keys)
