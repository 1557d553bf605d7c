r"""Train and evaluate all runs of a folder of configurations, and compare them in one table.

    brasyn study configs/thesis --data DATA --out OUT [section.key=value ...]

DATA contains cohort folders (train_gli, train_met, ...). The stages: shards of all cohorts; the segmenter;
R1 to R8, each after the runs that it starts from; synthesis of one missing modality of each evaluation case,
by the challenge's choice; evaluation with the segmenter; OUT/table. A model of several views is evaluated
over each view alone (r8_axial, r8_sagittal); files with `members:` (r9, r10) only synthesise.

Evaluation cases are those of --cases, or the patients that are held out of training. An override applies to
the runs that have the option. The same command again continues. --slurm submits one job for each stage,
which starts when those before it have succeeded.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command, Overrides
from brasyn_dist.cli.cross_validate import link
from brasyn_dist.cli.demo import cohort_folders, launch_command
from brasyn_dist.cli.drop_modality import RECORD
from brasyn_dist.cli.submit import SlurmStage, sbatch_command, submitted
from brasyn_dist.cli.subprocesses import brasyn, call, show, title
from brasyn_dist.common.files import atomic_write_text
from brasyn_dist.common.resources import resource_folder
from brasyn_dist.errors import ConfigError

if TYPE_CHECKING:
    from brasyn_dist.config import RunConfig

NUMBERED = re.compile(r"r\d+")
SEGMENTER = "segmenter"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `brasyn study`."""

    configs: Annotated[Path, Argument(metavar="CONFIGS")]
    """Folder of YAML files, or a packaged one's name."""
    overrides: Overrides = None
    """Options of all trainings."""
    data: Path
    """Folder of cohort folders."""
    out: Path
    """Folder for everything."""
    cases: Path | None = None
    """Complete cases to evaluate on.  [default: the patients that are held out of --data]"""
    only: list[str] | None = None
    """Evaluate this file; may be repeated.  [default: r1 to r10]"""
    shard_options: Annotated[str, Option(metavar="OPTIONS")] = ""
    """More options of `brasyn shard`."""
    infer_options: Annotated[str, Option(metavar="OPTIONS")] = ""
    """More options of `brasyn infer`."""
    evaluate_options: Annotated[str, Option(metavar="OPTIONS")] = ""
    """More options of `brasyn evaluate`; a source of segmentations replaces the segmenter."""
    slurm: bool = False
    """Submit jobs instead."""
    sbatch: Annotated[str, Option(metavar="OPTIONS")] = ""
    """Options of sbatch for every job, as one word."""
    sbatch_train: Annotated[str, Option(metavar="OPTIONS")] = ""
    """Options of sbatch for trainings only."""
    sbatch_infer: Annotated[str, Option(metavar="OPTIONS")] = ""
    """Options of sbatch for infer only."""
    dry_run: bool = False
    """Print the commands; run nothing."""


@dataclass(frozen=True)
class Job:
    """One stage of the study."""

    name: str
    stage: str
    """`shard`, `train`, `infer`, `evaluate` or `table`."""
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Names of the jobs whose results it needs."""


@dataclass(frozen=True)
class Study:
    """The files of a study and the jobs that they make."""

    options: StudyOptions
    folder: Path
    out: Path
    jobs: dict[str, Job] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, Path]:
        """YAML files by name; the segmenter's may be in the folder above."""
        found = {
            p.stem: p for p in (*self.folder.parent.glob(f"{SEGMENTER}.yaml"), *self.folder.glob("*.yaml"))
        }
        if not found:
            raise ConfigError(f"{self.folder}: no YAML files; give a folder of runs, such as configs/thesis")
        return found

    @cached_property
    def runs(self) -> "dict[str, RunConfig]":
        """Configurations of the files that are trained, with the overrides that they have."""
        return {
            name: configured(path, self.options.overrides or ())
            for name, path in self.files.items()
            if not members_of(path)
        }

    def plan(self) -> list[Job]:
        """All jobs, each after those that it needs.

        Raises:
            ConfigError: A name of --only is no file, or a file is not valid.
        """
        options, shards = self.options, self.out / "shards"
        names = options.only or sorted(filter(NUMBERED.fullmatch, self.files), key=lambda n: int(n[1:]))
        if unknown := [name for name in names if name not in self.files]:
            raise ConfigError(
                f"{self.folder}: no file {unknown[0]}.yaml; it has {', '.join(sorted(self.files))}"
            )
        cohorts = [str(p.resolve()) for p in cohort_folders(options.data)]
        split = () if options.cases else ("--split", str(self.out / "held_out.txt"))
        more = shlex.split(options.shard_options)
        self._add(Job("shard", "shard", (*cohorts, "--out", str(shards), *split, *more)))
        evaluated = [job for name in names for job in self._evaluations(name)]
        folders = [
            f"{job.name.partition(' ')[2]}={self.out / job.name.replace(' ', '/')}" for job in evaluated
        ]
        table = (*folders, "--out", str(self.out / "table"))
        self._add(Job("table", "table", table, tuple(job.name for job in evaluated)))
        return list(self.jobs.values())

    def _add(self, job: Job) -> Job:
        return self.jobs.setdefault(job.name, job)

    def _train(self, name: str) -> str:
        """Name of the job that trains a file's run, after the runs that it starts from."""
        from brasyn_dist.config import Config

        config = self.runs[name]
        after = ["shard"]
        used = [config.checkpoint.init_from]
        if isinstance(config, Config) and config.objective.uses_segmenter:
            used.append(config.objective.segmenter)
        after += [self._train(other) for path in used if (other := self._run_in(path)) is not None]
        known = [word for word in self.options.overrides or () if has_option(config, word)]
        words = (str(self.files[name].resolve()), f"data.shards={self.out / 'shards'}", *known)
        return self._add(Job(f"train {name}", "train", words, tuple(after))).name

    def _run_in(self, path: str | None) -> str | None:
        """Name of the file whose run has this folder."""
        return next((n for n, run in self.runs.items() if path and run.run_dir == Path(path)), None)

    def _evaluations(self, name: str) -> Iterator[Job]:
        """Evaluations of a file, after their synthesis and training."""
        if members := members_of(self.files[name]):
            trained = [self._train(run) for path in members if (run := self._run_in(path)) is not None]
            yield self._evaluate(name, (str(self.files[name].resolve()),), trained)
            return
        config, trained = self.runs[name], [self._train(name)]
        views = config.data.views
        for view in views:
            alone = (f"{name}_{view}", ("--views", view)) if len(views) > 1 else (name, ())
            yield self._evaluate(alone[0], (str(config.run_dir), *alone[1]), trained)

    def _evaluate(self, name: str, weights: Sequence[str], trained: Sequence[str]) -> Job:
        predictions, options = self.out / "predictions" / name, self.options
        words = ("--weights", *weights, "--input", str(self.out / "dropped"), "--output", str(predictions))
        infer = self._add(
            Job(f"infer {name}", "infer", (*words, *shlex.split(options.infer_options)), tuple(trained))
        )
        more, after = shlex.split(options.evaluate_options), [infer.name]
        if SEGMENTER in self.runs and not any(word.startswith("--segment") for word in more):
            more = ["--segmenter", str(self.runs[SEGMENTER].run_dir), *more]
            after.append(self._train(SEGMENTER))
        words = (
            "--predictions", str(predictions), "--references", str(self.out / "references"),
            "--out", str(self.out / "evaluation" / name),
            "--statistics", str(self.out / "shards" / "statistics.json"), *more,
        )  # fmt: skip
        return self._add(Job(f"evaluation {name}", "evaluate", words, tuple(after)))


def configured(path: Path, overrides: Sequence[str]) -> "RunConfig":
    """Configuration of a file with the overrides that its task has."""
    from brasyn_dist.config import RunConfig, load_config

    config = load_config(path, (), RunConfig)
    return load_config(path, [word for word in overrides if has_option(config, word)], RunConfig)


def has_option(config: "RunConfig", override: str) -> bool:
    """Whether an override's option exists in the task of `config`, or in no task, which is an error there."""
    from brasyn_dist.config import TASKS, all_options

    key = override.partition("=")[0]

    def known(cls: type) -> bool:
        return any(f"{name}.".startswith(f"{key}.") for name, _ in all_options(cls))

    return known(type(config)) or not any(map(known, TASKS.values()))


def members_of(path: Path) -> list[str]:
    """Weights of the members, if the file is an inference configuration."""
    from brasyn_dist.config import read_yaml

    members = read_yaml(path).get("members") or []
    return [str(member["weights"]) for member in members]


def run(options: StudyOptions) -> None:
    """Run, submit or print all stages."""
    folder = options.configs
    if not folder.is_dir() and not folder.is_absolute():
        words = folder.parts[1:] if folder.parts[:1] == ("configs",) else folder.parts
        folder = resource_folder("configs").joinpath(*words)
    out = options.out.resolve()
    jobs = Study(options, folder, out).plan()
    if not options.dry_run:
        prepare_cases(options, out)
    if options.slurm:
        submit(jobs, options, out)
        return
    for job in jobs:
        command = local_command(job)
        if options.dry_run:
            show(command)
            continue
        title(job.name)
        with chdir(out):  # run folders in the files, such as runs/r3, are relative
            call(command)


def prepare_cases(options: StudyOptions, out: Path) -> None:
    """Folders `references` and `dropped` of the evaluation cases, and held_out.txt."""
    from brasyn_dist.brats import find_cases
    from brasyn_dist.data.sharding.options import ShardOptions

    out.mkdir(parents=True, exist_ok=True)
    if options.cases is not None:
        cases = find_cases(options.cases)
    else:
        every = [case for cohort in cohort_folders(options.data) for case in find_cases(cohort)]
        training = ShardOptions().training(every)
        cases = [case for case in every if case.name not in training and not case.missing]
        atomic_write_text(
            out / "held_out.txt", "".join(f"{c.name}\n" for c in every if c.name not in training)
        )
    if not cases:
        raise ConfigError(
            f"{options.cases or options.data}: no complete case to evaluate on; give --cases DIR"
        )
    link(cases, out / "references")
    if not (out / "dropped" / RECORD).exists():
        call(brasyn("drop-modality", out / "references", out / "dropped", "--link"))


def local_command(job: Job) -> list[str]:
    """Command that runs a job on this machine; trainings use every GPU."""
    import torch

    if job.stage != "train":
        return brasyn(job.stage, *job.arguments)
    words = ("--config", *job.arguments)
    if torch.cuda.device_count() < 2:
        return brasyn("train", *words)
    return [*launch_command(), "-m", "brasyn_dist.train", *words]


def submit(jobs: Sequence[Job], options: StudyOptions, out: Path) -> None:
    """Submit each job after those that it needs; print its number."""
    special = {"train": options.sbatch_train, "infer": options.sbatch_infer}
    common = shlex.join(["--chdir", str(out), *shlex.split(options.sbatch)])
    numbers: dict[str, str] = {}
    for job in jobs:
        after = ":".join(numbers[name] for name in job.after) or None
        stage = SlurmStage(job.stage, special.get(job.stage, ""), job.arguments)
        command = sbatch_command(stage, common, after)
        if job.stage == "table":  # a second of work: no script of its own
            words = shlex.join(
                [os.environ.get("PYTHON", sys.executable), *brasyn("table", *job.arguments)[1:]]
            )
            command = [
                *command[: command.index(str(resource_folder("slurm") / "table.sbatch"))],
                "--wrap",
                words,
            ]
        placeholder = job.name.replace(" ", "-").upper()
        numbers[job.name] = submitted(command, placeholder, options.dry_run)
        if not options.dry_run:
            print(f"{job.name:<28}{numbers[job.name]}", flush=True)


main = Command("study", StudyOptions, run)
