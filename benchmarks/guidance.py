"""Guidance by segmentation: which term of the objective helps a segmenter that the generator never saw.

    python benchmarks/guidance.py CASES --out DIR [--folds 4] [--steps 3000] [--segmenter-steps 2000]

For each fold of the patients: shards, two segmenters (the guide, and a judge with other initial weights and
another order of slices), one generator for each term, synthesis of every modality of the held-out cases, and
Dice of the judge's segmentations of the completed cases. DIR/guidance.md compares the terms with `none` on
the same volumes. The same command again continues.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from brasyn_dist.brats import MODALITIES, find_cases  # noqa: E402
from brasyn_dist.cli.cross_validate import link, split_into_folds  # noqa: E402
from brasyn_dist.cli.subprocesses import brasyn, call, title  # noqa: E402
from brasyn_dist.common.files import atomic_write_text  # noqa: E402
from brasyn_dist.evaluation.scoring import SYNTHETIC  # noqa: E402
from brasyn_dist.evaluation.tables import mean_of, number, read_table  # noqa: E402

TERMS = {
    "none": [],
    "tversky": ["objective.tversky=0.5"],
    "features": ["objective.segmenter_features=0.5"],
    "head": ["objective.auxiliary_segmentation=0.5", "generator.segmentation_head=true"],
}
SCORES = ("dice/ET", "dice/TC", "dice/WT", "nsd/WT", "psnr/brain", "ssim/healthy", "ssim/tumour")


def main() -> None:
    """All folds, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3000, help="updates of each generator")
    parser.add_argument("--segmenter-steps", type=int, default=2000)
    options = parser.parse_args()
    cases = [c for c in find_cases(options.cases) if "seg" in c.files and not c.missing]
    for number_, held_out in enumerate(split_into_folds(cases, options.folds, seed=0)):
        run_fold(options, link(cases, options.out / "cases"), held_out, options.out / f"fold-{number_}")
    text = table(options.out)
    atomic_write_text(options.out / "guidance.md", text)
    print(text)


def run_fold(options: argparse.Namespace, cases: Path, held_out: list, out: Path) -> None:
    """All stages of one fold; finished evaluations are not repeated."""
    unseen, shards = link(held_out, out / "unseen"), out / "shards"
    atomic_write_text(out / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
    call(brasyn("shard", cases, "--out", shards, "--split", out / "held_out.txt", "--views", "axial"))
    common = (f"data.shards={shards}", f"runs_dir={out}", "data.views=[axial]", "data.cohorts=[]")
    for name, seed in (("guide", 0), ("judge", 1)):
        call(
            brasyn("train", "--config", "segmenter", *common, f"name={name}", f"seed={seed}",
                   f"order.seed={seed}", "data.normalisation=case", "segmenter.image_size=[160,208]",
                   "segmenter.widths=[16,32,64,128]", "training.global_batch_size=8",
                   "optimizer.reference_batch=8", f"training.max_steps={options.segmenter_steps}",
                   "validation.every_steps=0")
        )  # fmt: skip
    for name, changed in TERMS.items():
        evaluation = out / f"evaluation-{name}"
        if (evaluation / "summary.json").exists():
            continue
        title(f"{out.name}, {name}")
        call(
            brasyn("train", "--config", "laptop", *common, f"name={name}",
                   f"training.max_steps={options.steps}", f"objective.segmenter={out / 'guide'}", *changed)
        )  # fmt: skip
        predictions = out / f"predictions-{name}"
        for modality in MODALITIES:
            call(
                brasyn("infer", "--weights", out / name, "--input", unseen, "--output", predictions,
                       "--modality", modality)
            )  # fmt: skip
        call(
            brasyn("evaluate", "--predictions", predictions, "--references", unseen, "--out", evaluation,
                   "--no-baselines", "--segmenter", out / "judge")
        )  # fmt: skip


def table(out: Path) -> str:
    """Means of each term, and their differences from `none` on the same volumes, with intervals over cases."""
    scores = {name: scores_of(out, name) for name in TERMS}
    lines = [["term", "volumes", *SCORES, *(f"{s} - none" for s in SCORES)]]
    for name, found in scores.items():
        means = [number(mean_of(found[s].groupby("case").mean())) for s in SCORES]
        differences = [
            "" if name == "none" else number(mean_of((found[s] - scores["none"][s]).groupby("case").mean()))
            for s in SCORES
        ]
        lines.append([name, str(len(found)), *means, *differences])
    lines.insert(1, ["---"] * len(lines[0]))
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{rows}\n± half of the 95 % interval over cases (means over the four synthetic modalities).\n"


def scores_of(out: Path, name: str) -> pd.DataFrame:
    """Scores of all folds by (case, modality)."""
    rows = pd.concat([read_table(path) for path in sorted(out.glob(f"fold-*/evaluation-{name}"))])
    return rows[rows.method == SYNTHETIC].set_index(["case", "modality"])


if __name__ == "__main__":
    main()
