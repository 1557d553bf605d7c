"""Samples and losses of a run, to compare runs that were executed differently."""

import json
from pathlib import Path


def traced_batches(run_dir: Path) -> dict[int, list[list[object]]]:
    """For each step the (key, targets, masks) of all ranks' samples, in the order of the global batch.

    A step that was done again after a kill counts once if both times agree, and must.
    """
    steps: dict[int, dict[int, list[object]]] = {}
    for path in run_dir.glob("trace-*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            rows = steps.setdefault(values["step"], {})
            for i, sample in enumerate(values["samples"], values["first_row"]):
                assert rows.setdefault(i, sample) == sample, f"{path}: step {values['step']}, row {i} differs"
    return {step: [rows[i] for i in sorted(rows)] for step, rows in steps.items()}


def losses(run_dir: Path) -> list[float]:
    """Reconstruction loss of every step."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["reconstruction"] for line in lines if line["kind"] == "train"]
