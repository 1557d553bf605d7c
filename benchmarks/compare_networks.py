"""Compare networks on real cases: every network is trained for the same CPU seconds, in folds over the cases.

    python benchmarks/compare_networks.py CASES --out DIR [--seconds 600] [--folds 3] [--seeds 0 1]

    for each fold, network and seed: train on the other cases --> synthesise each modality of the fold's cases
                                     from the other ones --> `brasyn evaluate` --> DIR/table.md

Networks: `laptop` (configs/laptop.yaml: three views, whose volumes are averaged), `axial`
(configs/laptop_axial.yaml; also scored with the mean over mirrored slices, `--tta`), `mixed` (the same, trained
with one to three available modalities, and scored with each number), `narrow` (configs/narrow.yaml) and
`textbook`, MONAI's BasicUNet on axial slices with mean absolute error only. The baselines are scored, too. Data,
normalisation, augmentation and the prediction of the missing volume's scale are the same. All volumes of a
subject are averaged before the intervals are computed: intervals are over subjects. The same command again
continues.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.cross_validate import link, split_into_folds
from brasyn_dist.cli.subprocesses import brasyn, call
from brasyn_dist.common.files import atomic_write_text, write_json
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, RunConfig, load_config
from brasyn_dist.data.nifti import read_case, read_volume, write_like
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.evaluation.tables import read_table
from brasyn_dist.inference.case_job import stored_type
from brasyn_dist.inference.synthesis import PLAIN, Member, SynthesisOptions, stack_modalities, synthesise_case
from brasyn_dist.models.conditional_unet import mean_of_available
from brasyn_dist.models.cycle_synthesis import CycleSynthesis
from brasyn_dist.models.layers import seeded_initialisation
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.normalisation import mask_missing
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.network_setup import adam, move_to_device
from brasyn_dist.training.schedule import ema_decay, scaled_rate
from brasyn_dist.training.state import TrainState, average_of
from brasyn_dist.training.task import Step
from brasyn_dist.training.training_data import TrainingData, open_data

NETWORKS = ("laptop", "axial", "textbook", "mixed", "narrow")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "axial": {"axial, mirrored": {"mirror": True}},
    "mixed": {"mixed, 2 available": {"count": 2}, "mixed, 1 available": {"count": 1}},
}
"""Further syntheses by a trained network: name in the table -> arguments of `synthesise`."""
SCORES = {
    "psnr/brain": "PSNR, dB", "matched_psnr/brain": "matched PSNR, dB", "nmae/brain": "normalised MAE",
    "matched_nmae/brain": "matched nMAE", "ssim/healthy": "SSIM, healthy", "ssim/tumour": "SSIM, tumour",
}  # fmt: skip
TEXTBOOK = (
    "augmentation.crop=null",
    "objective.ssim=0",
    "objective.smooth_l1=0",
    "runtime.channels_last=false",
)
"""What the textbook training does not have of configs/laptop_axial.yaml."""


class TextbookUNet(Generator):
    """MONAI's BasicUNet: slices and one-hot target as input planes, added to the mean of the available slices."""

    def __init__(self, config: Any) -> None:
        from monai.networks.nets import BasicUNet

        super().__init__(config)
        self.unet = BasicUNet(
            2,
            2 * len(MODALITIES),
            1,
            (16, 32, 64, 128, 256, 16),
            act="swish",
            norm=("group", {"num_groups": 4}),
        )

    def forward(
        self,
        x_BMHW: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        view_B: Tensor | None = None,
        context_BNMHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = mask_missing(x_BMHW, available_BM)
        planes = F.one_hot(target_B, len(MODALITIES)).to(x.dtype)[:, :, None, None].expand_as(x)
        return self.unet(torch.cat([x, planes], dim=1)) + mean_of_available(x, available_BM), x


def network_and_config(name: str, seed: int, overrides: list[str]) -> tuple[Generator, Config]:
    """A network with its initial weights, and the options of its training."""
    more = [*overrides, f"seed={seed}", f"order.seed={seed}"]
    if name == "mixed":
        more.append("order.availability=mixed")
    file = find_resource("configs", "laptop_axial" if name in ("axial", "mixed", "textbook") else name)
    if name != "textbook":
        config = load_config(file, more)
        return build_generator(config.generator, seed), config
    config = load_config(file, [*more, *TEXTBOOK])
    with seeded_initialisation(seed, "textbook"):
        return TextbookUNet(config.generator), config


def train(network: Generator, config: Config, data: TrainingData, seconds: float) -> tuple[nn.Module, int]:
    """The averaged network after `seconds` of CPU time, with a cosine schedule over that time; and the updates."""
    group = SingleProcess(config.runtime)
    move_to_device(config, group.device, network)
    passes = CycleSynthesis(network, config.training.fast_passes, config.objective.uses_cycle)
    trainable = group.prepare(passes, adam(config, network), network)
    state = TrainState({"generator": trainable}, average_of(network))
    step = GanStep(config, group, trainable, None, data.preprocessing.normaliser(group.device))
    update_for(seconds, config, data, step, state)
    return state.network, state.step


def update_for(seconds: float, config: RunConfig, data: TrainingData, step: Step, state: TrainState) -> None:
    """Updates for `seconds` of CPU time, with a cosine schedule over that time."""
    peak = scaled_rate(config.optimizer, config.training.global_batch_size)
    begun = time.process_time()
    with data.stream(0, 10**9) as stream:
        for batch in stream:
            for update in range(config.training.updates_per_batch):
                progress = (time.process_time() - begun) / seconds
                if progress >= 1:
                    return
                warm = min(1.0, (state.step + 1) / config.optimizer.warmup_steps)
                step.update(batch, update, peak * warm * 0.5 * (1 + math.cos(math.pi * progress)))
                state.update_average(ema_decay(state.step, config.training.ema_decay))
                state.step += 1


def synthesise(
    network: Any,
    data: TrainingData,
    cases: list[Any],
    folder: Path,
    precision: Any,
    count: int = 3,
    mirror: bool = False,
) -> float:
    """`synthesise_all` with the network's views."""
    network.preprocessing = data.preprocessing
    members = [Member(view, network, Path(), "") for view in data.preprocessing.views]
    return synthesise_all(members, cases, folder, count, SynthesisOptions(None, precision, mirror))


def synthesise_all(
    members: Sequence[Member],
    cases: list[Any],
    folder: Path,
    count: int = 3,
    options: SynthesisOptions = PLAIN,
    **more: Any,
) -> float:
    """Each modality of each case from the `count` next ones (in a circle); CPU seconds for each volume."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    for case in cases:
        volumes = read_case(case, MODALITIES)
        images = stack_modalities(volumes.modalities, volumes.images)
        for target in MODALITIES:
            first = MODALITIES.index(target) + 1
            others = tuple((MODALITIES * 2)[first : first + count])
            made = synthesise_case(members, images, others, [target], options, **more)[target]
            path = folder / f"{case.name}-{target}.nii.gz"
            write_like(path, made, volumes.reference, stored_type(volumes.stored_types, made))
    return (time.process_time() - begun) / len(cases) / len(MODALITIES)


def run_one(options: argparse.Namespace, fold: int, cases: list[Any], name: str, seed: int) -> None:
    """Train, synthesise and evaluate one network on one fold, unless it is done."""
    root = options.out / f"fold-{fold}"
    folder = root / f"{name}-{seed}"
    if (folder / "result.json").exists():
        return
    network, config = network_and_config(name, seed, options.overrides)
    config = replace(config, data=replace(config.data, shards=str(root / "shards")))
    data = open_data(config, SingleProcess(config.runtime))
    average, updates = train(network, config, data, options.seconds)
    seconds = synthesise(average, data, cases, folder / "predictions", config.runtime.precision)
    for variant, how in VARIANTS.get(name, {}).items():
        part = root / f"{variant}-{seed}"
        taken = synthesise(average, data, cases, part / "predictions", config.runtime.precision, **how)
        evaluate(root, part, ["--no-baselines"])
        write_json(part / "result.json", {"updates": updates, "seconds_per_volume": taken})
    baselines = [] if (name, seed) == (options.networks[0], options.seeds[0]) else ["--no-baselines"]
    evaluate(root, folder, baselines or ["--regression-cases", str(root / "training")])
    write_json(folder / "result.json", {"updates": updates, "seconds_per_volume": seconds})


def evaluate(root: Path, folder: Path, more: list[str]) -> None:
    """Score the predictions of a run."""
    call(
        brasyn(
            "evaluate", "--predictions", folder / "predictions", "--references", root / "unseen",
            "--out", folder, "--statistics", root / "shards" / "statistics.json", *more,
        )
    )  # fmt: skip


def collect(options: argparse.Namespace) -> pd.DataFrame:
    """Scores of all finished runs: a row for each network, seed, case, modality and method."""
    rows = []
    for path in sorted(options.out.glob("fold-*/*-*/result.json")):
        name, _, seed = path.parent.name.rpartition("-")
        rows.append(
            read_table(path.parent).assign(network=name, seed=int(seed), fold=path.parent.parent.name)
        )
    table = pd.concat(rows, ignore_index=True)
    synthetic = table.method == "synthetic"
    table.loc[~synthetic, "network"] = table.loc[~synthetic, "method"]
    return table[synthetic | table.method.isin(["linear regression", "mean of available", "best copy"])]


def nested_choice(table: pd.DataFrame, networks: Sequence[str]) -> tuple[dict[str, str], pd.DataFrame]:
    """For each fold the network that one would choose without its subjects, and the rows of these networks.

    The choice is by the mean SSIM of healthy tissue and tumour over the subjects of the other folds, among the
    networks that have been run on all folds. Without such scores there is none.
    """
    folds, chosen = table.fold.unique(), {}
    complete = [n for n in networks if table[table.network == n].fold.nunique() == len(folds)]
    for fold in folds:
        others = table[(table.fold != fold) & table.network.isin(complete)]
        by_case = others.groupby(["network", "case"])[["ssim/healthy", "ssim/tumour"]].mean()
        scores = by_case.groupby("network").mean().mean(axis=1).dropna()
        if len(scores):
            chosen[fold] = str(scores.idxmax())
    return chosen, table[table.network == table.fold.map(chosen)].assign(network="nested choice")


def bootstrap(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean by resampling the values."""
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def difference(first: pd.Series, second: pd.Series) -> str:
    """Mean of the difference over the subjects that both have, with its 95 % interval."""
    values = (first - second).dropna().to_numpy()
    low, high = bootstrap(values)
    return f"{values.mean():+.3g} [{low:+.3g}, {high:+.3g}]"


def report(options: argparse.Namespace) -> str:
    """Markdown: means over subjects for all targets and each; differences from the first network."""
    table = collect(options)
    choice, of_choice = nested_choice(table, options.networks)
    table = pd.concat([table, of_choice])
    first, lines = options.networks[0], []
    for target in ("all", *MODALITIES):
        chosen = table if target == "all" else table[table.modality == target]
        by_case = chosen.groupby(["network", "case"])[list(SCORES)].mean()
        lines += ["", f"{target}:", "", "| network | subjects | " + " | ".join(SCORES.values()) + " |"]
        lines.append("|---" * (2 + len(SCORES)) + "|")
        scored = [name for network in NETWORKS for name in (network, *VARIANTS.get(network, ()))]
        order = (*scored, "nested choice", "linear regression", "mean of available", "best copy")
        names = [n for n in order if n in by_case.index]
        for name in names:
            own = by_case.loc[name]
            cells = [f"{own[score].mean():.4g}" for score in SCORES]
            lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
        for name in names[1:]:
            cells = [difference(by_case.loc[first][score], by_case.loc[name][score]) for score in SCORES]
            both = len(set(by_case.loc[first].index) & set(by_case.loc[name].index))
            lines.append(f"| {first} - {name} | {both} | " + " | ".join(cells) + " |")
    lines.append("\nNested choice: " + (", ".join(f"{f}: {n}" for f, n in choice.items()) or "none"))
    runs = [
        json.loads(p.read_text()) | {"run": p.parent.name} for p in options.out.glob("fold-*/*/result.json")
    ]
    updates = pd.DataFrame(runs).assign(network=lambda f: f.run.str.rpartition("-")[0])
    for name in sorted(set(updates.network)):
        group = updates[updates.network == name]
        lines.append(
            f"\n{name}: {group.updates.mean():.0f} updates in {options.seconds:.0f} CPU seconds, "
            f"{group.seconds_per_volume.mean():.1f} CPU seconds a volume, {len(group)} runs"
        )
    return (
        "\n".join(lines)
        + "\n\nIn brackets: 95 % bootstrap interval of the paired difference over subjects.\n"
    )


def picture(options: argparse.Namespace, case: Any, slice_: int | None) -> Path:
    """DIR/CASE.png: a row for each target with inputs, real slice, synthetic slices and the first one's error.

    The synthetic volumes are scaled to the median of the real one, as for the matched scores.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    volumes = read_case(case, MODALITIES)
    images = dict(zip(volumes.modalities, volumes.images.astype(np.float64)))
    labels = volumes.labels
    if slice_ is None:
        slice_ = (
            int(np.argmax((labels > 0).sum((0, 1)))) if labels is not None else images["t1c"].shape[2] // 2
        )
    folders = {
        n: next(iter(options.out.glob(f"fold-*/{n}-*/predictions/{case.name}-t1c.nii.gz")), None)
        for n in options.networks
    }
    shown = {name: path.parent for name, path in folders.items() if path is not None}
    columns = 3 + 1 + len(shown) + 1
    rows = len(options.targets)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.7 * columns, 1.95 * rows), layout="constrained", squeeze=False
    )
    for row, target in zip(axes, options.targets):
        real = images[target]
        brain = real > 0
        panels = {f"input {m}": images[m] for m in MODALITIES if m != target} | {f"real {target}": real}
        for name, folder in shown.items():
            made = read_volume(folder / f"{case.name}-{target}.nii.gz").array.astype(np.float64)
            panels[name] = made * (np.median(real[brain]) / max(1.0, np.median(made[brain])))
        error = (panels[next(iter(shown))] - real) / np.percentile(real[brain], 99.5)
        for axis, (name, volume) in zip(row, [*panels.items(), ("difference", error)]):
            own = volume if name.startswith("input") else real
            limits = (-0.5, 0.5) if name == "difference" else (0, np.percentile(own[own > 0], 99.7))
            colours = "RdBu_r" if name == "difference" else "gray"
            axis.imshow(volume[:, :, slice_].T[20:225, 30:210], cmap=colours, vmin=limits[0], vmax=limits[1])
            axis.set_title(name, fontsize=8)
            axis.axis("off")
    path = options.out / f"{case.name}.png"
    figure.savefig(path, dpi=100)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds of each training")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--minimum-foreground", type=int, default=2000, help="as of `brasyn shard`")
    parser.add_argument(
        "--set", dest="overrides", nargs="*", default=[], help="section.key=value of all trainings"
    )
    parser.add_argument("--report", action="store_true", help="only write the table of the finished runs")
    parser.add_argument("--picture", metavar="CASE", help="also draw this case")
    parser.add_argument("--targets", nargs="+", default=MODALITIES, choices=MODALITIES, help="its rows")
    parser.add_argument("--slice", type=int, help="axial slice of the picture; default: the largest tumour")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = find_cases(options.cases)
    folds = split_into_folds(cases, options.folds, seed=0)
    for number, held_out in enumerate(folds):
        root = options.out / f"fold-{number}"
        root.mkdir(parents=True, exist_ok=True)
        atomic_write_text(root / "held_out.txt", "".join(f"{c.name}\n" for c in held_out))
        link(held_out, root / "unseen")
        link([c for c in cases if c not in held_out], root / "training")
        call(
            brasyn(
                "shard", options.cases, "--out", root / "shards", "--split", root / "held_out.txt",
                "--minimum-foreground", str(options.minimum_foreground),
            )
        )  # fmt: skip
    for seed in options.seeds:
        for name in options.networks if not options.report else ():
            for number, held_out in enumerate(folds):
                run_one(options, number, list(held_out), name, seed)
    for case in cases:
        if case.name == options.picture:
            print(picture(options, case, options.slice))
    text = report(options)
    atomic_write_text(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
