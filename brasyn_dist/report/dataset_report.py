"""inspection.html: findings, intensities, distributions of volume statistics, cases, numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brasyn_dist.brats import BRATS
from brasyn_dist.data.qc.anomalies import OUTLIER_FACTS, Finding, summary_counts
from brasyn_dist.data.qc.measurements import LOG_EDGES, UNIT_EDGES, CaseFacts
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.charts import RASTERED, Chart, chart, colour
from brasyn_dist.report.rendering import SERIES, Card, Tile, write_html

SHOWN = 16
"""Cases with pictures: those with most kinds of findings first."""
RASTERED_LINES = 40
"""Number of histograms above which they are drawn as pixels."""
_WIDTH, _HEIGHT = 440, 220
"""Size of a chart in CSS pixels."""


def write_dataset_report(
    path: Path, facts: Sequence[CaseFacts], findings: Sequence[Finding], modality_set: ModalitySet = BRATS
) -> None:
    """Write the report of a data set.

    Args:
        path: The HTML file.
        facts: Measurements of all cases, at least one of them readable.
        findings: As `find_anomalies` returns them.
        modality_set: Of the cases.
    """
    readable = [f for f in facts if f.modalities]
    colours = cohort_colours(facts)
    modalities = modality_set.modalities
    cohorts = Counter(f.case.cohort for f in facts)
    concerned = {finding.case for finding in findings}
    kinds = {f.case.name: {(x.kind, x.modality) for x in findings if x.case == f.case.name} for f in readable}
    shown = sorted(readable, key=lambda f: len(kinds[f.case.name]), reverse=True)[:SHOWN]
    head, rows = numbers(readable, modality_set)
    write_html(
        path,
        "dataset.html.j2",
        title="Data set inspection",
        subtitle=", ".join(f"{count} cases in {cohort}" for cohort, count in sorted(cohorts.items())),
        cards=[
            Card("Cases", str(len(facts)), f"{len(readable)} readable"),
            Card("Cases with findings", str(len(concerned)), f"{len(findings)} findings"),
            Card("Cases with segmentation", str(sum(f.labels is not None for f in readable))),
        ],
        counts=summary_counts(findings),
        findings=[[f.kind, f.case, f.modality, f.detail] for f in findings],
        cohort_colours=colours | {"median of the cases": "ink"},
        histograms=[
            {
                "title": modality_set.title(m),
                "charts": histograms(readable, m, modality_set.title(m), colours),
            }
            for m in modalities
        ],
        distributions=[distribution(readable, name, modalities, colours) for name in OUTLIER_FACTS],
        cases=[case_tiles(f, findings, modality_set) for f in shown],
        numbers_head=head,
        numbers_rows=rows,
    )


def cohort_colours(facts: Sequence[CaseFacts]) -> dict[str, str]:
    """CSS variable of each cohort."""
    cohorts = sorted({f.case.cohort for f in facts})
    return {cohort: SERIES[number % len(SERIES)] for number, cohort in enumerate(cohorts)}


def histograms(facts: Sequence[CaseFacts], modality: str, title: str, colours: dict[str, str]) -> list[Chart]:
    """Two charts of one modality: intensities as stored, and relative to the 99.5th percentile."""
    some = [f for f in facts if modality in f.modalities]
    raster = len(some) > RASTERED_LINES

    def histogram(name: str, edges: np.ndarray, caption: str, logarithmic: bool) -> Chart:
        # Share of the voxels per unit of the drawn axis, so that all curves enclose the same area.
        widths = np.diff(np.log10(edges) if logarithmic else edges)
        middles = np.sqrt(edges[1:] * edges[:-1]) if logarithmic else (edges[1:] + edges[:-1]) / 2
        counts = [getattr(f.modalities[modality], name) for f in some]
        curves = [c / max(1, c.sum()) / widths for c in counts]

        def plot(axes: Any) -> None:
            alpha = max(0.12, min(0.8, 8 / max(1, len(some))))
            for f, curve in zip(some, curves):
                shade = colour(colours[f.case.cohort], raster)
                axes.plot(middles, curve, lw=0.8, alpha=alpha, color=shade, rasterized=raster)
            if curves:
                axes.plot(middles, np.median(curves, axis=0), lw=2, color=colour("ink"))
            axes.set_xlim(*((1, 32768) if logarithmic else (0, 1.25)))
            axes.set_ylim(bottom=0)
            if logarithmic:
                axes.set_xscale("log")

        medians = sorted(f.modalities[modality].median for f in some)
        words = f"median intensities from {medians[0]:.4g} to {medians[-1]:.4g}" if medians else "no volume"
        description = f"{title}, {len(some)} volumes, {words}"
        return chart(caption, description, plot, _WIDTH, _HEIGHT)

    return [
        histogram("log_counts", LOG_EDGES, "Intensities as stored", True),
        histogram("unit_counts", UNIT_EDGES, "Relative to the volume's 99.5th percentile", False),
    ]


def distribution(
    facts: Sequence[CaseFacts], name: str, modalities: Sequence[str], colours: dict[str, str]
) -> Chart:
    """One volume statistic, a column of points for each modality; smallest and largest value are named."""
    columns = [[f for f in facts if m in f.modalities] for m in modalities]
    values = [
        np.array([float(getattr(f.modalities[m], name)) for f in c]) for m, c in zip(modalities, columns)
    ]

    def plot(axes: Any) -> None:
        raster = sum(map(len, columns)) > RASTERED
        for x, (some, heights) in enumerate(zip(columns, values)):
            across = x + np.linspace(-0.18, 0.18, len(some))
            shades = [colour(colours[f.case.cohort], raster) for f in some]
            axes.scatter(across, heights, s=14, lw=0, alpha=0.7, c=shades, rasterized=raster)
            for i in {int(heights.argmin()), int(heights.argmax())} if len(some) > 2 else ():
                side = 1 if x < len(modalities) / 2 else -1  # towards the middle of the chart
                axes.annotate(
                    some[i].case.name,
                    (across[i], heights[i]),
                    fontsize=5.5,
                    ha="right" if side < 0 else "left",
                    xytext=(4 * side, 3),
                    textcoords="offset points",
                )
        axes.set_xticks(range(len(modalities)), modalities)
        axes.set_xlim(-0.6, len(modalities) - 0.4)
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:g}")
        axes.grid(axis="y", which="both", color=colour("line"))

    words = [
        f"{m}: {v.min():.4g} ({c[int(v.argmin())].case.name}) to "
        f"{v.max():.4g} ({c[int(v.argmax())].case.name})"
        for m, c, v in zip(modalities, columns, values)
        if len(c)
    ]
    return chart(name, "; ".join(words), plot, _WIDTH, _HEIGHT)


def case_tiles(
    facts: CaseFacts, findings: Sequence[Finding], modality_set: ModalitySet = BRATS
) -> dict[str, Any]:
    """Template values of one case: its findings, a row of axial and a row of sagittal tiles."""
    rows: list[list[Tile]] = [[], []]
    for name, pair in zip(facts.modalities, facts.thumbnails):
        for row, tile, view in zip(rows, pair, ("axial", "sagittal")):
            # LPS: front and top up, as in common/panels.py.
            image = tile.T if view == "axial" else tile.T[::-1]
            alt = f"{modality_set.title(name)} of {facts.case.name}, {view} slice"
            row.append(Tile.of(np.ascontiguousarray(image), f"{name}, {view}", alt))
    own = [f for f in findings if f.case == facts.case.name]
    texts = [f"{f.modality + ': ' if f.modality else ''}{f.kind}: {f.detail}" for f in own]
    return {"name": facts.case.name, "findings": texts, "rows": rows}


def numbers(
    facts: Sequence[CaseFacts], modality_set: ModalitySet = BRATS
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of all cases: brain volume, labelled voxels, intensities."""
    labels = list(modality_set.labels.values())
    head = [
        "case",
        "cohort",
        "brain, ml",
        *labels,
        *(f"{m} median / 99.5 %" for m in modality_set.modalities),
    ]
    rows = []
    for f in facts:
        millilitres = f.brain_voxels * float(np.prod(f.spacing_mm)) / 1000
        cells = [f.case.name, f.case.cohort, f"{millilitres:.0f}"]
        cells += [str(f.labels[n]) if f.labels else "-" for n in labels]
        for m in modality_set.modalities:
            known = f.modalities.get(m)
            cells.append(f"{known.median:.0f} / {known.p995:.0f}" if known else "-")
        rows.append(cells)
    return head, rows


def case_table_csv(facts: Sequence[CaseFacts]) -> str:
    """Text of cases.csv: one line for each case and modality."""
    left_out = ("ends", "absent", "sha256")
    rows = [
        {
            "case": f.case.name, "cohort": f.case.cohort, "modality": modality,
            "brain_voxels": f.brain_voxels,
            **{k: v for k, v in m.to_dict().items() if k not in left_out},
            "largest_end": max(m.ends.values()),
        }
        for f in facts
        for modality, m in f.modalities.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
