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

from brasyn_dist.cli.command import Command, ModelOptions, SharingOptions
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.workqueue.worker_processes import worker_processes


@dataclass(frozen=True, kw_only=True)
class InferOptions(SharingOptions, ModelOptions):
    """Options of `brasyn infer`."""

    input: Path
    """Folder of case folders."""
    output: Path
    """Folder for the volumes and manifest.json."""
    fusion: Path | None = None
    """File of `brasyn fit-fusion`.  [default: the mean]"""
    refiner: Path | None = None
    """Run or export folder of a second stage, which refines the volumes of --weights."""
    tta: bool = False
    """Average with the result of mirrored slices, for twice the time."""
    modality: Annotated[list[str] | None, Option(metavar="M...")] = None
    """Synthesise exactly these, as if no case had them."""
    overwrite: bool = False
    """Synthesise finished volumes again."""
    round: bool = False
    """Round intensities that are not integers."""
    assume: Annotated[str | None, Option(metavar="AXES")] = None
    """Order of the axes, such as LPS, of volumes whose headers state none.  [default: LAS]"""
    strict: bool = False
    """Refuse cases that are not skull-stripped, not at 1 mm, or whose headers leave something open."""


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
        views=options.views,
        any_view=options.any_view,
        fusion=options.fusion,
        refiner=options.refiner,
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
