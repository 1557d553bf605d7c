"""Guidance by segmentation: which term of the objective helps a segmenter that the generator never saw.

    python benchmarks/guidance.py CASES --out DIR [--folds 4] [--only-folds 0 1] [--steps 3000] ...

For each fold of the patients: shards of the other cases; two segmenters (the guide, and a judge with other
initial weights and another order of slices); one generator without guidance; from it, as R6 starts from R3,
one generator for each term, and `none` for as many updates; synthesis of each modality of the held-out
cases; scores with the judge's segmentations of the completed cases. `real` is the judge on the complete real
cases. DIR/guidance.md compares the terms with `none` on the same volumes. The same command again continues.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from brasyn_dist.brats import MODALITIES, Case, find_cases, prediction_name  # noqa: E402
from brasyn_dist.cli.cross_validate import link, split_into_folds  # noqa: E402
from brasyn_dist.cli.subprocesses import brasyn, call, title  # noqa: E402
from brasyn_dist.common.files import atomic_link, atomic_write_text  # noqa: E402
from brasyn_dist.evaluation.scoring import SYNTHETIC  # noqa: E402
from brasyn_dist.evaluation.tables import mean_of, number, read_table  # noqa: E402

NONE, REAL = "none", "real"
TERMS = ("tversky", "segmenter_features", "auxiliary_segmentation")
DICE = ("dice/ET", "dice/TC", "dice/WT")
SCORES = (*DICE, "ssim/healthy", "ssim/tumour", "matched_psnr/brain")


def main() -> None:
    """All folds, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--only-folds", type=int, nargs="+", help="some folds, from 0; default: all")
    parser.add_argument("--steps", type=int, default=3000, help="updates of the generator without guidance")
    parser.add_argument("--term-steps", type=int, default=1500, help="updates of each term after these")
    parser.add_argument("--segmenter-steps", type=int, default=2000)
    parser.add_argument("--targets", nargs="+", default=MODALITIES, help="modalities to synthesise")
    parser.add_argument("--weight", type=float, default=0.5, help="weight of each term")
    parser.add_argument("--minimum-foreground", default="2000", help="as of brasyn shard")
    parser.add_argument("--set", nargs="*", default=[], help="options of the generators, section.key=value")
    parser.add_argument("--set-segmenter", nargs="*", default=[], help="options of the segmenters")
    options = parser.parse_args()
    cases = [c for c in find_cases(options.cases) if "seg" in c.files and not c.missing]
    folds = split_into_folds(cases, options.folds, seed=0)
    for number_ in options.only_folds or range(len(folds)):
        run_fold(options, cases, folds[number_], options.out / f"fold-{number_}")
    text = table(options.out)
    atomic_write_text(options.out / "guidance.md", text)
    print(text)


def run_fold(options: argparse.Namespace, cases: Sequence[Case], held_out: Sequence[Case], out: Path) -> None:
    """All stages of one fold; each stage skips what is complete."""
    unseen, shards = link(held_out, out / "unseen"), out / "shards"
    atomic_write_text(out / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
    call(
        brasyn("shard", link(cases, options.out / "cases"), "--out", shards, "--split", out / "held_out.txt",
               "--views", "axial", "--minimum-foreground", options.minimum_foreground)
    )  # fmt: skip

    def train(config: str, name: str, steps: int, *more: str) -> None:
        call(
            brasyn("train", "--config", config, f"data.shards={shards}", f"runs_dir={out}", f"name={name}",
                   f"training.max_steps={steps}", *more)
        )  # fmt: skip

    def evaluate(name: str, predictions: Path) -> None:
        call(
            brasyn("evaluate", "--predictions", predictions, "--references", unseen, "--no-baselines",
                   "--out", out / f"evaluation-{name}", "--segmenter", out / "judge")
        )  # fmt: skip

    title(f"{out.name}: segmenters; {', '.join(c.name for c in held_out)} left out")
    for name, seed in (("guide", 0), ("judge", 1)):
        train("segmenter", name, options.segmenter_steps, f"seed={seed}", f"order.seed={seed}",
              "data.views=[axial]", "data.normalisation=case", "segmenter.image_size=[160,208]",
              "segmenter.widths=[16,32,64,128]", "training.global_batch_size=8",
              "optimizer.reference_batch=8", "validation.every_steps=0", *options.set_segmenter)  # fmt: skip
    real = out / "predictions-real"  # the completed case is the real one, whichever file is replaced
    real.mkdir(exist_ok=True)
    for case in held_out:
        atomic_link(real / prediction_name(case.name, MODALITIES[0]), case.files[MODALITIES[0]])
    evaluate(REAL, real)
    title(f"{out.name}: generator without guidance")
    train("laptop_axial", "start", options.steps, *options.set)
    for name in (NONE, *TERMS):
        title(f"{out.name}: {name}")
        guided = [f"objective.{name}={options.weight}"] if name != NONE else []
        head = f"generator.segmentation_head={str(name == 'auxiliary_segmentation').lower()}"
        train("laptop_axial", name, options.term_steps, f"checkpoint.init_from={out / 'start'}",
              f"objective.segmenter={out / 'guide'}", *options.set, *guided, head)  # fmt: skip
        predictions = out / f"predictions-{name}"
        for modality in options.targets:
            call(
                brasyn("infer", "--weights", out / name, "--input", unseen, "--output", predictions,
                       "--modality", modality)
            )  # fmt: skip
        evaluate(name, predictions)


def table(out: Path) -> str:
    """Means of each term, and their differences from `none` on the same volumes, with intervals over cases."""
    scores = {name: scores_of(out, name) for name in (REAL, NONE, *TERMS)}
    lines = [["term", "cases", *SCORES], ["---"] * (2 + len(SCORES))]
    for name, found in scores.items():
        columns = DICE if name == REAL else SCORES
        means = [number(mean_of(found[s].groupby("case").mean())) for s in columns]
        cases = found.index.unique("case")
        lines.append([name, str(len(cases)), *means, *[""] * (len(SCORES) - len(columns))])
    for name in TERMS:
        gains = (scores[name] - scores[NONE])[[*SCORES]].groupby("case").mean()
        lines.append([f"{name} - none", str(len(gains)), *(number(mean_of(gains[s])) for s in SCORES)])
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{rows}\n± half of the 95 % interval over cases (means over the synthetic modalities).\n"


def scores_of(out: Path, name: str) -> pd.DataFrame:
    """Scores of all folds by (case, modality)."""
    rows = pd.concat([read_table(path) for path in sorted(out.glob(f"fold-*/evaluation-{name}"))])
    return rows[rows.method == SYNTHETIC].set_index(["case", "modality"]).select_dtypes("number")


if __name__ == "__main__":
    main()
