"""The strongest baseline without a network: voxel-wise linear regression of the missing modality on those that are there.

    training cases --z-scores of foreground voxels--> sums of products (5 x 5) --solve--> weights for any target and any inputs

Least squares, exact: the sums of products of 1 and the four modalities hold everything that a fit needs, whichever modality is
missing and however many are, so the cases are read once, in any order, and only 25 numbers are kept. regression.json has them.
Foreground is what the background rule leaves (baselines.py), applied to all four modalities.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import MODALITIES, Case
from brasyn_dist.common.files import write_json
from brasyn_dist.common.process_pool import worker_pool
from brasyn_dist.data.nifti import read_case
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.baselines import background_rule
from brasyn_dist.preprocessing.statistics import Statistics

REGRESSION = "linear regression"
VERSION = 1
_TERMS = 1 + len(MODALITIES)


@dataclass(frozen=True, eq=False)
class Regression:
    """Fitted on `cases`; `products` (5, 5) float64 are the sums over foreground voxels of products of [1, z t1c, ..., z t2w]."""

    products: np.ndarray
    cases: tuple[str, ...]
    statistics_hash: str
    """Of the statistics that made the z-scores: weights of others would be wrong."""

    @property
    def voxels(self) -> int:
        return int(self.products[0, 0])

    def weights(self, available: Sequence[str], target: str) -> np.ndarray:
        """Intercept and one weight for each available modality, in their order: z-scores in, z-score of the target out."""
        columns = [0, *(1 + MODALITIES.index(m) for m in available)]
        matrix = self.products[np.ix_(columns, columns)]
        return np.linalg.lstsq(matrix, self.products[columns, 1 + MODALITIES.index(target)], rcond=None)[0]

    def predict(self, available: Mapping[str, np.ndarray], target: str, statistics: Statistics) -> np.ndarray:
        """(x, y, z) float32 in the units of the files, from 0 to the target's clipping maximum; the baselines' background."""
        intercept, *weights = self.weights(tuple(available), target)
        score = intercept + sum(
            w * z_scores(v, m, statistics) for w, (m, v) in zip(weights, available.items())
        )
        entry = statistics.modalities[target]
        volume = np.clip(score * entry.std + entry.mean, 0, entry.clip_max)
        return np.where(background_rule(np.stack(list(available.values()))), 0, volume).astype(np.float32)

    def save(self, path: Path | str) -> None:
        products = self.products.tolist()
        write_json(
            path,
            {
                "version": VERSION,
                "statistics_hash": self.statistics_hash,
                "cases": list(self.cases),
                "terms": ["1", *MODALITIES],
                "products": products,
            },
        )

    @classmethod
    def load(cls, path: Path | str, statistics: Statistics) -> "Regression":
        """Raises DataError if the file is no regression, or was fitted with other statistics."""
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text())
            fitted = cls(
                np.array(values["products"], float), tuple(values["cases"]), values["statistics_hash"]
            )
            valid = values["version"] == VERSION and fitted.products.shape == (_TERMS, _TERMS)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
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


def fit(cases: Sequence[Case], statistics: Statistics, workers: int = 1) -> Regression:
    """Fit on complete cases. The result does not depend on the number of workers. Raises DataError for a bad case."""
    with worker_pool(min(workers, len(cases))) as pool:
        parts = dict(pool.run("regression", partial(products_of_case, statistics=statistics), cases))
    names = tuple(sorted(parts))
    return Regression(np.sum([parts[n] for n in names], axis=0), names, statistics.hash)


def products_of_case(case: Case, statistics: Statistics) -> tuple[str, np.ndarray]:
    images = read_case(case, segmentation=False, round_values=True).images
    return case.name, products(images, statistics)


def products(images_MXYZ: np.ndarray, statistics: Statistics) -> np.ndarray:
    """(5, 5) float64: sums over a case's foreground of products of 1 and its z-scores."""
    foreground = ~background_rule(images_MXYZ)
    rows = [np.ones(np.count_nonzero(foreground))]
    rows += [z_scores(v[foreground], m, statistics) for m, v in zip(MODALITIES, images_MXYZ)]
    terms_TV = np.stack(rows)
    return terms_TV @ terms_TV.T


def z_scores(values: np.ndarray, modality: str, statistics: Statistics) -> np.ndarray:
    """float64, clipped as in training."""
    entry = statistics.modalities[modality]
    return (np.clip(values, 0, entry.clip_max).astype(np.float64) - entry.mean) / entry.std
