r"""Submit the Slurm jobs shard, train, infer and evaluate, each after the success of the one before.

    brasyn submit CONFIG

    brasyn submit configs/thesis/r3.yaml --cohorts data/train_gli data/train_met --shards shards \
        --cases cases --completed completed --references complete_cases --evaluation evaluation \
        --sbatch="--partition=gpu --account=lab" --sbatch-train="--nodes=4" [section.key=value ...]

A stage without input is left out: without --cohorts the shards exist already, without --cases nothing is
synthesised, without --references nothing is scored. Prints the number of every job. If one fails, the jobs
after it are removed from the queue. The same command submits all of them again; finished work is not
repeated.
"""

import shlex
import subprocess
from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command, Overrides
from brasyn_dist.common.resources import find_resource, resource_folder
from brasyn_dist.errors import BrasynError

Words = Annotated[str, Option(metavar="OPTIONS")]


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Options of `brasyn submit`."""

    config: Annotated[str, Argument(metavar="CONFIG")]
    """YAML file of the run, or a packaged one's name."""
    overrides: Overrides = None
    """Options of the run."""
    cohorts: Annotated[list[str] | None, Option(metavar="DIR...")] = None
    """Cohort folders to shard."""
    shards: str | None = None
    """Shard set.  [default: data.shards of the run]"""
    cases: str | None = None
    """Folder of cases to complete."""
    completed: str = "completed"
    """Folder for synthesised volumes."""
    references: str | None = None
    """Folder of complete cases to compare with."""
    evaluation: str = "evaluation"
    """Folder for the scores."""
    sbatch: Words = ""
    """Options of sbatch for every stage, as one word."""
    sbatch_shard: Words = ""
    """Options of sbatch for shard only."""
    sbatch_train: Words = ""
    """Options of sbatch for train only."""
    sbatch_infer: Words = ""
    """Options of sbatch for infer only."""
    sbatch_evaluate: Words = ""
    """Options of sbatch for evaluate only."""
    shard_options: Words = ""
    """More options of `brasyn shard`."""
    infer_options: Words = ""
    """More options of `brasyn infer`."""
    evaluate_options: Words = ""
    """More options of `brasyn evaluate`."""
    dry_run: bool = False
    """Print the commands; submit nothing."""


@dataclass(frozen=True)
class SlurmStage:
    """One job: name of its script, its options of sbatch, and the words after the script."""

    name: str
    sbatch: str
    arguments: tuple[str, ...]


def stages(options: SubmitOptions) -> list[SlurmStage]:
    """The jobs to submit, in order. Raises ConfigError if the run's configuration is not valid."""
    from brasyn_dist.config import RunConfig, load_config

    overrides = [*(options.overrides or ()), *([f"data.shards={options.shards}"] if options.shards else [])]
    path = find_resource("configs", options.config)
    config = load_config(path, overrides, RunConfig)
    chain = []
    if options.cohorts:
        what = (*options.cohorts, "--out", config.data.shards, *shlex.split(options.shard_options))
        chain.append(SlurmStage("shard", options.sbatch_shard, what))
    chain.append(SlurmStage("train", options.sbatch_train, (str(path), *overrides)))
    if options.cases:
        what = ("--weights", str(config.run_dir), "--input", options.cases, "--output", options.completed)
        chain.append(SlurmStage("infer", options.sbatch_infer, (*what, *shlex.split(options.infer_options))))
    if options.references:
        what = ("--predictions", options.completed, "--references", options.references)
        what = (*what, "--out", options.evaluation, *shlex.split(options.evaluate_options))
        chain.append(SlurmStage("evaluate", options.sbatch_evaluate, what))
    return chain


def sbatch_command(stage: SlurmStage, common: str, after: str | None) -> list[str]:
    """The `sbatch` command of a stage that waits for job `after`, a whole array, or several (`1:2`)."""
    depends = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    script = str(resource_folder("slurm") / f"{stage.name}.sbatch")
    chosen = [*shlex.split(common), *shlex.split(stage.sbatch)]
    return ["sbatch", "--parsable", *depends, *chosen, script, *stage.arguments]


def run(options: SubmitOptions) -> None:
    r"""Submit the jobs, or print the commands."""
    after = None
    for stage in stages(options):
        command = sbatch_command(stage, options.sbatch, after)
        after = submitted(command, stage.name.upper(), options.dry_run)
        if not options.dry_run:
            print(f"{stage.name:<9}{after}", flush=True)


def submitted(command: list[str], placeholder: str, dry_run: bool) -> str:
    """Number of the submitted job. With `dry_run`, the command is printed and the number is `placeholder`.

    Raises:
        BrasynError: There is no sbatch, or it refused the job.
    """
    if dry_run:
        print(shlex.join(command))
        return placeholder
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise BrasynError("sbatch was not found; run this command on a login node of the cluster") from None
    if done.returncode != 0:
        raise BrasynError(f"{shlex.join(command)}\n{done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]  # `number;cluster` where clusters are federated


main = Command("submit", SubmitOptions, run, lists=("--cohorts",))
