"""How training would scale over GPUs and networks, simulated: no GPU is needed, and none was used.

    python benchmarks/simulate_scaling.py                                      the table in docs/how-to/slurm.md
    python benchmarks/simulate_scaling.py --run runs/r3                        with the step time that a run measured
    python benchmarks/simulate_scaling.py --slice-ms 25 --links 100 --batch 256

One update of one process, as brasyn_dist.training.gan_step does it:

    generator:      forward | backward, gradients ready one after another | step
                                  bucket, bucket, ... each all-reduced as soon as it is full and the link is free
    discriminator:  forward | backward, buckets | step

An all-reduce over n GPUs is a ring: every link carries 2 (n-1)/n of the bytes, in 2 (n-1) hops. The slowest link decides: the
network between nodes (which a ring enters once a node, so a node's GPUs do not share it), the bus inside.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """Assumptions; every one is an option of the command line."""

    slice_seconds: float = 0.025
    """Computing one slice of one update on one GPU: 612 GFLOP (`--dry-run`) at 25 TFLOP/s sustained."""
    fixed_seconds: float = 0.040
    """Of an update, whatever the number of slices: launching kernels, optimisers, clipping, the agreement of ranks."""
    link_gbits: float = 100.0
    """Between nodes, each direction."""
    link_efficiency: float = 0.85
    """What of that arrives as gradients."""
    bus_gbits: float = 160.0
    """Between the GPUs of a node: PCIe 4.0 x16 without NVLink moves about 20 GB/s."""
    hop_seconds: float = 20e-6
    """Latency of one step of the ring."""
    gpus_per_node: int = 4
    micro_batch: int = 16
    """Slices that fit at a time; only the last micro-batch's backward hides communication."""


@dataclass(frozen=True)
class Network:
    """One of the two that are trained: bytes of its gradient, its share of an update's computing."""

    parameters: float
    share: float
    backward: float = 2 / 3
    """Part of that share that is the backward pass."""
    bytes_per_parameter: int = 4


GENERATOR = Network(80.0e6, 0.95)
DISCRIMINATOR = Network(4.5e6, 0.05)
BUCKET_BYTES = 25 * MIB
"""Of DistributedDataParallel."""


def allreduce_seconds(size: float, gpus: int, machine: Machine) -> float:
    """Ring all-reduce of `size` bytes over `gpus`, alone on its links."""
    if gpus == 1:
        return 0.0
    rates = [machine.bus_gbits] if min(gpus, machine.gpus_per_node) > 1 else []
    if gpus > machine.gpus_per_node:
        rates.append(machine.link_gbits * machine.link_efficiency)
    seconds = 8 * size / (min(rates) * 1e9)
    return 2 * (gpus - 1) / gpus * seconds + 2 * (gpus - 1) * machine.hop_seconds


def exposed_seconds(network: Network, backward_seconds: float, gpus: int, machine: Machine) -> float:
    """How long the step waits for gradients after a backward of `backward_seconds`.

    Buckets become ready evenly over the backward, each when its last gradient is there, and pass the link in that order.
    """
    size = network.parameters * network.bytes_per_parameter
    buckets = max(1, round(size / BUCKET_BYTES))
    each = allreduce_seconds(size / buckets, gpus, machine)
    done = 0.0
    for number in range(1, buckets + 1):
        done = max(done, backward_seconds * number / buckets) + each
    return done - backward_seconds if gpus > 1 else 0.0


def update_seconds(gpus: int, batch: int, machine: Machine) -> float:
    """One update of a global batch of `batch` slices over `gpus`; the rank with most slices decides."""
    slices = -(-batch // gpus)
    last = slices % machine.micro_batch or machine.micro_batch
    seconds = machine.fixed_seconds + slices * machine.slice_seconds
    for network in (GENERATOR, DISCRIMINATOR):
        backward = min(last, slices) * machine.slice_seconds * network.share * network.backward
        seconds += exposed_seconds(network, backward, gpus, machine)
    return seconds


def table(gpu_counts: Sequence[int], links: Sequence[float], batches: Sequence[int], machine: Machine) -> str:
    """Markdown: slices a second and, of so many single GPUs, the part that is used."""
    head = ["GPUs", *[f"batch {b}, {link:g} Gb/s" for b in batches for link in links]]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for gpus in gpu_counts:
        cells = [str(gpus)]
        for batch in batches:
            alone = batch / update_seconds(1, batch, machine)
            for link in links:
                speed = batch / update_seconds(gpus, batch, replace(machine, link_gbits=link))
                cells.append(f"{speed:.0f} ({speed / alone / gpus:.0%})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_slice_seconds(run_dir: Path, machine: Machine) -> float:
    """From the last performance line of a run on one process, its start-up left out."""
    import yaml

    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    processes = json.loads((run_dir / "environment.json").read_text())["processes"]
    if processes != 1:
        raise SystemExit(
            f"{run_dir} ran on {processes} processes: measure on one, communication is simulated here"
        )
    lines = map(json.loads, (run_dir / "performance.jsonl").read_text().splitlines())
    step = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line][-1]
    return max(step - machine.fixed_seconds, 0.0) / config["training"]["global_batch_size"]


def main(arguments: Sequence[str] | None = None) -> int:
    default = Machine()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    add("--links", type=float, nargs="+", default=[25, 100, 400], metavar="GBITS")
    add("--batch", type=int, nargs="+", default=[64, 256], help="slices of the global batch")
    add("--run", type=Path, help="run folder (one process) whose step time is taken")
    add("--slice-ms", type=float, default=1000 * default.slice_seconds)
    add("--fixed-ms", type=float, default=1000 * default.fixed_seconds)
    add("--gpus-per-node", type=int, default=default.gpus_per_node)
    add("--bus-gbits", type=float, default=default.bus_gbits)
    add("--link-efficiency", type=float, default=default.link_efficiency)
    add("--micro-batch", type=int, default=default.micro_batch)
    options = parser.parse_args(arguments)
    machine = replace(
        default,
        slice_seconds=options.slice_ms / 1000,
        fixed_seconds=options.fixed_ms / 1000,
        gpus_per_node=options.gpus_per_node,
        bus_gbits=options.bus_gbits,
        link_efficiency=options.link_efficiency,
        micro_batch=options.micro_batch,
    )
    if options.run is not None:
        machine = replace(machine, slice_seconds=measured_slice_seconds(options.run, machine))
    print(table(options.gpus, options.links, options.batch, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
