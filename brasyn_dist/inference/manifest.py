"""manifest.json beside the predictions: by what they were made, from what, in which time, and their hashes.

It is written before the first case, so that a folder tells by which weights its volumes are made even if the run is killed,
and again at the end, by one of the processes at work, with the results of all cases. A rerun adds to it; one with other
weights, views or precision is refused.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brasyn_dist.common.files import write_json
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.case_results import CaseResult

MANIFEST = "manifest.json"
FORMAT = "brasyn_dist.predictions"
FORMAT_VERSION = 1


@dataclass
class Manifest:
    """`identity`: what decides the voxels beside the inputs. `details`: for the record, of this process. `results`: by case name.

    `new`: the folder has no manifest of this identity yet. `workers`: `details` of all processes that results name.
    """

    folder: Path
    identity: dict[str, Any]
    details: dict[str, Any]
    results: dict[str, CaseResult]
    new: bool = True
    workers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls, folder: Path, identity: dict[str, Any], details: dict[str, Any], overwrite: bool
    ) -> "Manifest":
        """The folder's manifest, with the results of earlier runs of the same identity.

        Raises ConfigError if they had another one, unless they are to be overwritten.
        """
        earlier = read_manifest(folder / MANIFEST)
        if earlier is None:
            return cls(folder, identity, details, {})
        if earlier["identity"] != identity:
            if not overwrite:
                raise ConfigError(
                    f"{folder} holds volumes made by other weights or settings: {difference(earlier['identity'], identity)}; "
                    "give another --output, or --overwrite"
                )
            return cls(folder, identity, details, {})
        return cls(folder, identity, details, earlier["results"], False, earlier["workers"])

    def reread(self, overwrite: bool) -> None:
        """Take what other processes have saved since. Raises ConfigError as `open` does."""
        now = self.open(self.folder, self.identity, self.details, overwrite)
        self.results, self.workers, self.new = now.results, now.workers, now.new

    def save(self, finished: bool) -> None:
        named = {result.worker for result in self.results.values()}
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "finished": finished,
            "identity": self.identity,
            "details": self.details,
            "workers": {name: self.workers[name] for name in sorted(self.workers) if name in named},
            "counts": dict(Counter(result.status for result in self.results.values())),
            "cases": [self.results[name].to_dict() for name in sorted(self.results)],
        }
        write_json(self.folder / MANIFEST, values)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """`identity`, `results` (by case name) and `workers` of a manifest; None if there is none. Raises ConfigError if it is not ours."""
    try:
        values = json.loads(path.read_text())
        if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {values['format']} {values['format_version']}")
        results = [CaseResult.from_dict(entry) for entry in values["cases"]]
        return {
            "identity": values["identity"],
            "results": {r.case: r for r in results},
            "workers": values.get("workers", {}),
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no manifest of {FORMAT} version {FORMAT_VERSION} ({error}); move it away or give another --output"
        ) from None


def difference(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
    return "; ".join(f"{key} {earlier.get(key)!r}, now {now.get(key)!r}" for key in keys)
