"""report.html: what the numbers look like, in one file that needs no network.

summary table --> spread of the cases --> worst and best cases in three planes --> training curves --> provenance
"""

import base64
import html
import io
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import brasyn_dist
from brasyn_dist.brats import MODALITIES, MODALITY_NAMES, VIEW_AXES, VIEWS, Case
from brasyn_dist.data.slicing import extract_slices, pad_to_square
from brasyn_dist.evaluation.cases import SYNTHETIC, CaseResult, load
from brasyn_dist.evaluation.image import DESCRIPTIONS
from brasyn_dist.evaluation.panels import grid, slice_panel
from brasyn_dist.evaluation.summary import HEADLINES, METHODS, Mean, Row, number
from brasyn_dist.files import atomic_write_text

SHOWN = 2
"""Cases shown at each end."""
_COLOURS = {METHODS[0]: "#1f5fa8", METHODS[1]: "#b5651d", METHODS[2]: "#6b7280"}
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;margin:0 auto;max-width:1180px;padding:1rem}
h1{font-size:1.6rem;margin:.3rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid #d7dce3}
h3{font-size:1rem;margin:1.2rem 0 .3rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;white-space:nowrap}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e6e9ee}th:first-child,td:first-child,th:nth-child(2),td:nth-child(2)
{text-align:left}tr.synthetic td{background:#eef4fb;font-weight:600}img{max-width:100%;height:auto;display:block}
.scroll img{max-width:none;width:1130px}.note{color:#55606e;font-size:.9rem}.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots img{width:560px}
code{background:#f1f3f6;padding:0 .25rem;overflow-wrap:anywhere}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;
font-size:.88rem}dt{color:#55606e}dd{margin:0;overflow-wrap:anywhere}
"""


def write_report(
    path: Path,
    results: Sequence[CaseResult],
    rows: Sequence[Row],
    summary: Mapping[str, Mapping[str, Mapping[str, Mean]]],
    cases: Mapping[str, Case],
    predictions: Path,
    run_dir: Path | None = None,
) -> None:
    """Write the report of an evaluation; `run_dir` adds the training curves of that run."""
    scored = [r for r in results if r.problem is None]
    body = [
        "<h1>Synthesis of missing brain MRI sequences</h1>",
        f'<p class="note">{len(scored)} volumes of {len({r.prediction.case for r in scored})} cases. '
        "Research use only, not for clinical use.</p>",
        *_problems(results),
        "<h2>Scores</h2>",
        _table(summary),
        _explanation(),
        "<h2>Spread over cases</h2>",
        _distributions(rows),
        "<h2>Worst and best cases</h2>",
        '<p class="note">By PSNR of the brain. '
        "Blue: synthetic too dark; red: too bright; yellow: outline of the tumour.</p>",
        *_extremes(scored, cases),
    ]
    if run_dir is not None:
        body += ["<h2>Training</h2>", _curves(run_dir)]
    body += ["<h2>Provenance</h2>", _provenance(predictions, run_dir)]
    atomic_write_text(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>brasyn_dist report</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n",
    )


def _problems(results: Sequence[CaseResult]) -> list[str]:
    bad = [r for r in results if r.problem is not None]
    if not bad:
        return []
    items = "".join(f"<li>{html.escape(str(r.problem))}</li>" for r in bad)
    return [f"<h2>Not scored: {len(bad)}</h2><ul>{items}</ul>"]


def _table(summary: Mapping[str, Mapping[str, Mapping[str, Mean]]]) -> str:
    head = "".join(f"<th>{html.escape(h.replace('_', ' '))}</th>" for h in HEADLINES)
    lines = [f"<tr><th>target</th><th>method</th><th>cases</th>{head}</tr>"]
    for modality, methods in summary.items():
        for method, means in methods.items():
            cells = "".join(f"<td>{number(means.get(h))}</td>" for h in HEADLINES)
            kind = ' class="synthetic"' if method == SYNTHETIC else ""
            lines.append(
                f"<tr{kind}><td>{modality}</td><td>{method}</td><td>{means['mae/brain'].cases}</td>{cells}</tr>"
            )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _explanation() -> str:
    items = "".join(f"<li><b>{k.replace('_', ' ')}</b>: {v}.</li>" for k, v in DESCRIPTIONS.items())
    return (
        f'<ul class="note">{items}<li>± is half of the 95 % confidence interval over cases. The best copy is chosen with '
        "hindsight, for each target, by its MAE on these very cases.</li></ul>"
    )


def _figure(draw: Any, width: float, height: float) -> str:
    """An <img> with the picture that `draw(figure)` makes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _image(buffer.getvalue())


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _distributions(rows: Sequence[Row]) -> str:
    """One picture for each headline score: a column of points a target modality and method."""
    pictures = [_figure(lambda f, n=name: _strip(f, rows, n), 6.2, 2.9) for name in HEADLINES]
    return f'<div class="plots">{"".join(pictures)}</div>'


def _strip(figure: Any, rows: Sequence[Row], name: str) -> None:
    axis = figure.subplots()
    shown = [m for m in MODALITIES if any(r.modality == m for r in rows)]
    for offset, method in zip((-0.22, 0.0, 0.22), METHODS):
        for x, modality in enumerate(shown):
            values = [
                v
                for r in rows
                if (r.method, r.modality) == (method, modality) and (v := r.scores[name]) is not None
            ]
            if values:
                spread = x + offset + np.linspace(-0.05, 0.05, len(values))
                axis.plot(spread, values, "o", ms=4, alpha=0.6, color=_COLOURS[method])
                axis.hlines(
                    np.mean(values), x + offset - 0.09, x + offset + 0.09, color=_COLOURS[method], lw=2
                )
    axis.set_xticks(range(len(shown)), [MODALITY_NAMES[m] for m in shown], fontsize=8)
    axis.set_xlim(-0.5, len(shown) - 0.5)
    axis.set_title(name.replace("_", " "), fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    handles = [axis.plot([], [], "o", color=c, label=m)[0] for m, c in _COLOURS.items()]
    axis.legend(handles=handles, fontsize=7, frameon=False)


def _extremes(results: Sequence[CaseResult], cases: Mapping[str, Case]) -> list[str]:
    """Panels of the worst and the best cases by PSNR."""

    def quality(result: CaseResult) -> float:
        return result.scores[SYNTHETIC]["psnr/brain"] or 0.0

    ordered = sorted(results, key=quality)
    worst, rest = ordered[:SHOWN], ordered[SHOWN:]
    parts = []
    for title, chosen in (("Worst", worst), ("Best", rest[::-1][:SHOWN])):
        for result in chosen:
            p = result.prediction
            parts.append(
                f"<h3>{title}: {html.escape(p.case)}, {MODALITY_NAMES[p.modality]} (PSNR {quality(result):.2f} dB)</h3>"
                f'<div class="scroll">{case_panel(result, cases[p.case])}</div>'
            )
    return parts


def case_panel(result: CaseResult, case: Case) -> str:
    """<img> of a case in three planes, each through the tumour's (or the brain's) centre."""
    from PIL import Image

    synthetic, volumes = load(result.prediction, case)
    target = MODALITIES.index(result.prediction.modality)
    real = volumes.images[target]
    # One window a modality, from the real volumes: the inputs differ by orders of magnitude.
    peaks = [max(1.0, float(np.percentile(v[v > 0], 99.5))) for v in volumes.images]
    scaled = np.stack([v / p for v, p in zip(volumes.images, peaks)]).astype(np.float32)
    planes = [
        *scaled,
        synthetic / peaks[target],
        np.zeros_like(real) if volumes.labels is None else volumes.labels,
    ]
    available = np.arange(len(MODALITIES)) != target
    centre = _centre(real if volumes.labels is None or not volumes.labels.any() else volumes.labels)
    panels = []
    for view in VIEWS:
        slices = extract_slices(np.stack(planes), view)[centre[VIEW_AXES[view]]]
        square = pad_to_square(slices, max(slices.shape[1:]))
        panels.append(
            slice_panel(
                square[:4],
                square[target],
                square[4],
                square[5] if volumes.labels is not None else None,
                available,
                (0.0, 1.0),
                view,
            )
        )
    buffer = io.BytesIO()
    Image.fromarray(grid(panels)).save(buffer, format="PNG", optimize=True)
    return _image(buffer.getvalue())


def _centre(volume: np.ndarray) -> list[int]:
    """Along each axis, the slice with most foreground."""
    counts = [np.count_nonzero(volume, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [int(np.argmax(c)) for c in counts]


def _curves(run_dir: Path) -> str:
    """Loss terms and validation scores of a run by optimiser step."""
    from brasyn_dist.telemetry import METRICS, read_lines

    path = run_dir / METRICS
    lines = read_lines(path) if path.exists() else []
    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    if not train:
        return f'<p class="note">{html.escape(str(path))} has no lines.</p>'
    pictures = [_figure(lambda f: _plot_terms(f, train), 6.2, 3.4)]
    if validation:
        pictures.append(_figure(lambda f: _plot_validation(f, validation), 6.2, 3.4))
    return f'<div class="plots">{"".join(pictures)}</div>'


def _plot_terms(figure: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    axis = figure.subplots()
    names = [n for n in lines[0] if n not in ("step", "kind", "epoch", "rate") and not n.endswith("_norm")]
    window = max(1, len(lines) // 60)
    for name in names:
        values = np.array([np.nan if line.get(name) is None else line[name] for line in lines], float)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(
            [line["step"] for line in lines][window - 1 :], smooth, lw=1.2, label=name.replace("_", " ")
        )
    axis.set(xlabel="optimiser step", title="loss terms (unweighted, moving mean)", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, ncols=2, frameon=False)


def _plot_validation(figure: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    axis = figure.subplots()
    for name, style in (("mae", "-"), ("ssim_healthy", "--"), ("ssim_tumour", ":")):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axis.plot(*zip(*points), style, marker="o", ms=3, label=name.replace("_", " "))
    axis.set(xlabel="optimiser step", title="validation, averaged network, all targets")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)


def _provenance(predictions: Path, run_dir: Path | None) -> str:
    from brasyn_dist.training.run_folder import git_commit

    facts: dict[str, str] = {
        "command": " ".join(sys.argv),
        "brasyn_dist": f"{brasyn_dist.__version__}, commit {git_commit() or 'unknown'}",
        "Python": platform.python_version(),
        **_manifest_facts(predictions / "manifest.json"),
    }
    if run_dir is not None and (run_dir / "environment.json").exists():
        trained = json.loads((run_dir / "environment.json").read_text())
        facts["trained with"] = (
            f"commit {trained['git_commit']}, {trained['processes']} processes, {trained['device']}"
        )
    entries = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{entries}</dl>"


def _manifest_facts(path: Path) -> dict[str, str]:
    """What the synthesis said of itself: weights, their hash, settings."""
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    return {
        k: json.dumps(v) if isinstance(v, dict | list) else str(v)
        for k, v in values.items()
        if k not in ("cases", "outputs", "results", "workers")
    }
