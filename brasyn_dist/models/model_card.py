"""Model card (README.md) of an export, from the facts that the export, its run and an evaluation contain."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import brasyn_dist
from brasyn_dist.common.files import read_json
from brasyn_dist.config import NormalisationMode
from brasyn_dist.preprocessing.normalisation import CASE_CLIP
from brasyn_dist.preprocessing.preprocessing import Preprocessing

CARD = "README.md"
QUOTED = ("mae/brain", "psnr/brain", "ssim/healthy", "ssim/tumour", "dice/WT", "dice/TC", "dice/ET")
"""Metrics of the table, as far as the evaluation has them."""
INTENDED_USE = (
    "Research on incomplete MRI studies: segmentation with missing sequences, and synthesis. "
    "Not a medical device: not for diagnosis, treatment or any other clinical decision."
)
LIMITS = (
    "A synthetic sequence shows what is likely given the others, not what is there. Contrast "
    "enhancement cannot be known from sequences without contrast agent: a synthetic T1c may show enhancing "
    "tumour that does not exist, or miss it.",
    "The model was tested on data like its training data only. Other tumours, children, brains after "
    "surgery, other scanners and other preprocessing can give wrong images without a visible sign.",
    "Slices are synthesised one by one within a view, so neighbouring slices can be inconsistent.",
)
NORMALISATIONS: Mapping[NormalisationMode, str] = {
    "zscore": "each modality is clipped at the maximum of the table, minus its mean, divided by its standard "
    "deviation",
    "slice": "each slice linearly to [-1, 1], 0 to -1 and its maximum to 1",
    "case": f"each volume is divided by the median of its values above 0, clipped at {CASE_CLIP:g}, minus 1",
}


GENERATOR_USAGE = """```bash
brasyn infer --weights {name} --input CASES --output PREDICTIONS
```

```python
from brasyn_dist import Generator

generator = Generator.from_pretrained("{name}")
```"""
REFINER_USAGE = """```bash
brasyn infer --weights FIRST_STAGE --refiner {name} --input CASES --output PREDICTIONS
```"""
VOLUME_USAGE = """```bash
brasyn infer --weights {name} --input CASES --output PREDICTIONS
```"""
SEGMENTER_USAGE = """```bash
brasyn evaluate --segmenter {name} --predictions PREDICTIONS --references CASES --out EVALUATION
```"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card says about a network."""

    kind: str
    """`generator`, `segmenter`, `volume` or `refiner`."""
    configuration: Any
    parameters: int
    preprocessing: Preprocessing
    run: Path | None
    """Run folder of the export, if it lies in one."""


def model_card(
    facts: CardFacts, name: str, usage: str, evaluation: Path | None = None, tags: Sequence[str] = ()
) -> str:
    """Text of the model card.

    Args:
        facts: About the network.
        name: Title.
        usage: Commands in Markdown.
        evaluation: Folder of `brasyn evaluate`, whose scores are quoted.
        tags: Further tags for the hub.
    """
    preprocessing, run = facts.preprocessing, facts.run
    unit = "slice" if preprocessing.patch is None else "patch"
    modality_set, statistics = preprocessing.modality_set, preprocessing.statistics
    head = {
        "library_name": "brasyn_dist",
        "pipeline_tag": "image-segmentation" if facts.kind == "segmenter" else "image-to-image",
        "tags": ["medical", "mri", "brain", *modality_set.modalities, *tags],
    }
    titles = ", ".join(map(modality_set.title, modality_set.modalities))
    task = (
        f"Synthesises a missing MRI sequence of a brain study ({titles}) from the available ones"
        if facts.kind != "segmenter"
        else f"Segments {', '.join(modality_set.labels.values())} in MRI of the brain ({titles})"
    )
    rows = [
        [modality_set.title(m), f"{s.clip_max:.1f}", f"{s.mean:.1f}", f"{s.std:.1f}"]
        for m, s in statistics.modalities.items()
    ]
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}",
        f"{task}, {unit} by {unit}. Written by brasyn_dist {brasyn_dist.__version__}.",
        f"{facts.parameters:,} parameters. Configuration: `{facts.configuration}`.",
        "## Use",
        usage,
        "## Training data",
        f"{statistics.cases or 'An unknown number of'} training cases"
        + (f", SHA-256 of their names {statistics.case_list_hash}." if statistics.case_list_hash else "."),
        *training_facts(run),
        f"{training_views(preprocessing)} Normalisation of the intensities: `{preprocessing.normalisation}` "
        f"({NORMALISATIONS[preprocessing.normalisation]}; values of 0 and below are -1).",
        markdown_table(["Intensities (foreground)", "clipped at", "mean", "standard deviation"], rows),
        "## Metrics",
        *(evaluation_tables(evaluation) if evaluation else ["No evaluation was given for this model card."]),
        *validation_facts(run, unit),
        "## Intended use",
        INTENDED_USE,
        "## Limits",
        "\n".join(f"- {limit}" for limit in (LIMITS if preprocessing.patch is None else LIMITS[:-1])),
    ]
    return "\n\n".join(sections) + "\n"


def export_usage(kind: str, name: str) -> str:
    """How an export is used, in Markdown."""
    usages = {"generator": GENERATOR_USAGE, "volume": VOLUME_USAGE, "refiner": REFINER_USAGE}
    return usages.get(kind, SEGMENTER_USAGE).format(name=name)


def training_facts(run: Path | None) -> list[str]:
    """Cohorts and samples from a run's data.json, if the export lies in a run folder."""
    values = read_json(run / "data.json") if run else {}
    if not values:
        return []
    unit = "slices" if "slices" in values else "cases"
    samples, table = values[unit], values["shard_set"]
    return [
        f"{samples['training']:,} {unit} for training, {samples['held_out']:,} held out.",
        markdown_table(table["head"], table["rows"]),
    ]


def training_views(preprocessing: Preprocessing) -> str:
    """Which slices or patches a network was trained on, as a sentence."""
    if preprocessing.patch is not None:
        return f"Patches of {' x '.join(map(str, preprocessing.patch))} voxels."
    return f"Views: {', '.join(preprocessing.views) or 'not recorded'}."


def validation_facts(run: Path | None, unit: str) -> list[str]:
    """The best validation in a run's metrics.jsonl, by its MAE; `unit` is what it was computed on."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines() if run else []
        values = [v for line in lines if (v := json.loads(line)).get("kind") == "validation" and "mae" in v]
    except (OSError, ValueError):
        values = []
    if not values:
        return []
    best = min(values, key=lambda v: v["mae"])
    scores = {k: v for k, v in best.items() if isinstance(v, float) and "/" not in k}
    quoted = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if name != "epoch")
    many = {"slice": "slices", "patch": "patches"}[unit]
    return [f"Validation on held-out {many}, normalised intensities, step {best['step']}: {quoted}."]


def evaluation_tables(evaluation: Path) -> list[str]:
    """Means of the synthetic volumes and of the baselines by target, with their confidence intervals."""
    means: Mapping[str, Any] = read_json(evaluation / "summary.json").get("means", {})
    tables = []
    for target, methods in means.items():
        names = [n for n in QUOTED if any(n in values for values in methods.values())]
        rows = [
            [method, *(mean_text(values.get(n)) for n in names)]
            for method, values in methods.items()
            if any(n in values for n in names)
        ]
        count = max((v["cases"] for values in methods.values() for v in values.values()), default=0)
        tables += [f"Target {target}, {count} volumes:", markdown_table(["method", *names], rows)]
    return tables or [f"{evaluation.name}: no scores."]


def mean_text(value: Mapping[str, Any] | None) -> str:
    """Mean ± half of the 95 % confidence interval."""
    if value is None:
        return "–"
    half = "" if value.get("high") is None else f" ± {value['high'] - value['mean']:.2g}"
    return f"{value['mean']:.4g}{half}"


def markdown_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
