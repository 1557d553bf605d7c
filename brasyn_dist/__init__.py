"""Synthesis of missing brain MRI modalities, trained on many GPUs and nodes.

cohort folders (NIfTI) --data.sharding--> shards and index --data.loading, training--> checkpoints, export
export, cohort folders --inference--> synthetic volumes --evaluation, report--> scores, report
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "Generator": "brasyn_dist.models.registry",
    "infer_batch": "brasyn_dist.inference.api",
    "infer_single": "brasyn_dist.inference.api",
}


def __getattr__(name: str) -> Any:
    """Public names, imported on first use, so that importing the package is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
