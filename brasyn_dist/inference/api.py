"""Synthesis from Python, in the form that the field's tools have: `infer_single` for one subject's files, `infer_batch` for a folder.

import brasyn_dist
brasyn_dist.infer_single(t1c="a.nii.gz", t1n="b.nii.gz", t2w="c.nii.gz", output="t2f.nii.gz", weights="runs/r8")
brasyn_dist.infer_batch("cases/", "predictions/", weights="runs/r8")
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brasyn_dist.brats import MODALITIES, Case, modality_of, prediction_name
from brasyn_dist.common.files import sha256_of
from brasyn_dist.common.launch_environment import Place, place_of
from brasyn_dist.common.provenance import environment
from brasyn_dist.data.case_folders import find_cohorts
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.inference.case_queue import Report, own_device, share_cases, share_processors
from brasyn_dist.inference.case_results import CaseResult, Task, plan_tasks
from brasyn_dist.inference.fusion import Fusion, describe_members, load_fusion
from brasyn_dist.inference.manifest import Manifest
from brasyn_dist.inference.members import choose_device, load_members
from brasyn_dist.inference.pipeline import Synthesise, process
from brasyn_dist.inference.synthesis import (
    Member,
    Precision,
    default_batch_size,
    four_planes,
    synthesise_case,
)
from brasyn_dist.inference.timing import STAGES, StageClock
from brasyn_dist.inference.weights_config import Weights, load_inference

PathLike = Path | str


def infer_single(
    *,
    output: PathLike,
    weights: Weights,
    t1c: PathLike | None = None,
    t1n: PathLike | None = None,
    t2f: PathLike | None = None,
    t2w: PathLike | None = None,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
    batch_size: int | None = None,
    precision: Precision = "no",
    device: str | None = None,
    round_values: bool = False,
) -> dict[str, Path]:
    """Synthesise every modality that is not given from those that are. Returns the written path of each.

    `output` is the file to write (.nii.gz or .nii) if one modality is missing; otherwise, or if it has no such ending, the
    folder for `<case>-<modality>.nii.gz`, named after the first input. Existing files are replaced. Other arguments: see
    `infer_batch`. Raises DataError, ConfigError or CheckpointError.
    """
    given = {"t1c": t1c, "t1n": t1n, "t2f": t2f, "t2w": t2w}
    files = {name: Path(path) for name, path in given.items() if path is not None}
    task = single_task(files, Path(output))
    where = choose_device(device, precision)
    plan = load_inference(weights, views, any_view, fusion)
    members = load_members(plan, where)
    fuse = None if plan.fusion is None else load_fusion(plan.fusion, members, where)
    for path in task.outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    results: list[CaseResult] = []
    synthesise = synthesiser(members, batch_size, precision, fuse)
    process([task], synthesise, results.append, nothing_finished, where, round_values)
    if results[0].status == "failed":
        raise DataError(results[0].reason)
    return task.outputs


def infer_batch(
    input: PathLike,
    output: PathLike,
    *,
    weights: Weights,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
    modalities: Sequence[str] = (),
    batch_size: int | None = None,
    precision: Precision = "no",
    device: str | None = None,
    overwrite: bool = False,
    round_values: bool = False,
    place: Place | None = None,
    lease: float | None = None,
    say: Callable[[str], None] = print,
) -> list[CaseResult]:
    """Synthesise what is missing in every case folder below `input`, as `output`/`<case>-<modality>.nii.gz`, and manifest.json.

    weights       run folder or export folder; or several `FOLDER:VIEW`; or a YAML file of members (inference/weights_config.py)
    views         run over these; default: all that a model was trained on
    any_view      allow views that a model was not trained on
    fusion        file of brasyn_dist.fit_fusion; default: the mean over models and views
    modalities    make exactly these, as if they were missing everywhere (default: what is missing)
    batch_size    slices at a time; default by device
    precision     `no`, `bf16` or `fp16` (autocast)
    device        such as `cpu` or `cuda:1`; default: a GPU if there is one
    overwrite     make outputs anew that an earlier run has finished; otherwise they are verified and kept
    round_values  round intensities that are not whole numbers, instead of refusing them
    place         which of a node's processes this is; default: what the launcher or Slurm says
    lease         seconds without a sign of life after which another process' cases are taken over; default: a minute
    say           takes lines of progress

    Processes that are given the same share the cases, however they were started (brasyn_dist/fanout). Returns one result a
    case, by name, whoever made it; a case that fails is one of them, with its reason, and the others go on.
    Raises ConfigError, CheckpointError or DataError where nothing can be done at all.
    """
    output = Path(output)
    cases, problems = find_cohorts([Path(input)])
    tasks, results = plan_tasks(cases, output, check_modalities(modalities))
    results += [CaseResult(problem.folder.name, "failed", reason=problem.reason) for problem in problems]
    place = place or place_of()
    share_processors(place)
    where = choose_device(device or own_device(place), precision)
    plan = load_inference(weights, views, any_view, fusion)
    members = load_members(plan, where)
    fuse = None if plan.fusion is None else load_fusion(plan.fusion, members, where)
    manifest = open_manifest(output, members, where, batch_size, precision, overwrite, plan.fusion)
    synthesise = synthesiser(members, batch_size, precision, fuse)

    def some(tasks: Iterable[Task], report: Report, finished: Callable[[Task], CaseResult | None]) -> None:
        process(tasks, synthesise, report, finished, where, round_values)

    return share_cases(
        tasks,
        results,
        some,
        manifest,
        settings={"batch_size": batch_size, "round_values": round_values},
        overwrite=overwrite,
        place=place,
        lease=lease,
        say=say,
        line=line,
    )


def single_task(files: dict[str, Path], output: Path) -> Task:
    """The task of completing one subject from `files` by modality. Raises ConfigError if none or all are given."""
    targets = tuple(m for m in MODALITIES if m not in files)
    if not targets or not files:
        raise ConfigError(f"give one to three of {', '.join(MODALITIES)}: those not given are synthesised")
    first = next(iter(files.values()))
    named = modality_of(first)
    case = Case(named[0] if named else first.name.split(".")[0], first.parent, files)
    if output.name.endswith((".nii", ".nii.gz")):
        if len(targets) > 1:
            raise ConfigError(f"{output}: {', '.join(targets)} are missing, so `output` must be a folder")
        return Task(case, case.available, {targets[0]: output})
    return Task(case, case.available, {m: output / prediction_name(case.name, m) for m in targets})


def check_modalities(names: Sequence[str]) -> Sequence[str]:
    unknown = sorted(set(names) - set(MODALITIES))
    if unknown:
        raise ConfigError(f"unknown modality {unknown[0]}; choose from {', '.join(MODALITIES)}")
    return names


def synthesiser(
    members: Sequence[Member], batch_size: int | None, precision: Precision, fuse: Fusion | None = None
) -> Synthesise:
    """The pipeline's middle stage for these members and their fusion."""

    def synthesise(
        volumes: CaseVolumes, targets: tuple[str, ...], clock: StageClock
    ) -> dict[str, np.ndarray]:
        with clock("prepare"):
            planes = four_planes(volumes.modalities, volumes.images)
        return synthesise_case(
            members,
            planes,
            volumes.modalities,
            targets,
            fuse=fuse,
            batch_size=batch_size,
            precision=precision,
            clock=clock,
        )

    return synthesise


def nothing_finished(task: Task) -> None:
    """Every task is to be done, whatever an earlier run left."""


def open_manifest(
    output: Path,
    members: Sequence[Member],
    device: torch.device,
    batch_size: int | None,
    precision: Precision,
    overwrite: bool,
    fusion: str | None = None,
) -> Manifest:
    """The output folder, made if need be, and its manifest."""
    output.mkdir(parents=True, exist_ok=True)
    identity: dict[str, Any] = {"members": describe_members(members), "precision": precision}
    if fusion is not None:
        identity["fusion_sha256"] = sha256_of(fusion)
    details = {
        "weights": sorted({str(m.folder) for m in members}),
        "fusion": fusion or "mean",
        "batch_size": batch_size or default_batch_size(device),
        **environment(1, str(device)),
    }
    return Manifest.open(output, identity, details, overwrite)


def line(result: CaseResult) -> str:
    """One case, for people."""
    if result.status in ("failed", "skipped"):
        return f"{result.case}: {result.status}: {result.reason}"
    what = f"{result.case}: {', '.join(result.targets)} from {', '.join(result.available)}"
    if result.status == "kept":
        return f"{what}: kept, made by an earlier run"
    stages = ", ".join(f"{name} {result.seconds[name]:.1f}" for name in STAGES)
    return f"{what}: {sum(result.seconds.values()):.1f} s ({stages})"
