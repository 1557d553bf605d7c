"""Synthesis from Python: `infer_single` for the files of one case, `infer_batch` for a folder of cases.

import brasyn_dist
brasyn_dist.infer_single(t1c="1.nii.gz", t1n="2.nii.gz", t2w="3.nii.gz", output="4.nii.gz", weights="runs/r8")
brasyn_dist.infer_batch("cases/", "predictions/", weights="runs/r8")
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from brasyn_dist.brats import PREDICTIONS_MANIFEST, Case, modality_of, prediction_name
from brasyn_dist.common.files import make_folder, remove_abandoned, sha256_of
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.progress import Progress
from brasyn_dist.common.provenance import environment
from brasyn_dist.data.case_folders import find_cohorts
from brasyn_dist.data.nifti import check_axes
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.inference.case_job import CaseJob, ReadOptions, run_jobs
from brasyn_dist.inference.case_requests import (
    CaseRecord,
    CaseRequest,
    best_records,
    failed_record,
    plan_requests,
)
from brasyn_dist.inference.ensemble import (
    Ensemble,
    Weights,
    choose_device,
    load_ensemble,
    load_inference,
    own_device,
)
from brasyn_dist.inference.fusion import describe_members
from brasyn_dist.inference.manifest import Manifest
from brasyn_dist.inference.synthesis import STAGES, Precision, StageTimer, default_batch_size
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.workqueue.queue import MAXIMUM_DEATHS, WorkQueue

PathLike = Path | str


def infer_single(
    *,
    output: PathLike,
    weights: Weights,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
    refiner: PathLike | None = None,
    tta: bool = False,
    batch_size: int | None = None,
    precision: Precision = "no",
    device: str | None = None,
    round_values: bool = False,
    assume: str | None = None,
    strict: bool = False,
    **inputs: PathLike | None,
) -> dict[str, Path]:
    """Synthesise every modality of one case that is not given from those that are given.

    `inputs` are the files of the case by the names of the model's modalities, such as `t1c=` and `t2w=` for
    BraTS; None: not given. Existing files are replaced.

    `output` is the file to write (.nii.gz or .nii), if one modality is missing. Otherwise, or without such an
    ending, it is the folder for `<case>-<modality>.nii.gz`, named after the first input. The other arguments
    are those of `infer_batch`.

    Returns:
        The path of each written modality.

    Raises:
        DataError: A file cannot be used.
        ConfigError: The arguments contradict each other.
        CheckpointError: The weights are not intact.
    """
    where = choose_device(device, precision)
    config = load_inference(weights, views, any_view, fusion, tta, refiner)
    ensemble = load_ensemble(config, where, batch_size, precision)
    files = {name: Path(str(path)) for name, path in inputs.items() if path is not None}
    request = single_request(files, Path(output), ensemble.modality_set)
    for path in request.outputs.values():
        make_folder(path.parent)
    reading = ReadOptions(round_values, check_axes(assume), strict)
    job = CaseJob(request, StageTimer(where)).read(options=reading).synthesise(ensemble).write()
    if job.record is None or job.record.status == "failed":
        raise DataError(job.record.reason if job.record else "")
    return request.outputs


def infer_batch(
    input: PathLike,
    output: PathLike,
    *,
    weights: Weights,
    views: Sequence[str] | None = None,
    any_view: bool = False,
    fusion: PathLike | None = None,
    refiner: PathLike | None = None,
    tta: bool = False,
    modalities: Sequence[str] = (),
    batch_size: int | None = None,
    precision: Precision = "no",
    device: str | None = None,
    overwrite: bool = False,
    round_values: bool = False,
    assume: str | None = None,
    strict: bool = False,
    context: LaunchContext | None = None,
    lease: float | None = None,
    say: Callable[[str], None] = print,
) -> list[CaseRecord]:
    """Synthesise the missing modalities of every case folder below `input`.

    Writes `output`/`<case>-<modality>.nii.gz` and manifest.json. Processes with the same arguments share the
    cases, however they were started (docs/explanation/work-queue.md). The failure of a case does not affect
    the others.

    Args:
        input: Folder of case folders.
        output: Folder to write to.
        weights: Run folder or export folder; or several `FOLDER:VIEW`; or a YAML file of members
            (inference/ensemble.py).
        views: Views to run over; default: all that a model was trained on.
        any_view: Allow views that a model was not trained on.
        fusion: File of `brasyn fit-fusion`; default: the mean over models and views.
        refiner: Run folder or export folder of a second stage, which refines the fused volume.
        tta: Average with the result of mirrored slices, for twice the time (test-time augmentation).
        modalities: Synthesise exactly these, as if they were missing in every case; default: what is missing.
        batch_size: Slices in a batch; default: by device.
        precision: `no`, `bf16` or `fp16` (autocast).
        device: Such as `cpu` or `cuda:1`; default: a GPU if there is one.
        overwrite: Synthesise again what an earlier run has finished, instead of verifying and keeping it.
        round_values: Round intensities that are not whole numbers, instead of refusing them.
        assume: Order of the axes, such as `LPS`, of volumes whose headers state none; default: LAS, as NIfTI
            defines it.
        strict: Refuse cases that are not skull-stripped, not at the spacing of the training, or whose headers
            leave something open. Default: they are synthesised, and their records have notes.
        context: Position of this process on its node; default: from the launcher's or Slurm's environment
            variables.
        lease: Heartbeat timeout in seconds, after which another process takes over a case; default: 60.
        say: Takes lines of progress.

    Returns:
        One record for each case, by name, also of the cases that other processes have done.

    Raises:
        ConfigError: The options contradict each other, the output folder belongs to other options, or it has
            volumes in the way of results.
        CheckpointError: The weights are not intact.
        DataError: The input holds no case.
    """
    output, context = Path(output), context or launch_context()
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    reading = ReadOptions(round_values, check_axes(assume), strict)
    where = choose_device(device or own_device(context), precision)
    config = load_inference(weights, views, any_view, fusion, tta, refiner)
    ensemble = load_ensemble(config, where, batch_size, precision)
    modality_set = ensemble.modality_set
    check_modalities(modalities, modality_set)
    cases, problems = find_cohorts([Path(input)], modality_set)
    planned, settled = plan_requests(cases, output, modalities)
    settled += [CaseRecord(problem.folder.name, "failed", reason=problem.reason) for problem in problems]
    requests = {request.case.name: request for request in planned}

    manifest = describe_run(Path(input), output, ensemble, where, config.fusion)
    if reading.assume is not None:
        manifest.identity["assume"] = reading.assume
    make_folder(output)
    # A run writes its manifest before its first volume: volumes without a manifest are not results of a run.
    foreign = [path for request in planned for path in request.outputs.values() if path.exists()]
    manifest.read(overwrite)
    if foreign and manifest.new and not overwrite:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        raise ConfigError(
            f"{foreign[0]}{more}: in the way of a result; {output} has no {PREDICTIONS_MANIFEST} of a run; "
            "give another --output, or --overwrite to replace it"
        )
    targets = {name: request.targets for name, request in requests.items()}
    queue = WorkQueue(
        output,
        sorted(requests),
        basis=manifest.identity,
        settings=[
            batch_size,
            round_values,
            strict,
            overwrite,
            targets,
            sorted(record.case for record in settled),
        ],
        job=context.job,
        details=manifest.details,
        lease=lease,
    )

    def store(record: CaseRecord) -> None:
        if record.status != "kept":
            record = replace(record, worker=queue.name)
        count = queue.record(record.case, record.to_dict())
        progress.say(f"{count}/{len(requests)} {progress_line(record)}", say)
        progress.reach(count)

    # Every case is a line, so that a bar is needed on a terminal only.
    progress = Progress("infer", len(requests), hidden=context.local_rank > 0, lines=0)
    with queue, progress:
        manifest.read(overwrite)
        if queue.opened or manifest.new:
            manifest.save(finished=False)
        if queue.opened:
            for record in settled:
                say(progress_line(record))
        earlier = {} if overwrite else manifest.records | best_records(queue.interrupted_records())
        jobs = (
            CaseJob(
                requests[name],
                StageTimer(where),
                given_up_record(requests[name]) if queue.given_up(name) else None,
            )
            for name in queue
        )
        run_jobs(jobs, ensemble, store, earlier, reading, ensemble.predict_scales)
        if queue.claim_merge():
            manifest.records |= {record.case: record for record in settled} | best_records(queue.records)
            manifest.workers |= queue.worker_details()
            remove_abandoned(output, {path.name for request in planned for path in request.outputs.values()})
            manifest.save(finished=True)
            queue.finish()
        else:
            say("the other processes of this job have finished the rest")
            manifest.read()
    names = sorted([*requests, *(record.case for record in settled)])
    if not manifest.finished or any(name not in manifest.records for name in names):
        raise DataError(f"{output}: another command has taken over the work; run the same command again")
    return [manifest.records[name] for name in names]


def single_request(files: dict[str, Path], output: Path, modality_set: ModalitySet) -> CaseRequest:
    """The request that completes one case from `files` (by modality).

    Raises ConfigError if none or all are given.
    """
    names = modality_set.modalities
    targets = tuple(m for m in names if m not in files)
    if not targets or not files or set(files) - set(names):
        raise ConfigError(
            f"give one to {len(names) - 1} of {', '.join(names)}: those not given are synthesised"
        )
    first = next(iter(files.values()))
    named = modality_of(first, modality_set)
    case = Case(
        named[0] if named else first.name.split(".")[0], first.parent, files, modality_set=modality_set
    )
    if output.name.lower().endswith((".nii", ".nii.gz")):
        if len(targets) > 1:
            raise ConfigError(f"{output}: {', '.join(targets)} are missing, so `output` must be a folder")
        return CaseRequest(case, case.available, {targets[0]: output})
    return CaseRequest(case, case.available, {m: output / prediction_name(case.name, m) for m in targets})


def check_modalities(names: Sequence[str], modality_set: ModalitySet) -> None:
    """Raise ConfigError for a name that the model does not know."""
    unknown = sorted(set(names) - set(modality_set.modalities))
    if unknown:
        raise ConfigError(f"unknown modality {unknown[0]}; choose from {', '.join(modality_set.modalities)}")


def describe_run(
    input: Path, output: Path, ensemble: Ensemble, device: torch.device, fusion: str | None
) -> Manifest:
    """The manifest of this run, without records."""
    members = ensemble.members
    identity: dict[str, Any] = {"members": describe_members(members), "precision": ensemble.options.precision}
    if ensemble.options.mirror:
        identity["tta"] = True
    if ensemble.refiner is not None:
        identity["refiner_sha256"] = ensemble.refiner.weights_sha256
    if fusion is not None:
        identity["fusion_sha256"] = sha256_of(fusion)
    details = {
        "input": str(input.resolve()),
        "weights": sorted({str(m.folder) for m in members}),
        "fusion": fusion or "mean",
        **({"refiner": str(ensemble.refiner.folder)} if ensemble.refiner else {}),
        "batch_size": ensemble.options.batch_size or default_batch_size(device),
        **environment(1, str(device)),
    }
    return Manifest(output, identity, details, ensemble.modality_set)


def given_up_record(request: CaseRequest) -> CaseRecord:
    """The record of a case that has killed several workers."""
    reason = (
        f"{request.case.folder}: {MAXIMUM_DEATHS} processes were killed or stopped while they processed it "
        "(out of memory?); check the case, or run again with more memory"
    )
    return failed_record(request, reason)


def progress_line(record: CaseRecord) -> str:
    """One case for the console, and a line for each of its notes."""
    return "\n".join([_outcome(record), *(f"  {record.case}: {note}" for note in record.notes)])


def _outcome(record: CaseRecord) -> str:
    if record.status in ("failed", "skipped"):
        return f"{record.case}: {record.status}: {record.reason}"
    what = f"{record.case}: {', '.join(record.targets)} from {', '.join(record.available)}"
    if record.status == "kept":
        return f"{what}: kept, made by an earlier run"
    stages = ", ".join(f"{name} {record.seconds[name]:.1f}" for name in STAGES)
    return f"{what}: {sum(record.seconds.values()):.1f} s ({stages})"
