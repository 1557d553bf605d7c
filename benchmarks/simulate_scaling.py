"""How training would scale over GPUs and networks, simulated: no GPU is needed, and none was used.

    python benchmarks/simulate_scaling.py [--training thesis]                  the table in docs/how-to/slurm.md
    python benchmarks/simulate_scaling.py --hours                              the table in docs/explanation/performance.md
    python benchmarks/simulate_scaling.py --run runs/recommended               with the step time that a run measured

One update of one process, as brasyn_dist.training.gan_step does it, for each trained network:

    forward | backward, gradients ready one after another | step
                    bucket, bucket, ... each all-reduced as soon as it is full and the link is free

A slice takes max(operations / sustained operations per second, bytes / sustained bytes per second); an update takes so long for
the slices of one GPU, its operators' launches in addition, and what of the exchange the backward does not hide. An all-reduce over
n GPUs is a ring: every link carries 2 (n-1)/n of the bytes, in 2 (n-1) hops. The slowest link decides: the network between nodes
(which a ring enters once a node, so a node's GPUs do not share it), the bus inside.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 2**20
BUCKET_BYTES = 25 * MIB
"""Of DistributedDataParallel."""


@dataclass(frozen=True)
class Machine:
    """Assumptions: an L40S in bf16, compiled."""

    operations_per_second: float = 0.5 * 362e12
    """Half of the peak of bf16."""
    bytes_per_second: float = 0.75 * 864e9
    """Three quarters of the memory bandwidth."""
    unfused: float = 0.5
    """Part of the operators' bytes that remains after fusion."""
    operator_seconds: float = 10e-6
    """Launching one operator."""
    link_gbits: float = 100.0
    """Between nodes, each direction."""
    link_efficiency: float = 0.85
    """What of that arrives as gradients."""
    bus_gbits: float = 160.0
    """Between the GPUs of a node: PCIe 4.0 x16 without NVLink moves about 20 GB/s."""
    hop_seconds: float = 20e-6
    """Latency of one step of the ring."""
    gpus_per_node: int = 4


@dataclass(frozen=True)
class Network:
    """One that is trained: its parameters, its share of an update's computing."""

    parameters: float
    share: float = 1.0
    backward: float = 2 / 3
    """Part of that share that is the backward pass."""
    bytes_per_parameter: int = 4


@dataclass(frozen=True)
class Training:
    """A configuration, as `training/cost_model.py` counts an update of 16 slices in bf16."""

    config: str
    operations: float
    """Of one slice and update."""
    traffic: float
    """Bytes of one slice and update, unfused."""
    operators: float
    """Of an update."""
    networks: tuple[Network, ...]
    steps: int
    """Updates of a whole run with 1,489 cases."""
    micro_batch: int
    """Slices that fit at a time; only the last micro-batch's backward hides communication."""
    batch: int = 64
    """Slices, or patches, of a global batch of `--hours`."""

    def slice_seconds(self, machine: Machine) -> float:
        return max(
            self.operations / machine.operations_per_second,
            machine.unfused * self.traffic / machine.bytes_per_second,
        )


TRAININGS = {
    "recommended": Training(
        "recommended", 44.06e9, 0.928e9, 1194, (Network(27.43e6),), steps=100_000, micro_batch=64
    ),
    # R2 and R3: 158,867 slices x 10 epochs x 4 updates / 64; GLI only.
    "thesis": Training(
        "published/r3", 641.2e9, 13.05e9, 3660, (Network(80.0e6, 0.95), Network(4.5e6, 0.05)), steps=99_292, micro_batch=16
    ),
    # Tasks on volumes: patches of 128 x 128 x 32 in place of slices.
    "volume": Training(
        "volume", 471.9e9, 9.43e9, 1019, (Network(16.99e6),), steps=40_000, micro_batch=8, batch=8
    ),
    "refiner": Training(
        "refiner", 229.7e9, 75.9e9, 1426, (Network(23.8e3),), steps=40_000, micro_batch=8, batch=8
    ),
}  # fmt: skip


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


def update_seconds(
    training: Training, gpus: int, batch: int, machine: Machine, measured_slice: float | None = None
) -> float:
    """One update of a global batch of `batch` slices over `gpus`; the rank with most slices decides."""
    slices = -(-batch // gpus)
    each = measured_slice or training.slice_seconds(machine)
    last = slices % training.micro_batch or training.micro_batch
    seconds = (
        training.operators * machine.operator_seconds * -(-slices // training.micro_batch) + slices * each
    )
    for network in training.networks:
        backward = min(last, slices) * each * network.share * network.backward
        seconds += exposed_seconds(network, backward, gpus, machine)
    return seconds


def table(
    training: Training, gpu_counts: Sequence[int], links: Sequence[float], batches: Sequence[int],
    machine: Machine, measured_slice: float | None = None,
) -> str:  # fmt: skip
    """Markdown: slices a second and, of so many single GPUs, the part that is used."""
    head = ["GPUs", *[f"batch {b}, {link:g} Gb/s" for b in batches for link in links]]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for gpus in gpu_counts:
        cells = [str(gpus)]
        for batch in batches:
            alone = batch / update_seconds(training, 1, batch, machine, measured_slice)
            for link in links:
                seconds = update_seconds(
                    training, gpus, batch, replace(machine, link_gbits=link), measured_slice
                )
                cells.append(f"{batch / seconds:.0f} ({batch / seconds / alone / gpus:.0%})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hours_table(gpu_counts: Sequence[int], machine: Machine) -> str:
    """Markdown: predicted hours of whole trainings, with and without fusion."""
    lines = [
        f"| training | unfused part | {' | '.join(f'{n} L40S' for n in gpu_counts)} |",
        "|---|---:|" + "---:|" * len(gpu_counts),
    ]
    for name, training in TRAININGS.items():
        for unfused in (0.5, 1.0):
            of = replace(machine, unfused=unfused)
            batch = training.batch
            hours = [
                f"{training.steps * update_seconds(training, n, batch, of) / 3600:.1f}" if n <= batch else "-"
                for n in gpu_counts
            ]
            lines.append(f"| {name} | {unfused:g} | {' | '.join(hours)} |")
    return "\n".join(lines)


def measured_slice_seconds(run_dir: Path, training: Training, machine: Machine) -> float:
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
    fixed = training.operators * machine.operator_seconds
    return max(step - fixed, 0.0) / config["training"]["global_batch_size"]


def main(arguments: Sequence[str] | None = None) -> int:
    default = Machine()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--training", choices=list(TRAININGS), default="recommended")
    add("--hours", action="store_true", help="hours of whole trainings")
    add("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    add("--links", type=float, nargs="+", default=[25, 100, 400], metavar="GBITS")
    add("--batch", type=int, nargs="+", default=[64, 256], help="slices of the global batch")
    add("--run", type=Path, help="run folder (one process) whose step time is taken")
    add("--gpus-per-node", type=int, default=default.gpus_per_node)
    add("--bus-gbits", type=float, default=default.bus_gbits)
    options = parser.parse_args(arguments)
    machine = replace(default, gpus_per_node=options.gpus_per_node, bus_gbits=options.bus_gbits)
    training = TRAININGS[options.training]
    if options.hours:
        print(hours_table([1, 2, 4, 16], machine))
        return 0
    measured = None if options.run is None else measured_slice_seconds(options.run, training, machine)
    print(table(training, options.gpus, options.links, options.batch, machine, measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
