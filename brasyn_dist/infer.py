"""Synthesise what is missing: `python -m brasyn_dist.infer --weights RUN_OR_EXPORT --input DIR --output DIR`.

Finds the missing modalities of every case folder in --input, makes each from those that are there, and writes
<case>-<modality>.nii.gz with the geometry, orientation and number type of the inputs, and manifest.json. Run it again to go
on after an interruption: finished volumes are verified and kept.

Processes that are given the same command share the cases, each takes the next when it is free: `--workers 4`, `torchrun`,
`accelerate launch`, `srun`, the tasks of a job array, or two terminals. What a killed one had begun, another does.
Exit status: 0 all done, 1 something failed (everything else is done), 2 wrong usage, 75 stopped by a signal. Of a launcher's
processes the first of each node lists what failed and has its status.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.brats import MODALITIES, VIEWS
from brasyn_dist.common.launch_environment import LaunchContext, launch_context
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.processes import STOPPED, ending_on_signals
from brasyn_dist.errors import BrasynError
from brasyn_dist.workqueue.worker_processes import worker_processes


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.infer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--weights",
        nargs="+",
        required=True,
        metavar="W",
        help="run or export folder; several as FOLDER:VIEW; or a YAML file of members",
    )
    add("--input", type=Path, required=True, help="folder of case folders")
    add("--output", type=Path, required=True, help="folder to write to")
    add(
        "--views",
        nargs="+",
        choices=VIEWS,
        help="run over these (default: all that a model was trained on)",
    )
    add("--any-view", action="store_true", help="allow views that a model was not trained on")
    add(
        "--fusion", type=Path, help="file of brasyn_dist.fit_fusion (default: the mean over models and views)"
    )
    add(
        "--modality",
        nargs="+",
        choices=MODALITIES,
        default=(),
        help="make exactly these, as if they were missing everywhere",
    )
    add("--batch-size", type=int, help="slices at a time (default: 16 on GPUs, 4 on CPUs)")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast")
    add("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add("--workers", type=int, default=1, help="processes to share the cases, each with its own GPU")
    add(
        "--lease",
        type=float,
        metavar="SECONDS",
        help="without a sign of life for so long, a process' cases are given to others (default: 60)",
    )
    add("--overwrite", action="store_true", help="make finished volumes anew")
    add("--round", action="store_true", help="round intensities that are not whole numbers")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    options = parser().parse_args(arguments)
    for name in ("batch_size", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser().error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        with (
            ending_on_signals(STOPPED),
            worker_processes(options.workers, launch_context(), infer, options) as context,
        ):
            return infer(options, context)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def infer(options: argparse.Namespace, context: LaunchContext) -> int:
    """One process' part of the work; the exit status."""
    # torch and the rest of the imports take seconds, which `--help` and wrong usage need not wait for.
    from brasyn_dist.inference.api import infer_batch

    results = infer_batch(
        options.input,
        options.output,
        weights=options.weights,
        views=options.views,
        any_view=options.any_view,
        fusion=options.fusion,
        modalities=options.modality,
        batch_size=options.batch_size,
        precision=options.precision,
        device=options.device,
        overwrite=options.overwrite,
        round_values=options.round,
        context=context,
        lease=options.lease,
        say=lambda text: print(text, flush=True),
    )
    if context.local_rank > 0:
        return 0  # the first process of the node speaks for all; a launcher would end it when another fails before
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"failed: {result.case}: {result.reason}", file=sys.stderr, flush=True)
    print(
        f"{len(results) - len(failed)} of {len(results)} cases in order; see {options.output / 'manifest.json'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
