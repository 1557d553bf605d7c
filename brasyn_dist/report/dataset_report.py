"""Report of a data set inspection: inspection.html, pictures, tables (data/qc measures and finds)."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import MODALITIES, MODALITY_NAMES
from brasyn_dist.common.files import atomic_path, atomic_write_text, write_json
from brasyn_dist.data.qc.anomalies import OUTLIER_FACTS, Finding, summary_counts, to_json
from brasyn_dist.data.qc.measurements import LOG_EDGES, UNIT_EDGES, CaseFacts

SHOWN = 16
"""Cases in cases.png: those with most kinds of findings first."""
_COLOURS = ("#1f5fa8", "#b5651d", "#2e7d32", "#7b1fa2", "#b3261e", "#455a64")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;margin:0 auto;max-width:1180px;padding:1rem}
h1{font-size:1.6rem;margin:.3rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid #d7dce3}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}th,td{padding:.2rem .6rem;text-align:left;
border-bottom:1px solid #e6e9ee;vertical-align:top}td.n{text-align:right}img{max-width:100%;height:auto}.note{color:#55606e}
"""


def write_dataset_report(out: Path, facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> None:
    """Write all files of an inspection to `out`; at least one case must be readable."""
    readable = [f for f in facts if f.modalities]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "inspection.json", to_json(facts, findings))
    atomic_write_text(out / "cases.csv", cases_csv(readable))
    picture(out / "histograms.png", 13, 13, lambda f: draw_histograms(f, readable))
    picture(out / "spread.png", 13, 11, lambda f: draw_spread(f, readable))
    shown = most_remarkable(readable, findings)
    picture(out / "cases.png", 13, 1.75 * len(shown) + 0.3, lambda f: draw_cases(f, shown, findings))
    atomic_write_text(out / "inspection.html", page(facts, findings, len(shown)))


def most_remarkable(facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> list[CaseFacts]:
    """At most SHOWN cases, those with most different findings first."""

    def remarkable(f: CaseFacts) -> int:
        return len({(x.kind, x.modality) for x in findings if x.case == f.case.name})

    return sorted(facts, key=remarkable, reverse=True)[:SHOWN]


def text_summary(facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> str:
    readable = sum(bool(f.modalities) for f in facts)
    lines = [
        f"{len(facts)} cases, {readable} readable; findings by kind (cases): "
        + (", ".join(f"{k} {n}" for k, n in summary_counts(findings).items()) or "none")
    ]
    lines += [f"{f.kind:<13} {f.case:<24} {f.modality:<4} {f.detail}" for f in findings]
    return "\n".join(lines)


def cases_csv(facts: Sequence[CaseFacts]) -> str:
    """One line for each case and modality."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [
        k for k in next(iter(facts[0].modalities.values())).to_dict() if k not in ("ends", "absent", "sha256")
    ]
    writer.writerow(["case", "cohort", "modality", "brain_voxels", *columns, "largest_end"])
    for f in facts:
        for modality, m in f.modalities.items():
            values = m.to_dict()
            cells = [values[c] if not isinstance(values[c], float) else f"{values[c]:.6g}" for c in columns]
            end = f"{max(m.ends.values()):.4g}"
            writer.writerow([f.case.name, f.case.cohort, modality, f.brain_voxels, *cells, end])
    return text.getvalue()


def picture(path: Path, width: float, height: float, draw: Callable[[Any], None]) -> None:
    """A PNG file of what `draw` puts on a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def colours(facts: Sequence[CaseFacts]) -> dict[str, str]:
    """By cohort."""
    cohorts = sorted({f.case.cohort for f in facts})
    return {c: _COLOURS[i % len(_COLOURS)] for i, c in enumerate(cohorts)}


def draw_histograms(figure: Any, facts: Sequence[CaseFacts]) -> None:
    """A row for each modality: intensities as they are, and over the volume's own 99.5th percentile; a line for each case."""
    axes = figure.subplots(len(MODALITIES), 2)
    palette = colours(facts)
    for row, modality in zip(axes, MODALITIES):
        for axis, edges, name in zip(row, (LOG_EDGES, UNIT_EDGES), ("log_counts", "unit_counts")):
            some = [f for f in facts if modality in f.modalities]
            # Share of the voxels per unit of the drawn axis, so that every curve encloses the same area.
            widths = np.diff(np.log10(edges) if name == "log_counts" else edges)
            middles = (
                np.sqrt(edges[1:] * edges[:-1]) if name == "log_counts" else (edges[1:] + edges[:-1]) / 2
            )
            curves = []
            for f in some:
                counts = getattr(f.modalities[modality], name)
                curves.append(counts / max(1, counts.sum()) / widths)
                axis.plot(
                    middles,
                    curves[-1],
                    lw=0.8,
                    alpha=max(0.12, min(0.8, 8 / len(some))),
                    color=palette[f.case.cohort],
                )
            if curves:
                axis.plot(middles, np.median(curves, axis=0), lw=2, color="black")
            axis.set_xlim(*((1, 32768) if name == "log_counts" else (0, 1.25)))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        row[0].set_xscale("log")
        row[0].set(ylabel=MODALITY_NAMES[modality])
    axes[0, 0].set_title("foreground intensities, as stored")
    axes[0, 1].set_title("over the volume's 99.5th percentile")
    axes[-1, 0].set_xlabel("intensity")
    handles = [axes[0, 1].plot([], [], color=c, label=n)[0] for n, c in palette.items()]
    handles += axes[0, 1].plot([], [], lw=2, color="black", label="median of the cases")
    axes[0, 1].legend(handles=handles, fontsize=8, frameon=False)


def draw_spread(figure: Any, facts: Sequence[CaseFacts]) -> None:
    """A row for each fact that outliers are sought in, a column of points for each modality; the extremes by name."""
    axes = figure.subplots(len(OUTLIER_FACTS), 1)
    palette = colours(facts)
    for axis, name in zip(axes, OUTLIER_FACTS):
        for x, modality in enumerate(MODALITIES):
            some = [f for f in facts if modality in f.modalities]
            values = np.array([float(getattr(f.modalities[modality], name)) for f in some])
            places = x + np.linspace(-0.18, 0.18, len(some))
            axis.scatter(places, values, s=14, alpha=0.7, c=[palette[f.case.cohort] for f in some])
            if len(some) > 2:
                for i in {int(values.argmin()), int(values.argmax())}:
                    axis.annotate(
                        some[i].case.name,
                        (places[i], values[i]),
                        fontsize=6,
                        xytext=(4, 2),
                        textcoords="offset points",
                    )
        axis.set_xticks(range(len(MODALITIES)), MODALITIES)
        axis.set_xlim(-0.4, len(MODALITIES) - 0.4)
        axis.set_yscale("log")
        axis.set_ylabel(name)
        axis.grid(axis="y", alpha=0.3)


def draw_cases(figure: Any, facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> None:
    """A row for each case: axial and sagittal pictures of each modality, findings as text above."""
    axes = figure.subplots(len(facts), 2 * len(MODALITIES), squeeze=False)
    for row, f in zip(axes, facts):
        for axis in row:
            axis.axis("off")
        for name, pair in zip(f.modalities, f.thumbnails):
            first = 2 * MODALITIES.index(name)
            concerned = sorted({x.kind for x in findings if (x.case, x.modality) == (f.case.name, name)})
            for axis, tile, view in zip(row[first : first + 2], pair, ("axial", "sagittal")):
                # LPS: front and top up, as in panels.upright.
                axis.imshow(tile.T if view == "axial" else tile.T[::-1], cmap="gray", vmin=0, vmax=255)
            row[first].set_title(
                f"{name}: {', '.join(concerned)}" if concerned else name, fontsize=6.5, loc="left"
            )
        row[0].text(
            -0.06,
            0.5,
            f.case.name,
            fontsize=6.5,
            rotation=90,
            ha="right",
            va="center",
            transform=row[0].transAxes,
        )


def page(facts: Sequence[CaseFacts], findings: Sequence[Finding], shown: int) -> str:
    """inspection.html; the pictures lie beside it."""
    readable = [f for f in facts if f.modalities]
    cohorts = sorted({f.case.cohort for f in facts})
    counted = ", ".join(f"{sum(f.case.cohort == c for f in facts)} {html.escape(c)}" for c in cohorts)
    counts = "".join(
        f"<tr><td>{k}</td><td class=n>{n}</td></tr>" for k, n in summary_counts(findings).items()
    )
    listed = "".join(
        f"<tr><td>{f.kind}</td><td>{html.escape(f.case)}</td><td>{f.modality}</td><td>{html.escape(f.detail)}</td></tr>"
        for f in findings
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Data set inspection</title>'
        f"<style>{_STYLE}</style></head><body><h1>Data set inspection</h1>"
        f'<p class="note">{len(facts)} cases ({counted}), {len(readable)} readable. Findings are hints for the eye.</p>'
        f"<h2>Findings by kind</h2><table><tr><th>kind</th><th>cases</th></tr>{counts}</table>"
        "<h2>Intensities</h2>"
        '<p class="note">Foreground only. Each line is a case, each colour a cohort, black the median of the cases.</p>'
        '<img src="histograms.png" alt="histograms of the intensities by modality">'
        '<h2>Spread</h2><p class="note">Voxels: foreground. Roughness: mean Laplacian over the standard deviation, high is noisy, '
        "low is blurred. Anisotropy: differences of neighbours along the axes, high is thick slices.</p>"
        '<img src="spread.png" alt="spread of volume statistics by modality">'
        f'<h2>Cases</h2><p class="note">The {shown} with most findings; axial and sagittal, each from 0 to its own 99.5th '
        'percentile.</p><div class="scroll"><img src="cases.png" alt="slices of cases with findings"></div>'
        '<h2>All findings</h2><div class="scroll"><table><tr><th>kind</th><th>case</th><th>modality</th><th>finding</th></tr>'
        f"{listed}</table></div><h2>Cases in numbers</h2>{case_table(readable)}</body></html>\n"
    )


def case_table(facts: Sequence[CaseFacts]) -> str:
    heads = ("case", "cohort", "brain, ml", "NETC", "ED", "ET", *(f"{m} median / 99.5 %" for m in MODALITIES))
    rows = []
    for f in facts:
        labels = list(f.labels.values()) if f.labels else ["-", "-", "-"]
        ml = f.brain_voxels * float(np.prod(f.spacing_mm)) / 1000
        cells = [f"{ml:.0f}", *map(str, labels)]
        for m in MODALITIES:
            known = f.modalities.get(m)
            cells.append(f"{known.median:.0f} / {known.p995:.0f}" if known else "-")
        numbers = "".join(f"<td class=n>{c}</td>" for c in cells)
        rows.append(
            f"<tr><td>{html.escape(f.case.name)}</td><td>{html.escape(f.case.cohort)}</td>{numbers}</tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
