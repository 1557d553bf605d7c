"""Compare slice-wise and volume-wise networks on real cases, each trained for the same CPU seconds.

    python benchmarks/compare_volumes.py CASES --out DIR [--seconds 250] [--folds 3] [--fold 0]

| row | network |
|---|---|
| slices | configs/laptop_axial.yaml, slice by slice |
| 2.5-D | the same with `generator.context=1` |
| 3-D | configs/volume_laptop.yaml |
| refiner | configs/laptop_axial.yaml for half of the seconds, and configs/refiner_laptop.yaml for the other half |

The refiner is trained on volumes of `brasyn cross-fit` (two folds of the training cases, as many updates as its
first stage has); the seconds of these trainings are not counted. Each modality of the held-out cases is
synthesised from the other three. Scores: those of `brasyn evaluate`, and the inconsistency between neighbouring
axial slices (`inconsistency`). DIR/table.md has the table, DIR/CASE.png pictures in a coronal plane. The same
command again continues.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compare_networks import difference, synthesise_all, update_for
from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.cross_validate import link, split_into_folds
from brasyn_dist.cli.subprocesses import brasyn, call, environment
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import RunConfig, load_config
from brasyn_dist.data.nifti import read_case, read_volume
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.evaluation.tables import read_table
from brasyn_dist.inference.ensemble import load_ensemble, load_inference
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.task import Task
from brasyn_dist.training.volume_task import VolumeTask

ROWS = ("slices", "2.5-D", "3-D", "refiner")
SCORES = {
    "mae/brain": "MAE", "psnr/brain": "PSNR, dB", "matched_psnr/brain": "matched PSNR, dB",
    "ssim/healthy": "SSIM, healthy", "ssim/tumour": "SSIM, tumour",
}  # fmt: skip
GRADIENTS = {"through": "inconsistency", "matched": "matched inconsistency", "in_plane": "in plane"}
AXIS = {"through": 2, "matched": 2, "in_plane": 0}


def inconsistency(synthetic: np.ndarray, real: np.ndarray, axis: int = 2, matched: bool = False) -> float:
    """Mean absolute difference of the gradients of two volumes (x, y, z) along an axis, in the brain.

    Gradients are differences of neighbouring voxels that are both in the brain (real > 0), in units of the 99.5th
    percentile of the real brain. `matched`: the synthetic volume is first scaled to the real median.
    """
    brain, real, synthetic = real > 0, real.astype(np.float64), synthetic.astype(np.float64)
    if matched:
        synthetic = synthetic * (np.median(real[brain]) / max(1.0, np.median(synthetic[brain])))
    inside = np.logical_and(*(np.take(brain, range(a, brain.shape[axis] - 1 + a), axis) for a in (0, 1)))
    difference = np.diff(synthetic - real, axis=axis)[inside]
    return float(np.abs(difference).mean() / np.percentile(real[brain], 99.5))


def train(task: Task, seconds: float, folder: Path) -> int:
    """Export the averaged network after `seconds` of CPU time, with a cosine schedule over that time; updates."""
    config = task.config
    group = SingleProcess(config.runtime)
    data = task.open_data(group)
    task.check(data)
    state = task.build_state(group, data.modality_set)
    step = task.build_step(group, state, data.preprocessing.normaliser(group.device))
    update_for(seconds, config, data, step, state)
    task.export(state.network, folder, data, state.step)
    return state.step


class Fold:
    """One fold: its folders, and what has to be done once for all rows."""

    def __init__(
        self, options: argparse.Namespace, number: int, cases: list[Any], held_out: list[Any]
    ) -> None:
        self.options, self.held_out = options, held_out
        self.root = options.out / f"fold-{number}"
        self.root.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.root / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
        self.unseen = link(held_out, self.root / "unseen")
        self.training = link([c for c in cases if c not in held_out], self.root / "training")
        self.shard(options.cases, "shards", "--views", "axial", "--split", self.root / "held_out.txt")

    def shard(self, cases: Path, name: str, *more: str | Path) -> None:
        minimum = str(self.options.minimum_foreground)
        words = ["shard", cases, "--out", self.root / name, "--chunks", "32", "--minimum-foreground", minimum]
        call(brasyn(*words, *more))

    def task(self, config: str, shards: str, *more: str) -> Task:
        seed = self.options.seed
        words = [f"seed={seed}", f"order.seed={seed}", f"data.shards={self.root / shards}", *more]
        words += self.options.volume if config.endswith("_laptop") else self.options.slices
        chosen = load_config(find_resource("configs", config), [*words, *self.options.overrides], RunConfig)
        return VolumeTask(chosen) if config.endswith("_laptop") else GanTask(chosen)  # type: ignore[arg-type]

    def train(self, row: str, folder: Path) -> dict[str, int]:
        """Networks of a row in `folder`; numbers of updates."""
        seconds = self.options.seconds
        if row == "slices":
            return {"updates": train(self.task("laptop_axial", "shards"), seconds, folder / "weights")}
        if row == "2.5-D":
            task = self.task("laptop_axial", "shards", "generator.context=1")
            return {"updates": train(task, seconds, folder / "weights")}
        if row == "3-D":
            task = self.task("volume_laptop", "shards", "order.availability=three")
            return {"updates": train(task, seconds, folder / "weights")}
        first = self.root / "first-stage.json"
        if not first.exists():
            updates = train(self.task("laptop_axial", "shards"), seconds / 2, folder / "weights")
            write_json(first, {"updates": updates})
        updates = json.loads(first.read_text())["updates"]
        made = self.root / "cross-fit"
        call(
            brasyn(
                "cross-fit", self.training, "--out", made, "--config", "laptop_axial", "--folds", "2",
                "--minimum-foreground", str(self.options.minimum_foreground), f"training.max_steps={updates}",
                "runtime.threads=1", *self.options.slices, *self.options.overrides,
            )
        )  # fmt: skip
        self.shard(self.training, "shards-stage1", "--no-slices", "--stage1", made / "predictions",
                   "--validation-fraction", "0")  # fmt: skip
        task = self.task("refiner_laptop", "shards-stage1", "order.availability=three")
        return {"updates": updates, "refiner_updates": train(task, seconds / 2, folder / "refiner")}

    def synthesise(self, folder: Path, refiner: bool) -> float:
        """Each modality of each held-out case from the other three; CPU seconds for each volume."""
        precision = self.task("laptop_axial", "shards").config.runtime.precision
        config = load_inference(folder / "weights", refiner=folder / "refiner" if refiner else None)
        ensemble = load_ensemble(config, torch.device("cpu"), None, precision)
        return synthesise_all(
            ensemble.members,
            self.held_out,
            folder / "predictions",
            options=ensemble.options,
            refiner=ensemble.refiner,
        )

    def peak_gib(self, folder: Path, refiner: bool) -> float:
        """Peak memory of `brasyn infer` for one volume of one case, one thread."""
        case = link(self.held_out[:1], self.root / "one")
        more: list[str | Path] = ["--refiner", folder / "refiner"] if refiner else []
        command = brasyn("infer", "--weights", folder / "weights", *more, "--input", case, "--output",
                         folder / "one", "--modality", MODALITIES[0], "--overwrite")  # fmt: skip
        process = subprocess.Popen(command, env={**environment(), "OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{command}: status {status}")
        return usage.ru_maxrss / 2**20

    def run(self, row: str) -> None:
        """Train, synthesise and evaluate one row, unless it is done."""
        folder = self.root / row.replace(" ", "-")
        if (folder / "result.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        trained = folder / "trained.json"
        if not trained.exists():
            write_json(trained, self.train(row, folder))
        refiner = row == "refiner"
        result = json.loads(trained.read_text()) | {
            "seconds_per_volume": self.synthesise(folder, refiner), "peak_gib": self.peak_gib(folder, refiner),
        }  # fmt: skip
        call(
            brasyn(
                "evaluate", "--predictions", folder / "predictions", "--references", self.unseen, "--out", folder,
                "--statistics", self.root / "shards/statistics.json", "--no-baselines",
            )
        )  # fmt: skip
        rows = []
        for case in self.held_out:
            real = read_case(case, MODALITIES)
            for target, truth in zip(real.modalities, real.images):
                made = read_volume(folder / "predictions" / f"{case.name}-{target}.nii.gz").array
                values = {k: inconsistency(made, truth, AXIS[k], k != "through") for k in GRADIENTS}
                rows.append({"case": case.name, "modality": target, **values})
        pd.DataFrame(rows).to_csv(folder / "gradients.csv", index=False)
        write_json(folder / "result.json", result)


def report(options: argparse.Namespace) -> str:
    """Markdown: means over subjects for all targets and for each; updates, seconds and memory."""
    tables, results = [], []
    for path in sorted(options.out.glob("fold-*/*/result.json")):
        row = path.parent.name
        scores = read_table(path.parent)
        scores = scores[scores.method == "synthetic"][["case", "modality", *SCORES]]
        tables.append(
            scores.merge(pd.read_csv(path.parent / "gradients.csv"), on=["case", "modality"]).assign(row=row)
        )
        results.append({"row": row, **json.loads(path.read_text())})
    table, lines, columns = pd.concat(tables), [], SCORES | GRADIENTS
    for target in ("all", *MODALITIES):
        chosen = table if target == "all" else table[table.modality == target]
        by_case = chosen.groupby(["row", "case"])[list(columns)].mean()
        rows = [name for name in ROWS if name in by_case.index]
        lines += ["", f"{target}:", "", "| network | " + " | ".join(columns.values()) + " |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for row in rows:
            means = by_case.loc[[row]].mean()
            lines.append(f"| {row} | " + " | ".join(f"{means[c]:.4g}" for c in columns) + " |")
        for row in rows[1:]:
            cells = [difference(by_case.loc[rows[0]][c], by_case.loc[row][c]) for c in columns]
            lines.append(f"| {rows[0]} - {row} | " + " | ".join(cells) + " |")
    lines += ["", "| network | updates | CPU seconds a volume | peak memory, GiB |", "|---|---|---|---|"]
    for row in ROWS:
        own = [r for r in results if r["row"] == row]
        if own:
            updates = " + ".join(
                f"{np.mean([r[k] for r in own]):.0f}" for k in ("updates", "refiner_updates") if k in own[0]
            )
            seconds, peak = (np.mean([r[k] for r in own]) for k in ("seconds_per_volume", "peak_gib"))
            lines.append(f"| {row} | {updates} | {seconds:.1f} | {peak:.2f} |")
    return "\n".join(lines) + "\n"


def picture(options: argparse.Namespace, case: Any, axis: int = 1) -> Path:
    """DIR/CASE.png: a coronal plane through the largest tumour, for each target the real volume and each row.

    The synthetic volumes are scaled to the median of the real one.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    volumes = read_case(case, MODALITIES)
    labels = volumes.labels
    others = tuple(a for a in range(3) if a != axis)
    index = (
        volumes.images.shape[1 + axis] // 2 if labels is None else int(np.argmax((labels > 0).sum(others)))
    )
    folders = {
        r: next(iter(options.out.glob(f"fold-*/{r}/predictions/{case.name}-t1c.nii.gz")), None) for r in ROWS
    }
    shown = {row: path.parent for row, path in folders.items() if path is not None}
    figure, axes = plt.subplots(
        4, 1 + len(shown), figsize=(3 * (1 + len(shown)), 2.6 * 4), layout="constrained"
    )
    for line, target, real in zip(axes, volumes.modalities, volumes.images.astype(np.float64)):
        brain = real > 0
        panels = {f"real {target}": real}
        for row, folder in shown.items():
            made = read_volume(folder / f"{case.name}-{target}.nii.gz").array.astype(np.float64)
            panels[row] = made * (np.median(real[brain]) / max(1.0, np.median(made[brain])))
        for ax, (name, volume) in zip(line, panels.items()):
            ax.imshow(
                np.take(volume, index, axis).T[::-1],
                cmap="gray",
                vmin=0,
                vmax=np.percentile(real[brain], 99.7),
            )
            ax.set_title(name, fontsize=9)
            ax.axis("off")
    path = options.out / f"{case.name}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=250, help="CPU seconds of each row's training")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold", type=int, nargs="*", help="only these folds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--minimum-foreground", type=int, default=2000, help="as of `brasyn shard`")
    for name, what in (("set", "all"), ("set-slices", "the slice-wise"), ("set-volume", "the volume-wise")):
        target = {"set": "overrides", "set-slices": "slices", "set-volume": "volume"}[name]
        parser.add_argument(
            f"--{name}", dest=target, nargs="*", default=[], help=f"options of {what} trainings"
        )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = find_cases(options.cases)
    for number, held_out in enumerate(split_into_folds(cases, options.folds, seed=0)):
        if options.fold is not None and number not in options.fold:
            continue
        fold = Fold(options, number, list(cases), list(held_out))
        for row in options.rows:
            fold.run(row)
            atomic_write_text(options.out / "table.md", text := report(options))
        for case in held_out:
            print(picture(options, case))
    print(text)


if __name__ == "__main__":
    main()
