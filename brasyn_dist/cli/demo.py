"""Run the whole pipeline on this machine, command by command (demo.sh).

    brasyn demo [--data CASES] [--out demo]

    cases -> shards -> train (killed, then the same command again) -> synthesise -> evaluate -> report.html

Every command is printed before it runs. Without --data, a synthetic cohort is written first. To continue
after an interruption, run the same command again.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from brasyn_dist.brats import MODALITIES
from brasyn_dist.cli.command import CaseNumber, Command, Index, Overrides
from brasyn_dist.cli.subprocesses import brasyn, call, check, environment, show, title
from brasyn_dist.common.files import atomic_link
from brasyn_dist.common.processes import kill_tree
from brasyn_dist.common.resources import find_resource, resource_folder
from brasyn_dist.errors import BrasynError


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `brasyn demo`."""

    overrides: Overrides = None
    """Options of the training."""
    data: Path | None = None
    """Folder of BraTS cases, or of cohort folders."""
    out: Path = Path("demo")
    """Folder for everything."""
    gli: CaseNumber = 8
    """Synthetic glioma cases."""
    met: CaseNumber = 4
    """Synthetic metastasis cases."""
    config: str = "demo"
    """YAML file of the training, or a packaged one's name."""
    kill_at: Index = 200
    """Kill the training when this step is saved; 0: never."""
    seed: Index = 0
    """Seed of the cohort and of the split."""


def run(options: DemoOptions) -> None:
    """All stages."""
    begun = time.monotonic()
    out = options.out
    cohorts = cohort_folders(options.data) if options.data else synthesise_cohorts(options)
    check_patients(cohorts)
    title("Shard: statistics, slices, tars")
    shards, workers = out / "shards", str(os.cpu_count())
    call(
        brasyn("shard", *cohorts, "--out", shards, "--views", "axial", "--validation-fraction", "0.25",
               "--workers", workers, "--seed", str(options.seed))
    )  # fmt: skip
    title("Train on every processor, kill it, run the same command again")
    train(options, shards)
    held_out = link_held_out(shards, cohorts, out / "held_out")
    title(f"Synthesise each modality of {len(list(held_out.iterdir()))} held-out cases from the others")
    predictions, weights = out / "predictions", out / "runs" / "demo"
    for modality in MODALITIES:
        call(
            brasyn("infer", "--weights", weights, "--input", held_out, "--output", predictions,
                   "--modality", modality, "--workers", workers)
        )  # fmt: skip
    title("Evaluate against the truth and two baselines")
    call(
        brasyn(
            "evaluate", "--predictions", predictions, "--references", held_out, "--out", out / "evaluation",
            "--workers", workers, "--statistics", shards / "statistics.json", "--curves", weights,
        )
    )  # fmt: skip
    minutes = (time.monotonic() - begun) / 60
    print(f"\nDone in {minutes:.1f} minutes. Open {out / 'evaluation' / 'report.html'}")


def synthesise_cohorts(options: DemoOptions) -> list[Path]:
    """Write the synthetic cohort; its cohort folders."""
    title("Write a synthetic cohort (real BraTS folders; no download)")
    cases = options.out / "cases"
    counts = ("--gli", str(options.gli), "--met", str(options.met), "--seed", str(options.seed))
    call(brasyn("phantom", cases, *counts))
    return cohort_folders(cases)


def cohort_folders(data: Path) -> list[Path]:
    """`data` itself if it contains cases, otherwise its subfolders that do.

    Raises:
        BrasynError: There is no case.
    """
    from brasyn_dist.brats import modality_of

    if not data.is_dir():
        raise BrasynError(f"{data}: no such folder; DATA must be a folder of BraTS cases")

    def holds_cases(folder: Path) -> bool:
        return any(modality_of(file) for case in folder.iterdir() if case.is_dir() for file in case.iterdir())

    if holds_cases(data):
        return [data]
    cohorts = sorted(p for p in data.iterdir() if p.is_dir() and holds_cases(p))
    if not cohorts:
        raise BrasynError(
            f"{data}: no BraTS case found; expected CASE/CASE-t1c.nii.gz and so on, or cohorts of these"
        )
    return cohorts


def check_patients(cohorts: list[Path]) -> None:
    """Raise BrasynError unless one patient of a cohort can be held out and another one is left."""
    from brasyn_dist.data.case_folders import find_cohorts

    cases, bad = find_cohorts(cohorts)
    patients = {(case.cohort, case.patient) for case in cases}
    if len(patients) == len({cohort for cohort, _ in patients}):
        names = ", ".join(sorted(patient for _, patient in patients)) or "none"
        left_out = f"; {len(bad)} cases cannot be used" if bad else ""
        raise BrasynError(
            f"{', '.join(map(str, cohorts))}: patients {names}: a cohort of at least two is needed, since "
            f"one is held out of training{left_out}"
        )


def train(options: DemoOptions, shards: Path) -> None:
    """Launch the training, kill all its processes when step `kill_at` is saved, launch it again."""
    config = find_resource("configs", options.config)
    command = [
        *launch_command(), "-m", "brasyn_dist.train", "--config", str(config),
        "name=demo", f"runs_dir={options.out / 'runs'}", f"data.shards={shards}", *(options.overrides or ()),
    ]  # fmt: skip
    checkpoints = options.out / "runs" / "demo" / "checkpoints"
    if options.kill_at and saved_step(checkpoints) == 0:
        show(command)
        process = subprocess.Popen(command, env=environment())
        while process.poll() is None and saved_step(checkpoints) < options.kill_at:
            time.sleep(0.2)
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
            print(
                f"\n--- killed all processes with SIGKILL after step {options.kill_at}; "
                "the same command again ---\n"
            )
        else:
            check(process.returncode, command)
    call(command)


def saved_step(checkpoints: Path) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    complete = checkpoints.glob("step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in complete), default=0)


def launch_command() -> list[str]:
    """Launcher with one process for each GPU, or two processes without GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    name = "single_gpu" if gpus == 1 else "one_node" if gpus else "cpu"
    processes = [] if gpus == 1 else ["--num_processes", str(gpus or 2)]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, "--config_file", str(resource_folder("launch") / f"{name}.yaml"), *processes]


def link_held_out(shards: Path, cohorts: list[Path], folder: Path) -> Path:
    """A folder of links to the cases that the shard set holds out of training."""
    from brasyn_dist.data.loading.storage import open_shard_set
    from brasyn_dist.data.sharding.write_shards import VALIDATION

    names = {case.name for case in open_shard_set(shards).header.cases if case.split == VALIDATION}
    folder.mkdir(parents=True, exist_ok=True)
    for cohort in cohorts:
        for case in sorted(p for p in cohort.iterdir() if p.name in names):
            atomic_link(folder / case.name, case)
    return folder


main = Command("demo", DemoOptions, run)
