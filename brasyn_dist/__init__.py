"""Synthesis of missing brain MRI modalities, trained on many GPUs and nodes.

The data flow, and the modules in its order:

    BraTS folders --> statistics.json --> tar shards + index.json --> stream --> train --> checkpoints --> synthesise --> NIfTI --> evaluate --> report
    data.nifti        data.statistics     data.make_shards            data.plan  training  training        inference               evaluation
                                          data.shards                 data.stream models   .checkpoint
                                                                                 losses
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Generator": "brasyn_dist.models.registry",
    "infer_batch": "brasyn_dist.inference.api",
    "infer_single": "brasyn_dist.inference.api",
}


def __getattr__(name: str) -> Any:
    """What most people need, imported on first use: importing the package itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
