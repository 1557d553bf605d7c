"""One prediction against its case: the work that evaluation does for each file, in any process.

<predictions>/<case>-<modality>.nii.gz  +  <references>/<case>/...  -->  CaseResult
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brasyn_dist.brats import MODALITIES, Case
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, read_case, read_volume
from brasyn_dist.data.statistics import Statistics
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.evaluation.baselines import baseline_volumes
from brasyn_dist.evaluation.image import Scores, score_volume

SYNTHETIC = "synthetic"
"""The method under evaluation, among the baselines' names."""
_PREDICTION = re.compile(rf"^(?P<case>.+)-(?P<modality>{'|'.join(MODALITIES)})\.nii(\.gz)?$")


@dataclass(frozen=True)
class Prediction:
    """A synthesised volume, by what its file name says."""

    path: Path
    case: str
    modality: str


@dataclass(frozen=True)
class CaseResult:
    """Scores of one prediction by method (`synthetic` and baselines) and score name, or why there are none."""

    prediction: Prediction
    cohort: str = ""
    scores: dict[str, Scores] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str | None = None


def find_predictions(folder: Path) -> list[Prediction]:
    """Predictions in a folder, sorted by name. Raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that brasyn_dist.infer wrote")
    matches = ((p, _PREDICTION.match(p.name)) for p in sorted(folder.iterdir()) if not p.name.startswith("."))
    found = [Prediction(p, m["case"], m["modality"]) for p, m in matches if m]
    if not found:
        raise DataError(f"{folder}: no prediction found; expected files such as CASE-t1c.nii.gz")
    return found


def evaluate_case(prediction: Prediction, case: Case | None, statistics: Statistics | None) -> CaseResult:
    """Score a prediction; with `statistics`, the baselines too. Problems are part of the result, not raised."""
    begun = time.monotonic()
    try:
        if case is None:
            raise DataError(f"{prediction.path}: the references hold no case {prediction.case}")
        synthetic, volumes = load(prediction, case)
        real = volumes.images[MODALITIES.index(prediction.modality)]
        scores = {SYNTHETIC: score_volume(synthetic, real, volumes.labels)}
        if statistics is not None:
            others = {m: v for m, v in zip(MODALITIES, volumes.images) if m != prediction.modality}
            for name, volume in baseline_volumes(others, prediction.modality, statistics).items():
                scores[name] = score_volume(volume, real, volumes.labels)
    except BrasynError as error:
        return CaseResult(prediction, case.cohort if case else "", problem=str(error))
    return CaseResult(prediction, case.cohort, scores, time.monotonic() - begun)


def load(prediction: Prediction, case: Case) -> tuple[np.ndarray, CaseVolumes]:
    """(synthetic volume, the reference case), in the canonical form, checked to lie on the same grid."""
    volumes = read_case(case)
    synthetic = read_volume(prediction.path, round_values=True)
    check_geometry(volumes.reference, synthetic)
    return synthetic.array, volumes


def by_name(cases: Iterable[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}
