"""From targets and availability to the inputs of CycleSynthesis (models/cycle_synthesis.py), on the host."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.data.loading.sampler import BatchMasks
from brasyn_dist.models.cycle_synthesis import CycleInputs


def cycle_inputs(masks: Sequence[BatchMasks], equal_rows: bool = False) -> CycleInputs:
    """Masks, targets and rows of both passes.

    Args:
        masks: Masks of the same K samples, one entry for each target variant that enters the loss.
        equal_rows: Pad the numbers of encoded rows to one count for all modalities, in steps of B / M rows.
            Without padding,
            counts differ between modalities and batches unless targets and availability are balanced. Few
            distinct shapes avoid recompilation by torch.compile.
    """
    variants, samples = len(masks), len(masks[0].target)
    row_B = np.tile(np.arange(samples), variants)
    target_B = np.concatenate([m.target for m in masks])
    available_BM = np.concatenate([m.available for m in masks])
    cycle_available_BM = np.concatenate([m.cycle_available for m in masks])
    modalities = available_BM.shape[1]
    is_target_BM = np.arange(modalities) == target_B[:, None]

    step = max(1, len(target_B) // modalities) if equal_rows else None
    cycle_real_BM, cycle_synthetic_BM = cycle_available_BM & ~is_target_BM, cycle_available_BM & is_target_BM
    real_KM = (available_BM | cycle_real_BM).reshape(variants, samples, -1).any(0)
    real_rows, synthetic_rows = encoded_rows(real_KM, step), encoded_rows(cycle_synthetic_BM, step)
    own_row_B = np.arange(len(target_B))
    return CycleInputs(
        torch.from_numpy(row_B),
        torch.from_numpy(target_B),
        torch.from_numpy(available_BM),
        torch.from_numpy(np.concatenate([m.cycle_target for m in masks])),
        torch.from_numpy(cycle_available_BM),
        tuple(map(torch.from_numpy, real_rows)),
        mixing_matrix(available_BM, row_B, real_rows),
        tuple(map(torch.from_numpy, synthetic_rows)),
        mixing_matrix(cycle_real_BM, row_B, real_rows),
        mixing_matrix(cycle_synthetic_BM, own_row_B, synthetic_rows),
    )


def encoded_rows(needed_RM: np.ndarray, step: int | None) -> list[np.ndarray]:
    """The needed rows of each modality. With `step` all are padded with row 0 to one multiple of it."""
    rows = [np.flatnonzero(column) for column in needed_RM.T]
    if step is None:
        return rows
    count = -(-max(map(len, rows)) // step) * step
    return [np.pad(r, (0, count - len(r))) for r in rows]


def mixing_matrix(taken_BM: np.ndarray, row_B: np.ndarray, rows: Sequence[np.ndarray]) -> Tensor:
    """(B, N) float32: 1 where variant b takes encoded row n, that is modality m of row row_B[b]."""
    columns = [(row_B[:, None] == r) & first_occurrence(r) & taken_BM[:, m, None] for m, r in enumerate(rows)]
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))


def first_occurrence(rows: np.ndarray) -> np.ndarray:
    """True where a row appears for the first time. Padding repeats row 0, which must be taken only once."""
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    return first
