"""Export of a generator as a MONAI bundle, which `python -m monai.bundle run` executes.

    configs/metadata.json    description in MONAI's schema
    configs/inference.json   synthesis of the missing modalities of a folder of cases
    models/                  the export: config.json, model.safetensors
    docs/README.md           model card

The bundle needs brasyn_dist, which is named in its metadata: results are those of `brasyn infer`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import brasyn_dist
from brasyn_dist.brats import image_shape
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.models.model_card import INTENDED_USE
from brasyn_dist.models.pretrained import PretrainedNetwork

MONAI_VERSION = "1.4.0"
"""Lowest version that the bundle needs."""
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
USAGE = """```bash
pip install "monai[fire]" brasyn_dist
cd BUNDLE
python -m monai.bundle run --config_file configs/inference.json --dataset_dir CASES --output_dir PREDICTIONS
```

CASES is a folder of case folders (or one case folder) without the sequences to synthesise. Every entry of
`configs/inference.json` can be given as an option, such as `--precision bf16`. `models/` is also a folder for
`brasyn infer --weights`."""


def write_bundle(network: PretrainedNetwork, folder: Path, name: str, evaluation: Path | None) -> None:
    """Write the bundle.

    Args:
        network: A generator with its preprocessing.
        folder: Created if it does not exist.
        name: Name of the model.
        evaluation: Folder of `brasyn evaluate`, whose scores the model card quotes.
    """
    for part in ("configs", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder / "models")
    write_json(folder / "configs/inference.json", inference_config())
    write_json(folder / "configs/metadata.json", metadata(network, name))
    atomic_write_text(folder / "docs/README.md", network.card(name, USAGE, evaluation, ("monai",)))


def inference_config() -> dict[str, Any]:
    """Content of configs/inference.json."""
    return {
        "imports": ["$import sys", "$import brasyn_dist"],
        "bundle_root": ".",
        "weights": "$@bundle_root + '/models'",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "modalities": [],
        "views": None,
        "batch_size": None,
        "precision": "no",
        "device": None,
        "tta": False,
        "overwrite": False,
        "network_def": {
            "_target_": "brasyn_dist.models.registry.Generator.from_pretrained",
            "path": "@weights",
        },
        "initialize": [],
        "results": "$brasyn_dist.infer_batch(@dataset_dir, @output_dir, weights=@weights, "
        "modalities=@modalities, views=@views, batch_size=@batch_size, precision=@precision, "
        "device=@device, tta=@tta, overwrite=@overwrite)",
        "run": [
            "$any(r.status == 'failed' for r in @results) and "
            "sys.exit('a case failed: see manifest.json in ' + @output_dir)"
        ],
        "finalize": [],
    }


def metadata(network: PretrainedNetwork, name: str) -> dict[str, Any]:
    """Content of configs/metadata.json."""
    preprocessing = network.preprocessing
    assert preprocessing is not None
    modality_set = preprocessing.modality_set
    height, width = image_shape(network.config.image_size)
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "spatial_shape": [height, width],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
    }
    channels = {str(k): modality_set.title(m) for k, m in enumerate(modality_set.modalities)}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "first export"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"brasyn_dist": brasyn_dist.__version__},
        "name": name,
        "task": "Synthesis of missing brain MRI sequences",
        "description": "Synthesises the missing MRI sequences of a case from the available ones.",
        "authors": "",
        "copyright": "",
        "data_source": f"{preprocessing.statistics.cases} cases, see docs/README.md",
        "data_type": "nifti",
        "intended_use": INTENDED_USE,
        "network_data_format": {
            "inputs": {
                "image": {**image, "num_channels": len(modality_set), "channel_def": channels},
            },
            "outputs": {
                "pred": {**image, "num_channels": 1, "channel_def": {"0": "synthetic sequence"}},
            },
        },
    }
