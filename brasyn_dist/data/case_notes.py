"""Notes of a case: what does not look like a skull-stripped brain on the grid of the training.

CaseVolumes --case_notes--> lines for the log, manifest.json and index.json
"""

from collections.abc import Sequence

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.data.nifti import CaseVolumes, describe_spacing, merge_notes
from brasyn_dist.errors import DataError

VOXEL_MM = 1.0
"""Side of a voxel of BraTS."""
BORDER_SHARE = 0.05
"""Foreground fraction of the outermost voxels above which there is no background. BraTS: at most 0.002."""
BRAIN_LITRES = 2.2
"""Foreground volume above which there is more than a brain. BraTS: 1.2 to 1.6; the largest brains: 2."""

NEGATIVE_SHARE = 0.01
"""Fraction of negative values above which they are no artefact of an interpolation."""


def case_notes(volumes: CaseVolumes) -> tuple[str, ...]:
    """What was assumed about the headers, and what is unusual about spacing and background."""
    notes = list(volumes.notes)
    sizes = np.linalg.norm(volumes.reference.affine[:3, :3], axis=0)
    usual = bool(np.allclose(sizes, VOXEL_MM, rtol=0.05))
    if volumes.case.modality_set != BRATS:
        return tuple(notes)
    if not usual:
        notes.append(f"voxels of {describe_spacing(sizes)}, trained at {describe_spacing([VOXEL_MM])}")
    litres = float(sizes.prod()) / 1e6 if usual else 0.0
    stripped = {m: _judge(volume, litres) for m, volume in zip(volumes.modalities, volumes.images)}
    return (*notes, *merge_notes(stripped))


def _judge(volume: np.ndarray, litres_per_voxel: float) -> list[str]:
    negative, values = int(np.count_nonzero(volume < 0)), int(np.count_nonzero(volume))
    if negative > NEGATIVE_SHARE * values:
        return [
            f"{negative / values:.0%} of the values are below 0 and count as background: an offset? add it"
        ]
    faces = [volume.take(end, axis) > 0 for axis in range(3) for end in (0, -1)]
    if sum(map(np.count_nonzero, faces)) > BORDER_SHARE * sum(face.size for face in faces):
        return ["no background around the brain: not skull-stripped?"]
    if litres_per_voxel and np.count_nonzero(volume > 0) * litres_per_voxel > BRAIN_LITRES:
        return [f"foreground larger than a brain ({BRAIN_LITRES} litres): not skull-stripped?"]
    return []


def equal_volumes(modalities: Sequence[str], fingerprints: Sequence[str]) -> list[str]:
    """A note if two modalities of a case are the same volume; `fingerprints` are equal for equal volumes."""
    same = [m for m, value in zip(modalities, fingerprints) if list(fingerprints).count(value) > 1]
    return [f"{', '.join(same)}: equal volumes: one copied in place of another?"] if same else []


def refuse(notes: Sequence[str], where: object) -> None:
    """Raise DataError with the notes, if there are any, for `--strict`."""
    if notes:
        raise DataError("\n".join(f"{where}: {note} (refused by --strict)" for note in notes))
