"""The whole main job, command by command: what ./demo.sh runs. Every command is printed before it runs.

    cases -> shards -> train (killed half-way, then the same command again) -> synthesise -> evaluate -> report.html

Without --data, a synthetic cohort is written first. Everything goes to one folder (default `demo/`); running it again
continues with what is missing.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from brasyn_dist.brats import modality_of
from brasyn_dist.cli.subcommands import PYTHON, REPOSITORY, call, environment, show, title
from brasyn_dist.common.files import atomic_path
from brasyn_dist.common.processes import kill_tree
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.sharding.write_shards import VALIDATION
from brasyn_dist.errors import BrasynError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of BraTS cases, or of cohort folders of cases")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--gli", type=int, default=6, help="synthetic glioma cases")
    parser.add_argument("--met", type=int, default=2, help="synthetic metastasis cases")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/demo.yaml")
    parser.add_argument(
        "--kill-at", type=int, default=60, help="kill training once it has saved this step; 0: never"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options of the training")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        report = run(options)
    except (BrasynError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes. Open {report}")
    return 0


def run(options: argparse.Namespace) -> Path:
    """All stages. Returns the report."""
    out: Path = options.out
    cohorts = cohort_folders(options.data) if options.data else synthesise_cohorts(options)
    title("Shard: statistics, slices, tars")
    shards = out / "shards"
    call(
        *PYTHON, str(REPOSITORY / "tools/shard_dataset.py"), *map(str, cohorts), "--out", str(shards),
        "--views", "axial", "--validation-fraction", "0.25", "--workers", str(os.cpu_count()), "--seed", str(options.seed),
    )  # fmt: skip
    title("Train on every processor, kill it half-way, run the same command again")
    train(options, shards)
    held_out = link_held_out(shards, cohorts, out / "held_out")
    title(f"Synthesise the missing modality of {len(list(held_out.iterdir()))} cases kept out of training")
    dropped, predictions = out / "dropped", out / "predictions"
    call(*PYTHON, str(REPOSITORY / "tools/drop_modality.py"), str(held_out), str(dropped), "--link")
    weights = out / "runs" / "demo"
    call(
        *PYTHON, "-m", "brasyn_dist.infer", "--weights", str(weights), "--input", str(dropped),
        "--output", str(predictions), "--overwrite",
    )  # fmt: skip
    title("Evaluate against the truth and two baselines")
    call(
        *PYTHON, "-m", "brasyn_dist.evaluate", "--predictions", str(predictions), "--references", str(held_out),
        "--out", str(out / "evaluation"), "--workers", str(os.cpu_count()), "--statistics", str(shards / "statistics.json"), "--curves", str(weights),
    )  # fmt: skip
    return out / "evaluation" / "report.html"


def synthesise_cohorts(options: argparse.Namespace) -> list[Path]:
    title("Write a synthetic cohort (real BraTS folders; no download)")
    cases = options.out / "cases"
    call(
        *PYTHON, "-m", "brasyn_dist.phantom", str(cases), "--gli", str(options.gli), "--met", str(options.met),
        "--seed", str(options.seed),
    )  # fmt: skip
    return cohort_folders(cases)


def cohort_folders(data: Path) -> list[Path]:
    """`data` itself if it holds cases, otherwise its subfolders that do. Raises BrasynError if there is none."""
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


def train(options: argparse.Namespace, shards: Path) -> None:
    """Launch, kill everything with SIGKILL when step `kill_at` is saved, launch again."""
    command = launch_command() + [
        "-m", "brasyn_dist.train", "--config", str(options.config), "name=demo", f"runs_dir={options.out / 'runs'}",
        f"data.shards={shards}", *options.overrides,
    ]  # fmt: skip
    checkpoints = options.out / "runs" / "demo" / "checkpoints"
    if options.kill_at and not any(checkpoints.glob("step-*/manifest.json")):
        show(command)
        process = subprocess.Popen(command, env=environment())
        while process.poll() is None and not any(
            int(p.parent.name.removeprefix("step-")) >= options.kill_at
            for p in checkpoints.glob("step-*/manifest.json")
        ):
            time.sleep(0.2)
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
            print(
                f"\n--- killed all processes with SIGKILL after step {options.kill_at}; the same command again ---\n"
            )
        elif process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    call(*command)


def launch_command() -> list[str]:
    """One process for each GPU; two where there is none."""
    import torch

    gpus = torch.cuda.device_count()
    launch = [*PYTHON, "-m", "accelerate.commands.launch"]
    if gpus == 1:
        return [*launch, "--config_file", str(REPOSITORY / "launch/single_gpu.yaml")]
    name, processes = ("one_node", gpus) if gpus else ("cpu", 2)
    return [
        *launch,
        "--config_file",
        str(REPOSITORY / f"launch/{name}.yaml"),
        "--num_processes",
        str(processes),
    ]


def link_held_out(shards: Path, cohorts: list[Path], folder: Path) -> Path:
    """A folder of links to the cases that the shard set holds out of training."""
    names = {case.name for case in ShardIndex.load(shards).header.cases if case.split == VALIDATION}
    folder.mkdir(parents=True, exist_ok=True)
    for cohort in cohorts:
        for case in sorted(p for p in cohort.iterdir() if p.name in names):
            with atomic_path(folder / case.name) as temporary:
                temporary.symlink_to(case.resolve(), target_is_directory=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
