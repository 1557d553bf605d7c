"""Submit the whole chain, each stage when the one before has succeeded: shard -> train -> infer -> evaluate.

    python slurm/submit.py configs/r3.yaml --cohorts data/train_gli data/train_met --shards shards \\
        --cases cases --completed completed --references complete_cases --evaluation evaluation \\
        --sbatch="--partition=gpu --account=lab" --sbatch-train="--nodes=4 --gpus-per-node=2" [section.key=value ...]

A stage is left out if its input is not given: without --cohorts the shards are there already, without --cases nothing is
synthesised, without --references nothing is scored. Prints the number of every job. If one fails, those after it are removed
from the queue; the same command submits all of them again, and what is finished is not done twice.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brasyn_dist.config import RunConfig, load_config
from brasyn_dist.errors import BrasynError

SCRIPTS = Path(__file__).resolve().parent
STAGES = ("shard", "train", "infer", "evaluate")


@dataclass(frozen=True)
class Stage:
    """One job: its script's name and the words after the script."""

    name: str
    arguments: tuple[str, ...]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("config", type=Path, help="YAML file of the run")
    add("overrides", nargs="*", metavar="section.key=value", help="options of the run")
    add("--cohorts", nargs="+", metavar="DIR", help="cohort folders to shard")
    add("--shards", help="folder of the shard set; default: data.shards of the run")
    add("--cases", help="folder of cases to complete")
    add("--completed", default="completed", help="folder for synthesised volumes (default %(default)s)")
    add("--references", help="folder of complete cases to compare with")
    add("--evaluation", default="evaluation", help="folder for the scores (default %(default)s)")
    add("--sbatch", default="", metavar="OPTIONS", help="options of sbatch for every stage, in one word")
    for stage in STAGES:
        add(f"--sbatch-{stage}", default="", metavar="OPTIONS", help=f"options of sbatch for {stage} alone")
        if stage != "train":
            add(f"--{stage}-options", default="", metavar="OPTIONS", help=f"more options of {stage} itself")
    add("--dry-run", action="store_true", help="print the commands, submit nothing")
    return made


def stages(options: argparse.Namespace) -> list[Stage]:
    """The jobs to submit, in order. Raises ConfigError if the run's configuration is not valid: better here than in a job."""
    overrides = [*options.overrides, *([f"data.shards={options.shards}"] if options.shards else [])]
    config = load_config(options.config, overrides, RunConfig)
    chain = []
    if options.cohorts:
        chain.append(Stage("shard", (*options.cohorts, "--out", config.data.shards, *more(options, "shard"))))
    chain.append(Stage("train", (str(options.config), *overrides)))
    if options.cases:
        where = ("--weights", str(config.run_dir), "--input", options.cases, "--output", options.completed)
        chain.append(Stage("infer", (*where, *more(options, "infer"))))
    if options.references:
        what = ("--predictions", options.completed, "--references", options.references)
        chain.append(Stage("evaluate", (*what, "--out", options.evaluation, *more(options, "evaluate"))))
    return chain


def more(options: argparse.Namespace, stage: str) -> list[str]:
    return shlex.split(getattr(options, f"{stage}_options"))


def command(stage: Stage, options: argparse.Namespace, after: str | None) -> list[str]:
    """The `sbatch` command of a stage that waits for job `after` (a whole array, if it is one)."""
    depends = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    chosen = shlex.split(options.sbatch) + shlex.split(getattr(options, f"sbatch_{stage.name}"))
    return [
        "sbatch",
        "--parsable",
        *depends,
        *chosen,
        str(SCRIPTS / f"{stage.name}.sbatch"),
        *stage.arguments,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        chain = stages(options)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    after = None
    for stage in chain:
        words = command(stage, options, after)
        if options.dry_run:
            print(shlex.join(words))
            after = stage.name.upper()
            continue
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            print("error: there is no sbatch here: run this on a login node of the cluster", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            print(f"error: {shlex.join(words)}\n{error.stderr.strip()}", file=sys.stderr)
            return 1
        after = done.stdout.strip().partition(";")[0]  # `number;cluster` on federated ones
        print(f"{stage.name:<9}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
