"""Stage-1 volumes of a case: each modality, synthesised from the others (`brasyn infer`)."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from brasyn_dist.brats import Case
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, read_case
from brasyn_dist.errors import DataError


def stage1_files(case: Case, folder: Path) -> Case:
    """The case with the files `<folder>/<case>-<modality>.nii.gz` that exist, instead of its own."""
    paths = {m: folder / f"{case.name}-{m}.nii.gz" for m in case.modality_set.modalities}
    return replace(case, folder=folder, files={m: path for m, path in paths.items() if path.exists()})


def read_stage1(volumes: CaseVolumes, folder: Path, assume: str | None = None) -> np.ndarray:
    """(M, x, y, z) integers, x the fastest axis in memory: the stage-1 volumes of a case.

    Raises:
        DataError: A volume is missing, unusable or empty, or its geometry differs from that of the case.
    """
    case = stage1_files(volumes.case, folder)
    if case.missing:
        raise DataError(
            f"{volumes.case.folder}: no stage-1 volume of {', '.join(case.missing)}; expected "
            f"{case.name}-{case.missing[0]}.nii.gz in the folder of --stage1, as `brasyn cross-fit` writes it"
        )
    synthesised = read_case(case, segmentation=False, round_values=True, assume=assume)
    check_geometry(volumes.reference, synthesised.reference)
    for modality, image in zip(synthesised.modalities, synthesised.images):
        if not (image > 0).any():
            raise DataError(f"{case.files[modality]}: no intensity is above 0; synthesise the case again")
    return synthesised.images
