"""Validation error against CPU seconds (GPU seconds on a GPU), operations and slices, of four trainings in one run.

    python benchmarks/time_to_quality.py SHARDS --out DIR [--seconds 600] [--points 12] [--networks recommended textbook]

    for each network, a process:  train --every seconds / points--> error on the same held-out slices --> DIR/<network>.jsonl
                                  --> DIR/table.md, DIR/curves.png

`thesis, plain` and `thesis, fast`: configs/narrow.yaml with all terms of the thesis' objective, every pass by itself or each slice
encoded once. `recommended`: configs/laptop_axial.yaml, in bf16 where the processor has instructions for it. `textbook`: MONAI's BasicUNet
in an ordinary loop: DataLoader over .npy files, AdamW, mean absolute error. All have the same cases, normalisation and window, a
cosine schedule over the given seconds, and a moving average, which is scored: the mean absolute error over the brain of each
modality synthesised from the other three, in units of the median of its volume. Validation is not counted. A network that is
finished is not trained again. SHARDS needs held-out cases (`brasyn shard --validation-fraction` or `--split`).
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_train import PLAIN
from benchmarks.ceilings import synchronise
from benchmarks.compare_networks import TextbookUNet
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, load_config
from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.preprocessing.normalisation import foreground
from brasyn_dist.training import cost_model
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.schedule import ema_decay, scaled_rate
from brasyn_dist.training.training_data import DeviceBatch, TrainingData, open_data

THESIS = (
    "objective.adversarial=0.25", "objective.classification=0.25", "objective.feature=1", "objective.cycle=1",
)  # fmt: skip
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "thesis, plain": ("narrow", (*THESIS, *PLAIN)),
    "thesis, fast": ("narrow", THESIS),
    "recommended": ("laptop_axial", ()),
    "textbook": ("laptop_axial", ("augmentation.crop=null",)),
}
"""Name -> configuration and options."""
Network = Callable[..., Any]
Progress = Iterator[tuple[float, int, Network]]
"""(share of the time, slices so far, averaged network) after each update."""


class Clock:
    """CPU seconds of this process, or seconds of the GPU; `pause` takes validation out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now = time.process_time if device.type == "cpu" else time.perf_counter
        self._begun, self._left_out = self._now(), 0.0

    @property
    def seconds(self) -> float:
        synchronise(self._device)
        return self._now() - self._begun - self._left_out

    def pause(self, work: Callable[[], Any]) -> Any:
        begun = self._now()
        result = work()
        synchronise(self._device)
        self._left_out += self._now() - begun
        return result


def cosine(progress: float, updates: int, warmup: int) -> float:
    """Factor of the learning rate."""
    return min(1.0, (updates + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def trainer(config: Config, data: TrainingData, group: SingleProcess, share: Callable[[], float]) -> Progress:
    """Updates of the package's own step."""
    task = GanTask(config)
    state = task.build_state(group, data.modality_set)
    step = task.build_step(group, state, data.preprocessing.normaliser(group.device))
    peak = scaled_rate(config.optimizer, config.training.global_batch_size)
    with data.stream(0, 10**9) as stream:
        for batch in stream:
            for number in range(config.training.updates_per_batch):
                step.update(batch, number, peak * cosine(share(), state.step, config.optimizer.warmup_steps))
                state.step += 1
                state.update_average(ema_decay(state.step, config.training.ema_decay))
                yield share(), state.step * config.training.global_batch_size, state.network


class Files(Dataset[np.ndarray]):
    """Normalised slices (4, H, W), one .npy file each."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.load(self.paths[number])


def textbook(config: Config, folder: Path, device: torch.device, share: Callable[[], float]) -> Progress:
    """Updates of an ordinary loop."""
    torch.manual_seed(0)
    network = TextbookUNet(config.generator).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    average = AveragedModel(network, avg_fn=moving_average)
    updates, loader = 0, DataLoader(Files(folder), batch_size=4, shuffle=True, drop_last=True)
    while True:
        for real in loader:
            real = real.to(device)
            target = torch.randperm(4, device=device)
            optimizer.param_groups[0]["lr"] = 1e-3 * cosine(share(), updates, 50)
            loss = F.l1_loss(predict(network, real, target), real[torch.arange(4), target, None])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            updates += 1
            yield share(), 4 * updates, average


def moving_average(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """With the same shorter memory in the first updates as the package's own average."""
    return average + (1 - ema_decay(int(count) + 1, 0.998)) * (value - average)


def predict(network: Network, real_BMHW: Tensor, target_B: Tensor) -> Tensor:
    """(B, 1, H, W): the target of each row from all other modalities."""
    available_BM = torch.arange(real_BMHW.shape[1], device=target_B.device) != target_B[:, None]
    inputs_BMHW = torch.where(available_BM[:, :, None, None], real_BMHW, -1.0)
    return network(inputs_BMHW, available_BM, target_B, torch.zeros_like(target_B))[0]


@torch.no_grad()
def error(network: Network, held_out: DeviceBatch, group: SingleProcess) -> float:
    """Mean absolute error over the brain, of all modalities."""
    errors = []
    for real_BMHW in held_out.real_BMHW.split(4):
        for modality in range(real_BMHW.shape[1]):
            with group.autocast():
                made = predict(
                    network, real_BMHW, torch.full((len(real_BMHW),), modality, device=real_BMHW.device)
                )
            real = real_BMHW[:, modality, None]
            errors.append((made.float() - real).abs()[foreground(real)])
    return float(torch.cat(errors).mean())


def train(name: str, options: argparse.Namespace) -> None:
    """Train one network in this process and write its curve."""
    file, more = NETWORKS[name]
    bf16 = ("runtime.precision=bf16",) if name == "recommended" and has_bf16() else ()
    config = load_config(
        find_resource("configs", file),
        [*more, *bf16, *options.overrides, f"data.shards={options.shards}", "runtime.threads=1"],
        Config,
    )
    torch.set_num_threads(1)
    group = SingleProcess(config.runtime, "cuda" if torch.cuda.is_available() else "cpu")
    data = open_data(config, group)
    if data.validation is None:
        raise SystemExit(f"{options.shards}: no held-out cases; give brasyn shard --validation-fraction")
    chosen = np.linspace(0, len(data.validation) - 1, options.held_out).astype(int)
    normaliser = data.preprocessing.normaliser(group.device)
    held_out = DeviceBatch.load(
        read_samples(data.validation, chosen.tolist(), config.image_shape), normaliser
    )
    if name == "textbook":
        folder = options.out / "files"
        write_files(data, config, folder)
        operations = operations_of(TextbookUNet(config.generator), held_out)
    else:
        operations = cost_model.measure(config).operations_per_slice
    clock = Clock(group.device)

    def share() -> float:
        return clock.seconds / options.seconds

    progress = (
        textbook(config, folder, group.device, share)
        if name == "textbook"
        else trainer(config, data, group, share)
    )
    points = [(k + 1) / options.points for k in range(options.points)]
    part = options.out / f"{name}.part"
    with part.open("w") as lines:
        for done, slices, network in progress:
            if done < points[0]:
                continue
            value = clock.pause(partial(error, network, held_out, group))
            row = {
                "seconds": clock.seconds,
                "slices": slices,
                "operations": slices * operations,
                "error": value,
            }
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(name, row, flush=True)
            points = [p for p in points if p > done]
            if not points:
                break
    part.replace(options.out / f"{name}.jsonl")


def has_bf16() -> bool:
    """Whether bf16 is fast on this device."""
    if torch.cuda.is_available():
        return True
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def write_files(data: TrainingData, config: Config, folder: Path) -> None:
    """One .npy file for each training slice, normalised."""
    if folder.exists():
        return
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    normaliser = data.preprocessing.normaliser(torch.device("cpu"))
    for first in range(0, len(data.training), 32):
        samples = range(first, min(first + 32, len(data.training)))
        batch = DeviceBatch.load(read_samples(data.training, samples, config.image_shape), normaliser)
        for number, real_MHW in zip(samples, batch.real_BMHW.numpy()):
            np.save(part / f"{number:06d}.npy", real_MHW)
    part.rename(folder)


def operations_of(network: nn.Module, held_out: DeviceBatch) -> float:
    """Of a slice and update: forward, and twice as much backward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(network, held_out.real_BMHW[:1].cpu(), torch.zeros(1, dtype=torch.int64))
    return 3.0 * counter.get_total_flops()


def curves(out: Path) -> dict[str, list[dict[str, float]]]:
    """Finished curves by network."""
    found = {name: out / f"{name}.jsonl" for name in NETWORKS}
    return {
        name: [json.loads(line) for line in path.read_text().splitlines()]
        for name, path in found.items()
        if path.exists()
    }


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: the end of each curve, and how soon `recommended` is as good as the best of each."""
    lines = [
        "| network | slices | operations, T | seconds | error at the end | best error | seconds until the best "
        "| recommended as good after | part of the seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, curve in found.items():
        best, last = min(curve, key=lambda row: row["error"]), curve[-1]
        sooner = [row for row in found.get("recommended", []) if row["error"] <= best["error"]]
        cells = (
            [f"{sooner[0]['seconds']:.0f}", f"{sooner[0]['seconds'] / best['seconds']:.2f}"]
            if sooner
            else ["never", ""]
        )
        numbers = [
            f"{last['slices']}", f"{last['operations'] / 1e12:.4g}", f"{last['seconds']:.0f}", f"{last['error']:.4f}",
            f"{best['error']:.4f}", f"{best['seconds']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join([name, *numbers, *cells]) + " |")
    return "\n".join(lines)


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Error against seconds, operations and slices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for panel, key in zip(panels, ("seconds", "operations", "slices")):
        for name, curve in found.items():
            panel.plot([row[key] for row in curve], [row["error"] for row in curve], ".-", label=name)
        panel.set(xscale="log", xlabel="CPU or GPU seconds" if key == "seconds" else key)
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panels[0].set(ylabel="mean absolute error, brain")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600, help="of each training")
    parser.add_argument("--points", type=int, default=12, help="validations of each training")
    parser.add_argument("--held-out", type=int, default=24, help="slices of a validation")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="section.key=value of all")
    parser.add_argument("--worker", choices=list(NETWORKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.worker, options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        if not (options.out / f"{name}.jsonl").exists():
            subprocess.run([sys.executable, *sys.argv, "--worker", name], check=True)
    found = curves(options.out)
    (options.out / "table.md").write_text(table(found) + "\n")
    plot(found, options.out / "curves.png")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
