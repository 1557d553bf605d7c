"""Scoring of predictions against their cases, by several processes through the work queue.

predictions --WorkQueue--> score_prediction --> records --one process--> CaseScores

<predictions>/<case>-<modality>.nii.gz  +  <references>/<case>/...
--> image metrics of the prediction and of the baselines            --> CaseScores
--segmentation of the completed case--> segmentation metrics        --> CaseScores
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from brasyn_dist.brats import BRATS, IMAGE, PREDICTIONS_MANIFEST, Case
from brasyn_dist.common.files import read_json
from brasyn_dist.common.launch_environment import LaunchContext
from brasyn_dist.common.progress import Progress
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, read_case, read_volume
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.evaluation.baselines import REGRESSION, Regression, baseline_volumes
from brasyn_dist.evaluation.image_metrics import MetricValues, ReferenceVolume
from brasyn_dist.evaluation.segmentation_metrics import TOLERANCE, metric_names, score_labels
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.statistics import Statistics
from brasyn_dist.workqueue.queue import MAXIMUM_DEATHS, WorkQueue

log = logging.getLogger(__name__)
SYNTHETIC = "synthetic"
"""The method under evaluation; the other methods are baselines."""


@dataclass(frozen=True)
class Prediction:
    """A synthesised volume, as its file name describes it."""

    path: Path
    case: str
    modality: str


class CaseSegmenter(Protocol):
    """Segments a case whose missing modality is replaced by the prediction.

    Picklable, because worker processes call it.
    """

    @property
    def fingerprint(self) -> Any:
        """JSON value that differs whenever segmentations may differ; equal: scores are reused."""

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        """(prediction, complete case, synthetic volume) -> canonical labels (x, y, z). Raises BrasynError."""


@dataclass(frozen=True)
class ScoringSettings:
    """What is computed for each prediction besides its image metrics."""

    statistics: Statistics | None = None
    """Statistics of the baselines' z-scores. None: no baselines."""
    regression: Regression | None = None
    """A fitted regression as one more baseline."""
    segment: CaseSegmenter | None = None
    """Makes a segmentation of the completed case. None: no segmentation metrics."""
    pseudo_reference: bool = False
    """Compare with the segmentation that `segment` makes of the complete real case, not with the case's own.
    It also defines the regions of the image metrics."""
    tolerance_mm: float = TOLERANCE
    """Tolerance of the normalised surface distance."""
    modality_set: ModalitySet = BRATS
    """Modalities, labels and regions of predictions and references."""
    bad_references: Mapping[str, str] = field(default_factory=dict)
    """Case -> why its reference cannot be used, as far as file names show it."""

    @property
    def fingerprint(self) -> Any:
        """JSON value that differs whenever the scores of a prediction may differ."""
        return {
            "statistics": self.statistics and self.statistics.hash,
            "regression": self.regression and self.regression.gram.tolist(),
            "segment": self.segment and self.segment.fingerprint,
            "pseudo_reference": self.pseudo_reference,
            "tolerance_mm": self.tolerance_mm,
            "modality_set": self.modality_set.to_dict(),
        }


@dataclass(frozen=True)
class CaseScores:
    """Metrics of one prediction by method (`synthetic` and baselines) and metric name, and any problem.

    `problem` with scores: the segmentation failed, the image metrics are valid. Without scores: nothing
    could be scored.
    """

    prediction: Prediction
    cohort: str = ""
    scores: dict[str, MetricValues] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str | None = None


def modality_set_of(predictions: Path) -> ModalitySet:
    """Modality set in the manifest.json of a folder of predictions; BRATS if there is none."""
    values = read_json(predictions / PREDICTIONS_MANIFEST).get("modality_set")
    return ModalitySet.from_dict(values) if values else BRATS


def find_predictions(folder: Path, modality_set: ModalitySet = BRATS) -> list[Prediction]:
    """Predictions in a folder, sorted by name. Other volumes in it are named in a warning.

    Raises:
        DataError: The folder does not exist, holds no prediction, or two of one volume.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that `brasyn infer` wrote")
    modalities = "|".join(map(re.escape, modality_set.modalities))
    pattern = re.compile(rf"^(?P<case>.+)-(?P<modality>{modalities})\.nii(\.gz)?$", re.S)
    paths = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    found = [Prediction(p, m["case"], m["modality"]) for p in paths if (m := pattern.match(p.name))]
    example = f"expected files such as CASE-{modality_set.modalities[0]}.nii.gz"
    if not found:
        raise DataError(f"{folder}: no prediction found; {example}")
    for first, second in pairwise(sorted(found, key=lambda p: (p.case, p.modality))):
        if (first.case, first.modality) == (second.case, second.modality):
            names = f"{first.path.name} and {second.path.name}"
            raise DataError(f"{folder}: two predictions of one volume, {names}; keep one of them")
    if unused := [p.name for p in paths if IMAGE.search(p.name) and not pattern.match(p.name)]:
        listed = ", ".join(unused[:3]) + ", ..." * (len(unused) > 3)
        log.warning("%s: %d volumes are no predictions: %s; %s", folder, len(unused), listed, example)
    return found


def score_predictions(
    predictions: Sequence[Prediction],
    cases: Mapping[str, Case],
    scoring: ScoringSettings,
    write_results: Callable[[list[CaseScores]], None],
    *,
    out: Path,
    settings: Mapping[str, Any],
    context: LaunchContext,
    lease: float | None,
) -> None:
    """Score the predictions together with all processes that do the same.

    Scores of an interrupted evaluation are reused if the options and all files that they were computed from
    are unchanged.

    Args:
        predictions: The files to score.
        cases: References by case name.
        scoring: What is computed.
        write_results: Called in one of the processes, with the results in the order of the predictions.
        out: Folder of the results.
        settings: (JSON) the options, which must be equal in all processes.
        context: Position of this process on its node.
        lease: Heartbeat timeout in seconds.
    """
    by_name = {prediction.path.name: prediction for prediction in predictions}
    queue = WorkQueue(out, list(by_name), basis=settings, job=context.job, lease=lease)
    with queue, Progress("evaluate", len(by_name), hidden=context.local_rank > 0) as progress:
        earlier = queue.interrupted_records()
        for name in queue:
            prediction = by_name[name]
            case = cases.get(prediction.case)
            paths = [prediction.path, *(path for _, path in sorted(case.files.items() if case else ()))]
            files = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths if p.exists()]
            same = [r["result"] for r in earlier.get(name, ()) if r["files"] == files]
            valid = [values for values in same if values["problem"] is None]
            if valid:
                values = valid[-1]
            else:
                if queue.given_up(name):
                    what = f"{MAXIMUM_DEATHS} processes were killed or stopped while they scored it"
                    problem = f"{prediction.path}: {what} (out of memory?)"
                    result = CaseScores(prediction, problem=problem)
                else:
                    result = score_prediction(prediction, case, scoring)
                values = {k: v for k, v in asdict(result).items() if k != "prediction"}
            progress.reach(queue.record(name, {"files": files, "result": values}))
        if queue.claim_merge():
            results = {name: values[0]["result"] for name, values in queue.records.items()}
            write_results([CaseScores(prediction, **results[name]) for name, prediction in by_name.items()])
            queue.finish()


def score_prediction(prediction: Prediction, case: Case | None, settings: ScoringSettings) -> CaseScores:
    """Score a prediction.

    A pure function of the files; problems are part of the result and are not raised.
    """
    begun = time.monotonic()
    cohort = case.cohort if case else ""
    try:
        if case is None:
            reason = settings.bad_references.get(
                prediction.case, f"the references hold no case {prediction.case}"
            )
            raise DataError(f"{prediction.path}: {reason}")
        synthetic, volumes = load_volumes(prediction, case, settings.modality_set)
        if settings.pseudo_reference:
            volumes = with_pseudo_labels(prediction, volumes, settings)
        scores = image_scores(prediction, synthetic, volumes, settings)
    except BrasynError as error:
        return CaseScores(prediction, cohort, problem=str(error))
    except Exception as error:  # one bad file must not stop the evaluation of the others
        return CaseScores(
            prediction,
            cohort,
            problem=f"{prediction.path}: cannot be scored ({type(error).__name__}: {error})",
        )
    problem = None
    if settings.segment is not None:
        try:
            scores[SYNTHETIC] |= segmentation_scores(prediction, synthetic, volumes, settings)
        except BrasynError as error:
            scores[SYNTHETIC] |= dict.fromkeys(metric_names(settings.modality_set))
            problem = f"segmentation of {prediction.case} with synthetic {prediction.modality}: {error}"
    return CaseScores(prediction, cohort, scores, time.monotonic() - begun, problem)


def image_scores(
    prediction: Prediction, synthetic_xyz: np.ndarray, volumes: CaseVolumes, settings: ScoringSettings
) -> dict[str, MetricValues]:
    """Image metrics of the prediction and of the baselines, by method."""
    target = prediction.modality
    compared = {SYNTHETIC: synthetic_xyz}
    if settings.statistics is not None:
        others = {m: v for m, v in zip(volumes.modalities, volumes.images) if m != target}
        compared |= baseline_volumes(others, target, settings.statistics)
        if settings.regression is not None:
            compared[REGRESSION] = settings.regression.predict(others, target, settings.statistics)
    real_xyz = volumes.images[volumes.modalities.index(target)]
    reference = ReferenceVolume(real_xyz, volumes.labels, settings.modality_set.highest_label)
    return {name: reference.scores(volume) for name, volume in compared.items()}


def with_pseudo_labels(
    prediction: Prediction, volumes: CaseVolumes, settings: ScoringSettings
) -> CaseVolumes:
    """The case with the segmentation of its real volumes as labels.

    Raises:
        DataError: The segmentation failed.
    """
    assert settings.segment is not None
    real = replace(prediction, path=volumes.case.files[prediction.modality])
    target = volumes.modalities.index(prediction.modality)
    try:
        labels = settings.segment(real, volumes, volumes.images[target])
    except BrasynError as error:
        raise DataError(f"pseudo-labels of the complete case {prediction.case}: {error}") from None
    return replace(volumes, labels=labels)


def segmentation_scores(
    prediction: Prediction, synthetic_xyz: np.ndarray, volumes: CaseVolumes, settings: ScoringSettings
) -> MetricValues:
    """Metrics of the completed case's segmentation; all None if the case has no reference segmentation."""
    if settings.segment is None or volumes.labels is None:
        return dict.fromkeys(metric_names(settings.modality_set))
    segmented = settings.segment(prediction, volumes, synthetic_xyz)
    spacing = np.linalg.norm(volumes.reference.affine[:3, :3], axis=0).tolist()
    return score_labels(segmented, volumes.labels, spacing, settings.tolerance_mm, settings.modality_set)


def load_volumes(
    prediction: Prediction, case: Case, modality_set: ModalitySet = BRATS
) -> tuple[np.ndarray, CaseVolumes]:
    """(synthetic volume, reference case) in canonical orientation, checked to lie on the same grid."""
    volumes = read_case(case, modality_set.modalities)
    synthetic = read_volume(prediction.path, round_values=True)
    check_geometry(volumes.reference, synthetic)
    return synthetic.array, volumes
