"""manifest.json beside the predictions: weights, inputs, seconds and hashes of every case.

It is written before the first case, so that the weights of the volumes are known even if the run is killed,
and again at the end, by one of the processes, with the records of all cases. A rerun extends it; a rerun with
other weights, views or precision is refused.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brasyn_dist.brats import BRATS, PREDICTIONS_FORMAT, PREDICTIONS_MANIFEST
from brasyn_dist.common.files import write_json
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.case_requests import CaseRecord
from brasyn_dist.modality_set import ModalitySet

FORMAT_VERSION = 1


@dataclass
class Manifest:
    """The manifest of an output folder, as this process reads and writes it."""

    folder: Path
    identity: dict[str, Any]
    """What decides the voxels beside the inputs."""
    details: dict[str, Any]
    """Facts about this run."""
    modality_set: ModalitySet = BRATS
    """Of the models; written if it is not BraTS' one."""
    records: dict[str, CaseRecord] = field(default_factory=dict)
    """By case name."""
    workers: dict[str, Any] = field(default_factory=dict)
    """`details` of all processes that records name."""
    new: bool = True
    """Whether the folder has no manifest of this identity yet."""
    finished: bool = False
    """Whether the last run that wrote the manifest has ended."""

    def read(self, overwrite: bool = False) -> None:
        """Take over the records of earlier runs with the same identity.

        Raises:
            ConfigError: The earlier runs had another identity, and `overwrite` is not set.
        """
        earlier = read_manifest(self.folder / PREDICTIONS_MANIFEST)
        same = earlier is not None and earlier["identity"] == self.identity
        if earlier is not None and not same and not overwrite:
            raise ConfigError(
                f"{self.folder} holds volumes made by other weights or settings: "
                f"{_differences(earlier['identity'], self.identity)}; give another --output, or --overwrite"
            )
        self.new = not same
        self.records, self.workers, self.finished = (
            (earlier["records"], earlier["workers"], earlier["finished"])
            if earlier and same
            else ({}, {}, False)
        )

    def save(self, finished: bool) -> None:
        """Write the manifest with the workers that a record names."""
        self.finished = finished
        named = {record.worker for record in self.records.values()}
        values = {
            "format": PREDICTIONS_FORMAT,
            "format_version": FORMAT_VERSION,
            "finished": finished,
            "identity": self.identity,
            "details": self.details,
            "workers": {name: self.workers[name] for name in sorted(self.workers) if name in named},
            "counts": dict(Counter(record.status for record in self.records.values())),
            "cases": [self.records[name].to_dict() for name in sorted(self.records)],
        }
        if self.modality_set != BRATS:
            values["modality_set"] = self.modality_set.to_dict()
        write_json(self.folder / PREDICTIONS_MANIFEST, values)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """`identity`, `records` (by case name), `workers` and `finished` of a manifest; None if there is no file.

    Raises:
        ConfigError: The file is not a manifest of predictions.
    """
    try:
        values = json.loads(path.read_text())
        if (values["format"], values["format_version"]) != (PREDICTIONS_FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {values['format']} {values['format_version']}")
        records = [CaseRecord.from_dict(entry) for entry in values["cases"]]
        return {
            "identity": values["identity"],
            "records": {record.case: record for record in records},
            "workers": values.get("workers", {}),
            "finished": values["finished"],
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: no manifest of {PREDICTIONS_FORMAT} version {FORMAT_VERSION} ({error}); "
            "move it away or give another --output"
        ) from None


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
    return "; ".join(f"{key} {earlier.get(key)!r}, now {now.get(key)!r}" for key in keys)
