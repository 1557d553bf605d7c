"""Synthesise the missing modalities of cases.

    brasyn infer --weights RUN_OR_EXPORT --input DIR --output DIR

Finds the missing modalities of every case folder in --input, synthesises each from the available ones, and
writes <case>-<modality>.nii.gz with the geometry, orientation and number type of the inputs, and
manifest.json. To continue after an interruption, run the same command again: finished volumes are verified
and kept.

Processes with the same command share the cases: `--workers 4`, `torchrun`, `accelerate launch`, `srun`, the
tasks of a job array, or two terminals. The unfinished case of a killed process is taken over by another one.
Exit status: 0 all done, 1 a case failed (all others are done), 2 wrong usage, 75 stopped by a signal. With a
launcher, the first process of each node lists the failures and has this status.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from brasyn_dist.cli.command import Command, Precision, View
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.workqueue.worker_processes import worker_processes


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """Options of `brasyn infer`."""

    weights: Annotated[
        list[str],
        Option(
            "--weights",
            metavar="W...",
            help="Run or export folder; several as FOLDER:VIEW; or a YAML file of members.",
        ),
    ]
    input: Annotated[Path, Option("--input", help="Folder of case folders.")]
    output: Annotated[Path, Option("--output", help="Folder for the volumes and manifest.json.")]
    views: Annotated[
        list[View] | None,
        Option("--views", help="Views to run over.  [default: all that a model was trained on]"),
    ] = None
    any_view: Annotated[bool, Option("--any-view", help="Allow views that a model was not trained on.")] = (
        False
    )
    fusion: Annotated[
        Path | None, Option("--fusion", help="File of `brasyn fit-fusion`.  [default: the mean]")
    ] = None
    tta: Annotated[
        bool, Option("--tta", help="Average with the result of mirrored slices, for twice the time.")
    ] = False
    modality: Annotated[
        list[str] | None,
        Option("--modality", metavar="M...", help="Synthesise exactly these, as if no case had them."),
    ] = None
    batch_size: Annotated[
        int | None,
        Option("--batch-size", min=1, help="Slices at a time.  [default: 16 on GPUs, 4 on CPUs]"),
    ] = None
    precision: Annotated[Precision, Option("--precision", help="Autocast.")] = "no"
    device: Annotated[
        str | None, Option("--device", help="Such as cpu or cuda:1.  [default: a GPU if there is one]")
    ] = None
    workers: Annotated[
        int, Option("--workers", min=1, help="Processes that share the cases, each with its own GPU.")
    ] = 1
    lease: Annotated[
        float | None,
        Option(
            "--lease",
            metavar="SECONDS",
            help="Heartbeat timeout after which another process takes over a case.  [default: 60]",
        ),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Synthesise finished volumes again.")] = False
    round: Annotated[bool, Option("--round", help="Round intensities that are not integers.")] = False
    assume: Annotated[
        str | None,
        Option(
            "--assume",
            metavar="AXES",
            help="Order of the axes, such as LPS, of volumes whose headers state none.  [default: LAS]",
        ),
    ] = None
    strict: Annotated[
        bool,
        Option(
            "--strict",
            help="Refuse cases that are not skull-stripped, not at 1 mm, or whose headers leave something "
            "open.",
        ),
    ] = False


def run(options: InferOptions) -> int:
    """Start the worker processes and take part; the exit status."""
    with (
        ending_on_signals(STOPPED),
        worker_processes(options.workers, launch_context(), infer, options) as context,
    ):
        return infer(options, context)


def infer(options: InferOptions, context: LaunchContext) -> int:
    """Work of one process; the exit status."""
    from brasyn_dist.inference.api import infer_batch

    results = infer_batch(
        options.input,
        options.output,
        weights=options.weights,
        views=options.views and [str(view) for view in options.views],
        any_view=options.any_view,
        fusion=options.fusion,
        tta=options.tta,
        modalities=options.modality or (),
        batch_size=options.batch_size,
        precision=options.precision,
        device=options.device,
        overwrite=options.overwrite,
        round_values=options.round,
        assume=options.assume,
        strict=options.strict,
        context=context,
        lease=options.lease,
        say=lambda text: print(text, flush=True),
    )
    if context.local_rank > 0:
        # The first process of a node reports for all; a launcher ends it when another one fails earlier.
        return 0
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"failed: {result.case}: {result.reason}", file=sys.stderr, flush=True)
    manifest = options.output / "manifest.json"
    print(f"{len(results) - len(failed)} of {len(results)} cases in order; see {manifest}")
    return 1 if failed else 0


main = Command("infer", InferOptions, run, lists=("--weights", "--views", "--modality"))
