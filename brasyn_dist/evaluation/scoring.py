"""One prediction against its case: the work that evaluation does for each file, in any process.

<predictions>/<case>-<modality>.nii.gz  +  <references>/<case>/...  -->  image scores of it and of the baselines  --> CaseResult
                                        --segmentation of the completed case-->  overlap scores                  -/
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from brasyn_dist.brats import MODALITIES, Case
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, read_case, read_volume
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.evaluation.baselines import baseline_volumes
from brasyn_dist.evaluation.image_metrics import Scores, score_volume
from brasyn_dist.evaluation.regression import REGRESSION, Regression
from brasyn_dist.evaluation.segmentation_metrics import NAMES, TOLERANCE, score_labels
from brasyn_dist.preprocessing.statistics import Statistics

SYNTHETIC = "synthetic"
"""The method under evaluation, among the baselines' names."""
_PREDICTION = re.compile(rf"^(?P<case>.+)-(?P<modality>{'|'.join(MODALITIES)})\.nii(\.gz)?$")


@dataclass(frozen=True)
class Prediction:
    """A synthesised volume, by what its file name says."""

    path: Path
    case: str
    modality: str


class Segment(Protocol):
    """Segments the case whose missing modality is the prediction. Picklable: it goes to worker processes."""

    @property
    def basis(self) -> Any:
        """JSON that changes whenever the segmentations may: earlier scores count only if it is the same."""

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        """(prediction, complete case, synthetic volume) -> canonical labels (x, y, z). Raises BrasynError."""


@dataclass(frozen=True)
class Scoring:
    """What is computed for each prediction beside its image scores."""

    statistics: Statistics | None = None
    """Of the baselines' z-scores; without, no baselines."""
    regression: Regression | None = None
    """One more baseline, where it has been fitted."""
    segment: Segment | None = None
    """Makes a segmentation of the completed case; without, no overlap scores."""
    tolerance_mm: float = TOLERANCE
    """Of the normalised surface distance."""

    @property
    def basis(self) -> Any:
        """JSON that changes whenever a prediction's scores may: see `Segment`."""
        return {
            "statistics": self.statistics and self.statistics.hash,
            "regression": self.regression and self.regression.products.tolist(),
            "segment": self.segment and self.segment.basis,
            "tolerance_mm": self.tolerance_mm,
        }


@dataclass(frozen=True)
class CaseResult:
    """Scores of one prediction by method (`synthetic` and baselines) and score name, and what went wrong.

    `problem` with scores: the segmentation failed, the image scores stand. Without: nothing could be scored.
    """

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


def evaluate_case(prediction: Prediction, case: Case | None, scoring: Scoring) -> CaseResult:
    """Score a prediction. A pure function of the files; problems are part of the result, not raised."""
    begun = time.monotonic()
    cohort = case.cohort if case else ""
    try:
        if case is None:
            raise DataError(f"{prediction.path}: the references hold no case {prediction.case}")
        synthetic, volumes = load(prediction, case)
        scores = image_scores(prediction, synthetic, volumes, scoring)
    except BrasynError as error:
        return CaseResult(prediction, cohort, problem=str(error))
    problem = None
    if scoring.segment is not None:
        try:
            scores[SYNTHETIC] |= overlap_scores(prediction, synthetic, volumes, scoring)
        except BrasynError as error:
            scores[SYNTHETIC] |= dict.fromkeys(NAMES)
            problem = f"segmentation of {prediction.case} with synthetic {prediction.modality}: {error}"
    return CaseResult(prediction, cohort, scores, time.monotonic() - begun, problem)


def image_scores(
    prediction: Prediction, synthetic_xyz: np.ndarray, volumes: CaseVolumes, scoring: Scoring
) -> dict[str, Scores]:
    """Of the prediction and the baselines, by method."""
    target = prediction.modality
    real = volumes.images[MODALITIES.index(target)]
    compared = {SYNTHETIC: synthetic_xyz}
    if scoring.statistics is not None:
        others = {m: v for m, v in zip(MODALITIES, volumes.images) if m != target}
        compared |= baseline_volumes(others, target, scoring.statistics)
        if scoring.regression is not None:
            compared[REGRESSION] = scoring.regression.predict(others, target, scoring.statistics)
    return {name: score_volume(volume, real, volumes.labels) for name, volume in compared.items()}


def overlap_scores(
    prediction: Prediction, synthetic_xyz: np.ndarray, volumes: CaseVolumes, scoring: Scoring
) -> Scores:
    """Of the segmentation of the completed case; None throughout where the case has no reference segmentation."""
    if scoring.segment is None or volumes.labels is None:
        return dict.fromkeys(NAMES)
    segmented = scoring.segment(prediction, volumes, synthetic_xyz)
    spacing = np.linalg.norm(volumes.reference.affine[:3, :3], axis=0).tolist()
    return score_labels(segmented, volumes.labels, spacing, scoring.tolerance_mm)


def load(prediction: Prediction, case: Case) -> tuple[np.ndarray, CaseVolumes]:
    """(synthetic volume, the reference case), in the canonical form, checked to lie on the same grid."""
    volumes = read_case(case)
    synthetic = read_volume(prediction.path, round_values=True)
    check_geometry(volumes.reference, synthetic)
    return synthetic.array, volumes


def by_name(cases: Iterable[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}
