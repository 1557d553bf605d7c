"""SSIM of noise by the challenge's convention: the flaw shown in appendix A of the thesis, on any cases.

    python benchmarks/ssim_background.py --out results/ [--cases COMPLETE_CASES]

The tumour of each real volume is replaced: by uniform noise over the volume's range, by one constant, by
other voxels of the tumour (shuffled). None of this is a synthesis. Both scores are computed as
`brasyn evaluate` does: by the challenge's convention all but the tumour is set to 0 and the mean runs
over the whole volume, of which the tumour is a hundredth; in the region form the mean runs over the
tumour's voxels. Without --cases, phantoms. Writes ssim_background.json and .png. Exit status 1 unless, on
the mean of the cases and for every modality, noise scores above 98 by the convention and below 50 in the
region form (of 100). Single cases with tumours of more than 2 % of the volume come out at 97.5 or more.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.brats import MODALITIES, MODALITY_NAMES, VOLUME_SHAPE, find_cases
from brasyn_dist.common.files import atomic_path, write_json
from brasyn_dist.common.panels import upright
from brasyn_dist.data.nifti import read_case
from brasyn_dist.evaluation.image_metrics import (
    RADIUS,
    bounding_box,
    challenge_ssim,
    regions_of,
    scale_to_unit,
    ssim_map,
)

CLAIM = {"challenge": 0.98, "region": 0.50}
"""On the mean of the cases, noise scores above the first by the convention and below the second in the
region form."""
Spoil = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]


class Subject(NamedTuple):
    name: str
    images: np.ndarray
    """(4, x, y, z) integers."""
    labels: np.ndarray
    """(x, y, z), above 0 in the tumour."""


def noise(rng: np.random.Generator, tumour: np.ndarray, high: int) -> np.ndarray:
    return rng.integers(1, high + 1, tumour.shape)


def constant(rng: np.random.Generator, tumour: np.ndarray, high: int) -> np.ndarray:
    return np.full_like(tumour, round(float(tumour.mean())))


def shuffled(rng: np.random.Generator, tumour: np.ndarray, high: int) -> np.ndarray:
    return rng.permutation(tumour)


SPOILS: dict[str, Spoil] = {"noise": noise, "constant": constant, "shuffled": shuffled}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, help="folder of complete cases with segmentations")
    parser.add_argument("--phantoms", type=int, default=2, help="without --cases: so many (default 2)")
    parser.add_argument("--shape", type=int, nargs=3, default=VOLUME_SHAPE, help="of the phantoms")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for subject in subjects(options):
        rng = np.random.default_rng(options.seed)
        for modality, real in zip(MODALITIES, subject.images):
            measured = [measure(subject, modality, real, spoil, rng) for spoil in SPOILS]
            rows += [row for row, _ in measured]
            shown.append(measured[0][1])
    write_json(options.out / "ssim_background.json", {"seed": options.seed, "rows": rows})
    plot(options.out / "ssim_background.png", rows, diverse(shown))
    print(table(rows))
    return 0 if holds(rows) else 1


def diverse(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One picture for each modality, of as many subjects as there are."""
    names = list(dict.fromkeys(p["row"]["case"] for p in pictures))
    wanted = {(names[i % len(names)], m) for i, m in enumerate(MODALITIES)}
    return [p for p in pictures if (p["row"]["case"], p["row"]["modality"]) in wanted]


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """Complete cases with a tumour."""
    if options.cases is None:
        from brasyn_dist.phantom import make_case

        for seed in range(options.phantoms):
            images, labels = make_case(options.seed + seed, "GLI", options.shape)
            yield Subject(f"phantom {seed}", np.stack([images[m] for m in MODALITIES]), labels)
        return
    for case in find_cases(options.cases):
        if "seg" in case.files and not case.missing:
            volumes = read_case(case)
            assert volumes.labels is not None
            yield Subject(case.name, volumes.images, volumes.labels)


def measure(
    subject: Subject, modality: str, real: np.ndarray, spoil: str, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row of the table, what its picture needs)."""
    regions = regions_of(real, subject.labels)
    tumour = regions.tumour
    assert tumour is not None and tumour.any(), f"{subject.name}: no tumour"
    spoilt = real.copy()
    spoilt[tumour] = SPOILS[spoil](rng, real[tumour], int(np.percentile(real[regions.brain], 99.5)))
    x, y = (scale_to_unit(v) for v in (spoilt, real))
    inside = bounding_box(tumour, RADIUS)
    full = ssim_map((x * regions.brain)[inside], (y * regions.brain)[inside], 1.0)
    row = {
        "case": subject.name,
        "modality": modality,
        "tumour": spoil,
        "share_of_volume": float(tumour.mean()),
        "challenge": challenge_ssim(x, y, tumour),
        "region": float(full[tumour[inside]].mean()),
    }
    k = int(np.argmax(tumour.sum(axis=(0, 1))))
    return row, {"row": row, "real": y[:, :, k], "spoilt": x[:, :, k]}


def holds(rows: Sequence[dict[str, Any]]) -> bool:
    for modality in MODALITIES:
        noisy = [r for r in rows if (r["tumour"], r["modality"]) == ("noise", modality)]
        challenge, region = (np.mean([r[form] for r in noisy]) for form in CLAIM)
        if not (challenge > CLAIM["challenge"] and region < CLAIM["region"]):
            return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and range over cases, in percent, for each modality and replacement."""
    cases = len({r["case"] for r in rows})
    shares = [100 * r["share_of_volume"] for r in rows]
    lines = [
        f"{cases} cases; the tumour is {min(shares):.2f} to {max(shares):.2f} % of the volume; SSIM x 100",
        f"{'tumour':<11}{'modality':<10}{'challenge convention':>26}{'region form':>26}",
    ]
    for spoil in SPOILS:
        for modality in (*MODALITIES, "all"):
            some = [r for r in rows if r["tumour"] == spoil and modality in (r["modality"], "all")]
            cells = ""
            for form in CLAIM:
                values = [100 * r[form] for r in some]
                cells += f"{np.mean(values):>11.2f} ({min(values):.2f} to {max(values):.2f})".rjust(26)
            lines.append(f"{spoil:<11}{modality:<10}{cells}")
    lines.append(
        "on the mean of the cases, noise scores above 98 by the convention and below 50 in the region form: "
        + ("yes" if holds(rows) else "NO")
    )
    return "\n".join(lines)


def plot(path: Path, rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> None:
    """Slices before and after with their scores, and both scores against the tumour's share of the volume."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(shown), 9.6), layout="constrained")
    grid = figure.add_gridspec(3, len(shown), height_ratios=(1, 1, 0.9))
    for column, picture in enumerate(shown):
        row = picture["row"]
        for line, (name, title) in enumerate(
            (
                ("real", f"{row['case']}\n{MODALITY_NAMES[row['modality']]}"),
                (
                    "spoilt",
                    f"noise in the tumour\nchallenge {100 * row['challenge']:.2f}, "
                    f"region {100 * row['region']:.1f}",
                ),
            )
        ):
            axis = figure.add_subplot(grid[line, column])
            axis.imshow(upright(picture[name]), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    axis = figure.add_subplot(grid[2, :])
    for form, colour in (("challenge", "#b3261e"), ("region", "#1f5fa8")):
        for spoil, marker in zip(SPOILS, "os^"):
            points = [(100 * r["share_of_volume"], 100 * r[form]) for r in rows if r["tumour"] == spoil]
            axis.plot(*zip(*points), marker, color=colour, ms=5, alpha=0.7, label=f"{form}: {spoil}")
    axis.set(xlabel="tumour, % of the volume", ylabel="SSIM x 100", ylim=(-5, 103))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    sys.exit(main())
