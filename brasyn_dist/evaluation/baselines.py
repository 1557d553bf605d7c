"""Baselines that need no network.

    mean of the available   z-scored with the data set's statistics, averaged, put on the target's scale
    copy of one modality    z-scored, put on the target's scale; the best is chosen in hindsight (tables.py)
    linear regression       voxel-wise, of the missing modality on the available ones; the strongest baseline

    cases --z-scores of foreground--> Gram matrix (1 + M)^2 --solve--> weights of any target and inputs

All follow the background rule of inference: 0 where at least two of the available modalities are background.

The regression is exact least squares: the Gram matrix (sums over voxels of products of 1 and the M
modalities) is sufficient for the fit of any target on any set of inputs. The cases are read once, in any
order. regression.json holds the matrix. Foreground is what the background rule leaves for all modalities.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from brasyn_dist.brats import Case
from brasyn_dist.common.files import read_text, write_json
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.case_folders import BadCase, without_bad
from brasyn_dist.data.nifti import read_case
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.preprocessing.statistics import Statistics

MEAN = "mean of available"
COPY = "copy of "
REGRESSION = "linear regression"
VERSION = 1


def baseline_volumes(
    available: Mapping[str, np.ndarray], target: str, statistics: Statistics
) -> dict[str, np.ndarray]:
    """Baselines of one case.

    Args:
        available: The case's other modalities by name, integers (x, y, z).
        target: Modality to synthesise.
        statistics: Of the z-scores, for all of these modalities.

    Returns:
        Volumes (x, y, z) float32 by name of the baseline, in the units of the files.
    """
    background = background_rule(np.stack(list(available.values())))
    copies = {name: rescale(volume, name, target, statistics) for name, volume in available.items()}
    volumes = {MEAN: np.mean(list(copies.values()), axis=0), **{COPY + n: v for n, v in copies.items()}}
    return {name: np.where(background, 0, v).astype(np.float32) for name, v in volumes.items()}


def rescale(volume: np.ndarray, source: str, target: str, statistics: Statistics) -> np.ndarray:
    """Intensities of `source` on the scale of `target`, by z-scores; clipped as in training, at least 0."""
    a, b = statistics.modalities[source], statistics.modalities[target]
    score = (np.clip(volume, 0, a.clip_max).astype(np.float32) - a.mean) / a.std
    return np.clip(score * b.std + b.mean, 0, b.clip_max)


def background_rule(available_MXYZ: np.ndarray) -> np.ndarray:
    """(x, y, z) bool: voxels that are background in at least two available modalities (or the only one)."""
    return np.count_nonzero(available_MXYZ <= 0, axis=0) >= min(2, len(available_MXYZ))


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted regression."""

    gram: np.ndarray
    """(1 + M, 1 + M) float64: sums over foreground voxels of products of [1, z-score of each modality]."""
    modalities: tuple[str, ...]
    """The M modalities in the order of the matrix."""
    cases: tuple[str, ...]
    """Names of the training cases."""
    statistics_hash: str
    """Hash of the statistics of the z-scores; with other statistics the weights would be wrong."""

    @property
    def voxels(self) -> int:
        """Number of foreground voxels of the fit."""
        return int(self.gram[0, 0])

    def weights(self, available: Sequence[str], target: str) -> np.ndarray:
        """Intercept and one weight for each available modality, for the z-score of the target."""
        columns = [0, *(1 + self.modalities.index(m) for m in available)]
        matrix = self.gram[np.ix_(columns, columns)]
        return np.linalg.lstsq(matrix, self.gram[columns, 1 + self.modalities.index(target)], rcond=None)[0]

    def predict(self, available: Mapping[str, np.ndarray], target: str, statistics: Statistics) -> np.ndarray:
        """(x, y, z) float32 in the units of the files, at most the clipping maximum; 0 in the background."""
        intercept, *weights = self.weights(tuple(available), target)
        score = intercept + sum(
            w * z_scores(v, m, statistics) for w, (m, v) in zip(weights, available.items())
        )
        entry = statistics.modalities[target]
        volume = np.clip(score * entry.std + entry.mean, 0, entry.clip_max)
        return np.where(background_rule(np.stack(list(available.values()))), 0, volume).astype(np.float32)

    def save(self, path: Path | str) -> None:
        """Write regression.json."""
        values = {
            "version": VERSION,
            "statistics_hash": self.statistics_hash,
            "cases": list(self.cases),
            "terms": ["1", *self.modalities],
            "products": self.gram.tolist(),
        }
        write_json(path, values)

    @classmethod
    def load(cls, path: Path | str, statistics: Statistics) -> "Regression":
        """Read regression.json.

        Raises:
            DataError: The file is no regression, or was fitted with other statistics.
        """
        try:
            values = json.loads(read_text(path))
            gram, modalities = np.array(values["products"], float), tuple(values["terms"][1:])
            fitted = cls(gram, modalities, tuple(values["cases"]), values["statistics_hash"])
            valid = values["version"] == VERSION and gram.shape == (1 + len(modalities),) * 2
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: no fitted regression ({error!r}); make it with --regression-cases"
            ) from None
        if not valid:
            raise DataError(f"{path}: a regression of another version; fit it again with --regression-cases")
        if fitted.statistics_hash != statistics.hash:
            raise DataError(
                f"{path}: fitted on z-scores of other statistics; give the same --statistics, or fit again"
            )
        return fitted


def fit_regression(
    cases: Sequence[Case], statistics: Statistics, workers: int = 1, skip_bad: bool = False
) -> Regression:
    """Fit on complete cases, without bad ones if `skip_bad`. The result does not depend on `workers`.

    Raises:
        DataError: Cases cannot be read or are incomplete; all are listed.
    """
    found = dict(parallel_map("regression", partial(case_gram, statistics=statistics), cases, workers))
    parts = {name: gram for name, gram in found.items() if not isinstance(gram, str)}
    bad = [BadCase(c.folder, c.cohort, reason) for c in cases if isinstance(reason := found[c.name], str)]
    without_bad(cases, bad, skip_bad)
    names = tuple(sorted(parts))
    gram = np.sum([parts[n] for n in names], axis=0)
    return Regression(gram, tuple(statistics.modalities), names, statistics.hash)


def case_gram(case: Case, statistics: Statistics) -> tuple[str, np.ndarray | str]:
    """Name of a case and its Gram matrix, or the reason why it cannot be read."""
    try:
        images = read_case(case, tuple(statistics.modalities), segmentation=False, round_values=True).images
    except BrasynError as error:
        return case.name, str(error)
    return case.name, gram_matrix(images, statistics)


def gram_matrix(images_MXYZ: np.ndarray, statistics: Statistics) -> np.ndarray:
    """(1 + M, 1 + M) float64: sums over a case's foreground of products of 1 and its z-scores."""
    foreground = ~background_rule(images_MXYZ)
    rows = [np.ones(np.count_nonzero(foreground))]
    rows += [z_scores(v[foreground], m, statistics) for m, v in zip(statistics.modalities, images_MXYZ)]
    terms_TV = np.stack(rows)
    return terms_TV @ terms_TV.T


def z_scores(values: np.ndarray, modality: str, statistics: Statistics) -> np.ndarray:
    """float64, clipped as in training."""
    entry = statistics.modalities[modality]
    return (np.clip(values, 0, entry.clip_max).astype(np.float64) - entry.mean) / entry.std
