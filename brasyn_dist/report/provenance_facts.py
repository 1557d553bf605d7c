"""Provenance of runs and predictions as facts for a report: versions, commit, command, hashes."""

import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import brasyn_dist
from brasyn_dist.common.files import read_json
from brasyn_dist.common.provenance import git_commit
from brasyn_dist.models.pretrained import CONFIG_FILE, EXPORT_FOLDER


def this_program() -> dict[str, str]:
    """The program that writes the report."""
    return {
        "report written by": f"brasyn_dist {brasyn_dist.__version__}, commit {git_commit() or 'unknown'}",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "Python": platform.python_version(),
    }


def environment_facts(values: Mapping[str, Any]) -> dict[str, str]:
    """environment.json of a run (or the same entries of a manifest's details), each as one line of text."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "code": ("brasyn_dist", lambda v: f"brasyn_dist {v}"),
        "git commit": ("git_commit", lambda v: v or "unknown"),
        "Python": ("python", str),
        "packages": ("versions", lambda v: ", ".join(f"{k} {n}" for k, n in v.items())),
        "host": ("host", str),
        "processes": ("processes", str),
        "device": ("device", str),
        "Slurm": ("slurm", lambda v: ", ".join(f"{k} {n}" for k, n in v.items())),
        "started by": ("command", lambda v: shlex.join(map(str, v))),
    }
    found = {name: show(values[key]) for name, (key, show) in known.items() if key in values}
    return {name: text for name, text in found.items() if text}


def export_facts(run_dir: Path) -> dict[str, str]:
    """Step and hash of the weights that a run exported."""
    values = read_json(run_dir / EXPORT_FOLDER / CONFIG_FILE)
    names = {"exported at step": "step", "SHA-256 of the exported weights": "weights_sha256"}
    return {name: str(values[key]) for name, key in names.items() if values.get(key) is not None}


def manifest_facts(path: Path) -> dict[str, str]:
    """Members, fusion, settings and environment of a synthesis, from manifest.json; empty without it."""
    values = read_json(path)
    if "identity" not in values:
        return {}
    identity, details = values["identity"], values.get("details", {})
    facts = {
        f"member {number}": f"{m.get('view')} view, weights {m.get('weights_sha256')}"
        for number, m in enumerate(identity.get("members", ()), 1)
    }
    facts |= {k.replace("_", " "): str(v) for k, v in identity.items() if k != "members"}
    weights = details.get("weights", [])
    facts |= {"weights from": ", ".join(map(str, weights))} if weights else {}
    facts |= {k.replace("_", " "): str(details[k]) for k in ("fusion", "batch_size") if k in details}
    return facts | environment_facts(details)
