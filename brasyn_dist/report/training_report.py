"""report.html of a run: how its training went, in one file that needs no network.

    status.json, metrics.jsonl, performance.jsonl, panels/, data.json, config.yaml, environment.json, export/  -->  report.html

Everything is read from the run's folder, so that it can be drawn again at any time: `python -m brasyn_dist.report RUN`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from brasyn_dist.brats import IMAGE_SIZE, MODALITIES, MODALITY_NAMES, image_shape
from brasyn_dist.common.panels import panel_tiles
from brasyn_dist.common.typed_yaml import to_dict
from brasyn_dist.config import Config, SegmenterRunConfig
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import crop_to
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
from brasyn_dist.report.page import Section, cards, escape, facts, fold, note, table, write_page
from brasyn_dist.report.pictures import embed_file, tile, tiles
from brasyn_dist.report.provenance import export_facts, read_json, run_facts, this_program
from brasyn_dist.training.loggers import METRICS, PERFORMANCE, read_lines
from brasyn_dist.training.run_dir import PANELS, STATUS
from brasyn_dist.training.training_data import DATA_FILE

REPORT = "report.html"
MARGIN = 4
"""Pixels around the brain, in pictures."""
_PANEL = re.compile(r"^step-(\d+)-(.+)\.png$")
HEADLINES: tuple[tuple[str, str, Callable[..., Line]], ...] = (
    ("mae", "Smallest", min),
    ("dice", "Largest", max),
)
"""Validation scores that choose the best network, of a generator and of a segmenter."""


def write_run_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from what the folder holds. Raises DataError if it is no run's folder."""
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir}: no config.yaml; give the folder of a run, such as runs/r3")
    status, options = read_json(run_dir / STATUS), (run_dir / "config.yaml").read_text()
    metrics, performance = lines_of(run_dir / METRICS), lines_of(run_dir / PERFORMANCE)
    sections = [
        Section(
            "Validation",
            validation(metrics),
            "The averaged network on fixed held-out slices, in normalised units.",
        ),
        Section(
            "Loss terms",
            training_curves(metrics),
            "Unweighted. Line: mean of some steps; shade: smallest to largest.",
        ),
        *panels(run_dir / PANELS, slice_shape(options)),
        *([Section("Speed", performance_curves(performance))] if performance else []),
        Section("Data", data(run_dir)),
        Section("Configuration", configuration(options)),
        Section("Provenance", provenance(run_dir)),
    ]
    path = run_dir / REPORT
    name = run_dir.resolve().name
    write_page(
        path, f"Training run {name}", subtitle(status), opening(status, metrics, performance), sections
    )
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.exists() else []


def subtitle(status: Mapping[str, Any]) -> str:
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return f"{status.get('status', 'unknown')}{reason}: step {status.get('step', '?')} of {status.get('total_steps', '?')}"


def opening(status: Mapping[str, Any], metrics: Sequence[Line], performance: Sequence[Line]) -> str:
    """Cards: how far, how good, how fast."""
    entries = [("Steps", f"{status.get('step', 0):,}", f"of {status.get('total_steps', 0):,}")]
    train = [line for line in metrics if line["kind"] == "train"]
    if train and "epoch" in train[-1]:
        entries.append(("Passes over the data", f"{train[-1]['epoch']:.3g}", "epochs"))
    scored = [line for line in metrics if line["kind"] == "validation"]
    for name, word, choose in HEADLINES:
        known = [line for line in scored if line.get(name) is not None]
        if known:
            best = choose(known, key=lambda line: line[name])
            more = f"at step {best['step']:,}; {known[-1][name]:.4f} at the last, {known[-1]['step']:,}"
            entries.append((f"{word} validation {readable(name)}", f"{best[name]:.4f}", escape(more)))
    _, speeds = points_of(performance, "slices_per_second")
    if len(speeds):
        entries.append(
            ("Slices a second", f"{sorted(speeds)[len(speeds) // 2]:.3g}", "median of the log's entries")
        )
    return cards(entries)


def validation(metrics: Sequence[Line]) -> str:
    """The last scores, overall and by part, as a table, then their curves."""
    lines = [line for line in metrics if line["kind"] == "validation"]
    if not lines:
        return note("This run has no validation.")
    last = lines[-1]
    names = score_names(last)
    parts = list(dict.fromkeys(p for n in names for p in parts_of(last, n)))
    rows = [[OVERALL, *(cell(last.get(n)) for n in names)]]
    rows += [[part, *(cell(last.get(parts_of(last, n).get(part, ""))) for n in names)] for part in parts]
    head = [f"at step {last['step']:,}", *map(readable, names)]
    return table(head, rows) + validation_curves(metrics)


def cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def panels(folder: Path, shape_HW: tuple[int, int]) -> list[Section]:
    """The pictures of the last validation, of (H, W) slices; no section without any."""
    found = [(int(m[1]), m[2], p) for p in sorted(folder.glob("*.png")) if (m := _PANEL.match(p.name))]
    if not found:
        return []
    last = max(step for step, _, _ in found)
    chosen = {name: path for step, name, path in found if step == last}
    order = [n for n in MODALITIES if n in chosen] + [n for n in chosen if n not in MODALITIES]
    pictures = [
        f"<h3>{escape(MODALITY_NAMES.get(n, n))}</h3>{picture(chosen[n], n, last, shape_HW)}" for n in order
    ]
    lead = f"Held-out slices at step {last:,}."
    if set(chosen) <= set(MODALITIES):
        lead += " Blue: synthetic too dark; red: too bright; yellow: outline of the tumour."
    return [Section("Pictures", "".join(pictures), lead)]


def picture(path: Path, name: str, step: int, shape_HW: tuple[int, int]) -> str:
    """A panel as tiles that wrap on a small screen; one that is not of the trainer's kind as it is."""
    from PIL import Image

    where = f"held-out slice at step {step}"
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    try:
        rows = panel_tiles(rgb, shape_HW)
    except ValueError:
        return embed_file(path, f"{name}, {where}")
    return "".join(tile_row(row, name, f"{where}, number {number}") for number, row in enumerate(rows, 1))


def tile_row(row: Sequence[np.ndarray], name: str, where: str) -> str:
    """Tiles of one slice, cut to where any input or the target shows something; what is missing is left out."""
    *inputs, target, synthetic, difference = row
    shown = [(n, i) for n, i in zip(MODALITIES, inputs) if n != name]
    inside = crop_to(np.max([target, *(i for _, i in shown)], axis=0).any(-1), MARGIN)
    title = MODALITY_NAMES.get(name, name)
    parts = [tile(i[inside], MODALITY_NAMES[n], f"Input {MODALITY_NAMES[n]}, {where}") for n, i in shown]
    parts += [
        tile(image[inside], caption, f"{kind} {title}, {where}", main=True)
        for image, caption, kind in (
            (target, "target", "Real"),
            (synthetic, "synthetic", "Synthetic"),
            (difference, "difference", "Synthetic minus real"),
        )
    ]
    return f'<div class="plane">{tiles(parts)}</div>'


def data(run_dir: Path) -> str:
    values = read_json(run_dir / DATA_FILE)
    if not values:
        return note(f"No {DATA} in the run's folder: it was trained by an earlier version.")
    slices, statistics = values["slices"], values["statistics"]["modalities"]
    names = ("clip_max", "mean", "std")
    rows = [[MODALITY_NAMES[m], *(f"{statistics[m][n]:.1f}" for n in names)] for m in MODALITIES]
    return (
        facts(
            {
                "slices of this run": f"{slices['training']:,} for training, {slices['held_out']:,} held out",
                "fingerprint": values["fingerprint"],
            }
        )
        + "<h3>The shard set</h3>"
        + table(values["shard_set"]["head"], values["shard_set"]["rows"], text_columns=2)
        + "<h3>Intensities of its training cases</h3>"
        + table(["modality", "clipped at", "mean", "standard deviation"], rows)
    )


def slice_shape(options: str) -> tuple[int, int]:
    """(H, W) of the slices that the run's networks see, from the text of its config.yaml."""
    values = yaml.safe_load(options) or {}
    size = values.get("generator" if "generator" in values else "segmenter", {}).get("image_size", IMAGE_SIZE)
    return image_shape(size if isinstance(size, int) else tuple(size))


def configuration(options: str) -> str:
    """Options (the text of config.yaml) that differ from the defaults as a table, and all of them, folded."""
    values = yaml.safe_load(options) or {}
    kind = Config if "generator" in values else SegmenterRunConfig
    changed = differences(values, to_dict(kind()))
    rows = [[key, f"{now}", f"{default}"] for key, now, default in changed]
    return (
        note("Options that differ from their defaults.")
        + table(["option", "this run", "default"], rows, text_columns=3)
        + fold("All options (config.yaml)", f"<pre>{escape(options)}</pre>")
    )


def differences(
    values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(option, value, default) where they differ, nested options as `section.key`."""
    found: list[tuple[str, Any, Any]] = []
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            found += differences(value, default, f"{prefix}{key}.")
        elif value != default:
            found.append((prefix + key, value, default))
    return found


def provenance(run_dir: Path) -> str:
    trained = run_facts(run_dir) | export_facts(run_dir)
    return facts(trained | this_program()) if trained else facts(this_program())
