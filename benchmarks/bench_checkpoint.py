"""Checkpoints: how long training stands still for one, how long writing takes beside it, and how long a resume takes.

    python benchmarks/bench_checkpoint.py --out results/ [--width 64] [--folder SCRATCH] [--repeats 3]

Saves the real state (both networks, Adam's moments, the average) with the trainer's own saver. `stall` is the copy to host
memory, `write` what the thread does afterwards, `resume` finding, verifying and loading the newest checkpoint. A position is
one integer, so a resume at step 10 and one at step 1,000,000 read the same bytes: both are timed. Give --folder on the file
system that checkpoints would go to. In brackets CPU seconds of one thread, which say more where a machine is shared. Writes
checkpoint.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.common.provenance import environment
from brasyn_dist.config import load_config
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.training.checkpoint import CheckpointSaver, folder_name, newest_intact
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.state import TrainState

STEPS = (10, 1_000_000)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--width", type=int, default=64, help="base channels of both networks")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    config = load_config(
        None,
        [
            f"generator.base_channels={options.width}", f"discriminator.base_channels={options.width}",
            "runtime.threads=1",
        ],
    )  # fmt: skip
    distributed = Distributed(config.runtime)
    state = GanTask(config).build_state(distributed)
    take_a_step(state)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        rows = [measure(state, step, Path(scratch) / str(step), options.repeats) for step in STEPS]
    result = {"width": options.width, "rows": rows, "environment": environment(1, str(distributed.device))}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "checkpoint.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0


def take_a_step(state: TrainState) -> None:
    """Adam's moments exist from the first step on."""
    for network in state.networks.values():
        for parameter in network.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        network.optimizer.step()
        network.optimizer.zero_grad()


def measure(state: TrainState, step: int, root: Path, repeats: int) -> dict[str, Any]:
    """Medians at one position. The checkpoints must load, or this raises."""
    saver = CheckpointSaver(root, lambda: None)
    stall: list[tuple[float, float]] = []
    write: list[tuple[float, float]] = []
    resume: list[tuple[float, float]] = []
    for turn in range(repeats):
        with timed(stall):
            saver.save(step + turn, state.tensors(), {"step": step + turn})
        saver.wait()
        write.append((saver.write_seconds, 0.0))
        with timed(resume):
            checkpoint, passed_over = newest_intact(root)
            assert checkpoint is not None and not passed_over
            state.load(checkpoint)
        assert state.step == step + turn
    folder = root / folder_name(state.step)
    files = [path for path in folder.iterdir() if path.is_file()]
    return {
        "step": step,
        "bytes": sum(path.stat().st_size for path in files),
        "stall_seconds": median(stall, 0),
        "stall_cpu_seconds": median(stall, 1),
        "write_seconds": median(write, 0),
        "resume_seconds": median(resume, 0),
        "resume_cpu_seconds": median(resume, 1),
    }


@contextmanager
def timed(into: list[tuple[float, float]]) -> Iterator[None]:
    """Adds (wall seconds, CPU seconds of this thread)."""
    begun, begun_cpu = time.perf_counter(), time.thread_time()
    yield
    into.append((time.perf_counter() - begun, time.thread_time() - begun_cpu))


def median(times: list[tuple[float, float]], which: int) -> float:
    return statistics.median(t[which] for t in times)


def table(result: dict[str, Any]) -> str:
    lines = [f"{'at step':>10}{'GiB':>8}{'stall s':>18}{'write s':>10}{'resume s':>18}"]
    for row in result["rows"]:
        lines.append(
            f"{row['step']:>10}{row['bytes'] / 2**30:>8.2f}{row['stall_seconds']:>9.3f} ({row['stall_cpu_seconds']:6.3f})"
            f"{row['write_seconds']:>10.2f}{row['resume_seconds']:>9.2f} ({row['resume_cpu_seconds']:6.2f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
