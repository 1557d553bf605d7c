"""report.html of a training run.

    status.json, metrics.jsonl, performance.jsonl, panels/, data.json, config.yaml, environment.json, export/
        --> report.html

Everything is read from the folder of the run, so the report can be written again at any time: `brasyn
report RUN`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from brasyn_dist.brats import BRATS, IMAGE_SIZE, image_shape
from brasyn_dist.common.files import read_json
from brasyn_dist.common.panels import panel_tiles
from brasyn_dist.config import TASKS, read_yaml, task_of, to_dict
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import bounding_box
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.charts import Chart
from brasyn_dist.report.curves import (
    OVERALL,
    Line,
    parts_of,
    performance_curves,
    points_of,
    readable,
    score_names,
    training_curves,
    validation_curves,
)
from brasyn_dist.report.provenance_facts import environment_facts, export_facts, this_program
from brasyn_dist.report.rendering import Card, Picture, Tile, write_html
from brasyn_dist.training.loggers import METRICS, PERFORMANCE, read_lines
from brasyn_dist.training.run_dir import PANELS, STATUS
from brasyn_dist.training.training_data import DATA_FILE

REPORT = "report.html"
MARGIN = 4
"""Margin around the brain in pictures, in pixels."""
_PANEL = re.compile(r"^step-(\d+)-(.+)\.png$")
HEADLINES: tuple[tuple[str, str, Callable[..., Line]], ...] = (
    ("mae", "Smallest", min),
    ("dice", "Largest", max),
)
"""Model-selection metrics of a generator and of a segmenter."""


@dataclass(frozen=True)
class RunDescription:
    """Template values that the report of a run and that of an evaluation share."""

    loss_charts: list[Chart] = field(default_factory=list)
    norm_charts: list[Chart] = field(default_factory=list)
    validation_head: list[str] = field(default_factory=list)
    validation_rows: list[list[str]] = field(default_factory=list)
    validation_legend: dict[str, str] = field(default_factory=dict)
    validation_charts: list[Chart] = field(default_factory=list)
    data: dict[str, Any] | None = None
    changed_options: list[tuple[str, Any, Any]] = field(default_factory=list)
    options: str = ""
    """Text of config.yaml."""


@dataclass(frozen=True)
class PictureGroup:
    """Rows of tiles of one target modality."""

    title: str
    label: str
    rows: list[list[Tile]]


def write_run_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files of the run.

    Raises:
        DataError: The folder is not the folder of a run.
    """
    run = describe_run(run_dir)
    if run is None or not run.options:
        raise DataError(f"{run_dir}: no config.yaml; give the folder of a run, such as runs/r3")
    status = read_json(run_dir / STATUS)
    metrics, performance = lines_of(run_dir / METRICS), lines_of(run_dir / PERFORMANCE)
    groups, wide, lead = pictures(run_dir / PANELS, slice_shape(run.options), run_modality_set(run_dir))
    write_html(
        run_dir / REPORT,
        "training.html.j2",
        title=f"Training run {run_dir.resolve().name}",
        subtitle=subtitle(status),
        run=run,
        cards=cards(status, metrics, performance),
        # The row that shows the largest part of a brain.
        opening_row=max(groups[0].rows, key=lambda row: row[-1].picture.width * row[-1].picture.height)
        if groups
        else None,
        picture_groups=groups,
        wide_pictures=wide,
        pictures_lead=lead,
        speed_charts=performance_curves(performance),
        provenance=environment_facts(read_json(run_dir / "environment.json"))
        | export_facts(run_dir)
        | this_program(),
    )
    return run_dir / REPORT


def describe_run(run_dir: Path) -> RunDescription | None:
    """Curves, data and configuration of a run, as far as its folder has them; None if it has none of them."""
    metrics, config = lines_of(run_dir / METRICS), run_dir / "config.yaml"
    if config.is_file():
        read_yaml(config)  # ConfigError if it is damaged
    options = config.read_text() if config.is_file() else ""
    if not metrics and not options:
        return None
    modality_set = run_modality_set(run_dir)
    losses, norms = training_curves(metrics)
    head, rows = validation_table(metrics, modality_set)
    legend, charts = validation_curves(metrics, modality_set)
    data, changed = data_values(run_dir, modality_set), changed_options(options)
    return RunDescription(losses, norms, head, rows, legend, charts, data, changed, options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; empty without the file."""
    return read_lines(path) if path.exists() else []


def run_modality_set(run_dir: Path) -> ModalitySet:
    """Modality set of a run, from data.json or the export; BRATS if neither contains one."""
    for values in (read_json(run_dir / DATA_FILE), read_json(run_dir / "export" / "config.json")):
        if "modality_set" in values:
            return ModalitySet.from_dict(values["modality_set"])
    return BRATS


def subtitle(status: Mapping[str, Any]) -> str:
    """State and progress of the run."""
    reason = f" ({status['reason']})" if status.get("reason") else ""
    steps = f"step {status.get('step', '?')} of {status.get('total_steps', '?')}"
    return f"{status.get('status', 'unknown')}{reason}: {steps}"


def cards(status: Mapping[str, Any], metrics: Sequence[Line], performance: Sequence[Line]) -> list[Card]:
    """Progress, best validation score and speed."""
    entries = [Card("Steps", f"{status.get('step', 0):,}", f"of {status.get('total_steps', 0):,}")]
    train = [line for line in metrics if line["kind"] == "train"]
    if train and "epoch" in train[-1]:
        entries.append(Card("Passes over the data", f"{train[-1]['epoch']:.3g}", "epochs"))
    scored = [line for line in metrics if line["kind"] == "validation"]
    for name, word, choose in HEADLINES:
        known = [line for line in scored if line.get(name) is not None]
        if known:
            best = choose(known, key=lambda line: line[name])
            more = f"at step {best['step']:,}; {known[-1][name]:.4f} at the last, {known[-1]['step']:,}"
            entries.append(Card(f"{word} validation {readable(name)}", f"{best[name]:.4f}", more))
    _, speeds = points_of(performance, "slices_per_second")
    if len(speeds):
        median = sorted(speeds)[len(speeds) // 2]
        entries.append(Card("Slices per second", f"{median:.3g}", "median of the log's entries"))
    return entries


def validation_table(
    metrics: Sequence[Line], modality_set: ModalitySet = BRATS
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the last validation scores, overall and by part; empty without validation."""
    lines = [line for line in metrics if line["kind"] == "validation"]
    if not lines:
        return [], []
    last = lines[-1]
    names = score_names(last)
    keys = {n: {OVERALL: n, **parts_of(last, n, modality_set)} for n in names}
    parts = dict.fromkeys(part for n in names for part in keys[n])
    rows = [[part, *(_cell(last.get(keys[n].get(part, ""))) for n in names)] for part in parts]
    return [f"at step {last['step']:,}", *map(readable, names)], rows


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def pictures(
    folder: Path, shape_HW: tuple[int, int], modality_set: ModalitySet = BRATS
) -> tuple[list[PictureGroup], list[Picture], str]:
    """Pictures of the last validation, of (H, W) slices.

    Returns:
        Panels as rows of tiles, panels of another layout as they are, and a sentence about them.
    """
    found = [(int(m[1]), m[2], p) for p in sorted(folder.glob("*.png")) if (m := _PANEL.match(p.name))]
    last = max((step for step, _, _ in found), default=0)
    chosen = {name: path for step, name, path in found if step == last}
    order = [n for n in modality_set.modalities if n in chosen]
    groups, wide = [], []
    for name in [*order, *(n for n in chosen if n not in order)]:
        rows = tile_rows(chosen[name], name, last, shape_HW, modality_set)
        if rows:
            title = modality_set.title(name)
            groups.append(PictureGroup(title, f"{title}, held-out slice at step {last:,}", rows))
        else:
            wide.append(Picture.of_png(chosen[name].read_bytes(), f"{name}, held-out slices at step {last}"))
    lead = f"Held-out slices at step {last:,}."
    if order:
        lead += " Blue: synthetic too dark; red: too bright; yellow: outline of the tumour."
    return groups, wide, lead


def tile_rows(
    path: Path, name: str, step: int, shape_HW: tuple[int, int], modality_set: ModalitySet = BRATS
) -> list[list[Tile]]:
    """Tiles of a panel, row by row, cropped to the brain; empty if the panel has another layout.

    A panel of a target modality has the inputs, target, synthetic slice and difference; a panel of a
    segmenter has the modalities, reference and predicted labels.
    """
    from PIL import Image

    title, names = modality_set.title(name), modality_set.modalities
    main = (
        {"target": "Real", "synthetic": "Synthetic", "difference": "Synthetic minus real"}
        if name in names
        else {"reference": "Reference of", "predicted": "Predicted"}
    )
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    try:
        panels = panel_tiles(rgb, shape_HW, len(names) + len(main))
    except ValueError:
        return []
    rows = []
    for number, panel in enumerate(panels, 1):
        where = f"held-out slice at step {step}, number {number}"
        inputs = {n: image for n, image in zip(names, panel) if n != name}
        results = dict(zip(main, panel[len(names) :]))
        # Without the difference, which is white in the background.
        visible = [*inputs.values(), next(iter(results.values()))]
        inside = bounding_box(np.max(visible, axis=0).any(-1), MARGIN)
        tiles = [
            Tile.of(image[inside], modality_set.title(n), f"Input {modality_set.title(n)}, {where}")
            for n, image in inputs.items()
        ]
        tiles += [
            Tile.of(image[inside], caption, f"{main[caption]} {title}, {where}", main=True)
            for caption, image in results.items()
        ]
        rows.append(tiles)
    return rows


def data_values(run_dir: Path, modality_set: ModalitySet = BRATS) -> dict[str, Any] | None:
    """Template values of data.json; None if there is no such file."""
    values = read_json(run_dir / DATA_FILE)
    if not values:
        return None
    unit = "slices" if "slices" in values else "cases"
    samples, statistics = values[unit], values["statistics"]["modalities"]
    return {
        "facts": {
            f"{unit} of this run": f"{samples['training']:,} for training, {samples['held_out']:,} held out",
            "fingerprint": values["fingerprint"],
        },
        "head": values["shard_set"]["head"],
        "rows": values["shard_set"]["rows"],
        "intensities": [
            [modality_set.title(m), *(f"{entry[n]:.1f}" for n in ("clip_max", "mean", "std"))]
            for m, entry in statistics.items()
        ],
    }


def slice_shape(options: str) -> tuple[int, int]:
    """(H, W) of the slices that the run's networks process, from the text of its config.yaml."""
    values = yaml.safe_load(options) or {}
    if "patches" in values:
        return tuple(values["patches"]["size"][:2])
    size = values.get("generator" if "generator" in values else "segmenter", {}).get("image_size", IMAGE_SIZE)
    return image_shape(size if isinstance(size, int) else tuple(size))


def changed_options(options: str) -> list[tuple[str, Any, Any]]:
    """(option, value, default) of the options in the text of config.yaml that differ from the defaults."""
    values = yaml.safe_load(options) or {}
    return option_differences(values, to_dict(TASKS[task_of(values)]()))


def option_differences(
    values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(option, value, default) of differing options; nested options are named `section.key`."""
    found: list[tuple[str, Any, Any]] = []
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            found += option_differences(value, default, f"{prefix}{key}.")
        elif value != default:
            found.append((prefix + key, value, default))
    return found
