"""All measurements of docs/explanation/performance.md on this machine, the most important ones first.

    python benchmarks/measure.py --out OUT [--seconds 540] [--toy] [--only thesis ...]
    python benchmarks/measure.py --out OUT --fill docs/explanation/performance.md

    rows(device) --one process each--> OUT/rows.jsonl --table--> documentation

A row is written when it ends, and is not measured again: the same command continues after an interruption. Rows that failed are
tried once more after all others. A row that exceeds the remaining time is ended. `--toy`: small sizes, to see that everything
runs. `--fill` replaces the table between the marks of a Markdown file; rows without a measurement have empty cells.
The output of each row is in OUT/logs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.common.files import atomic_path
from brasyn_dist.common.processes import kill_tree

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"thesis": "published/r3", "recommended": "recommended"}
"""Names in tables -> configurations."""
TOY_NETWORKS = {
    "published/r3": (
        "generator.image_size=48", "generator.base_channels=8", "generator.heads=2", "generator.transformer_layers=1",
        "discriminator.image_size=48", "discriminator.base_channels=8", "runtime.threads=1",
    ),
    "recommended": (
        "generator.image_size=48", "generator.widths=[16,16]", "generator.full_channels=16", "augmentation.crop=null",
        "runtime.threads=1",
    ),
}  # fmt: skip
MARKS = ("<!-- measure.py: begin -->", "<!-- measure.py: end -->")
LEAST_SECONDS = 15
"""A row is not begun with less time than this."""
BEST = "BEST"
"""In a command: the fastest variant of this network so far."""


@dataclass(frozen=True)
class Row:
    """One measurement: a command of this Python, in a process of its own."""

    name: str
    command: tuple[str, ...]
    seconds: float = 120
    """Time limit."""


def rows(cuda: bool, toy: bool) -> list[Row]:
    """All measurements for a device, in order of importance."""
    networks = NETWORKS
    batch, repeats = (16, 5) if cuda else (4, 1)
    timing = ("--batch", str(batch), "--repeats", str(repeats), "--warmup", "3" if cuda else "1")

    def update(network: str, variant: str, *more: str) -> Row:
        sizes = TOY_NETWORKS[networks[network]] if toy else ()
        command = ("benchmarks/bench_train.py", "--config", networks[network], "--variant", variant, *timing)
        return Row(f"{network}: {variant}", (*command, *more, *sizes), 120 if cuda else 3600)

    def case(network: str, precision: str) -> Row:
        sizes = ("--shape", "48", "48", "40", *TOY_NETWORKS[networks[network]]) if toy else ()
        command = ("benchmarks/bench_infer.py", "--config", networks[network], "--precision", precision)
        return Row(f"{network}: case in {precision}", (*command, *sizes), 90 if cuda else 3600)

    def profile(network: str) -> Row:
        row = update(network, BEST, "--profile", f"OUT/profile-{network}")
        return Row(f"{network}: profile", row.command, row.seconds)

    tests = ("tests/test_cuda.py", "tests/data/loading/test_loader.py", "-k", "cuda or pinned")
    small = (
        "--gli",
        "2",
        "--met",
        "1",
        "--kill-at",
        "10",
        "training.max_steps=20",
        "checkpoint.every_steps=10",
    )
    storage = ("--slices", "64", "--side", "48") if toy else ()
    first = [
        Row("ceilings", ("benchmarks/ceilings.py",), 60 if cuda else 3600),
        Row("tests", ("-m", "pytest", "-q", *tests), 150 if cuda else 3600),
    ]
    variants = ["plain", "default", "together"] if cuda else ["plain", "default"]
    main = [update(network, variant) for variant in variants for network in networks]
    cases = [case(network, "no") for network in networks]
    stream = Row("stream", ("benchmarks/bench_storage.py", *storage), 120 if cuda else 3600)
    if not cuda:
        shard = ("--workers", "1", *(("--count", "1") if toy else ()))
        checkpoint = ("--width", "8", "--repeats", "1") if toy else ()
        readers = (
            ("--slices", "64", "--rounds", "1", "--threads", "1", "--workers", "0") if toy else ("--cold",)
        )
        others = [
            Row("loaders", ("benchmarks/bench_stream.py", "--out", "OUT", *readers), 3600),
            Row("sharding", ("benchmarks/bench_shard.py", "--out", "OUT", *shard), 3600),
            Row("checkpoints", ("benchmarks/bench_checkpoint.py", "--out", "OUT", *checkpoint), 3600),
        ]
        return [*first, *main, *cases, stream, *[profile(network) for network in networks], *others]
    single = ["tf32", "bf16", "channels-last", "compiled", "fast", "grouped"]
    combined = ["together, eager", "together, grouped", "together, recomputed"]
    return [
        *first, *main, *[case(network, "bf16") for network in networks], *cases,
        *[profile(network) for network in networks], stream,
        Row("all stages", ("-m", "brasyn_dist", "demo", "--out", "OUT/demo", *small), 180),
        *[update(network, variant) for network in networks for variant in (*combined, *single)],
    ]  # fmt: skip


def measure(pending: list[Row], out: Path, seconds: float) -> list[str]:
    """Measure the rows that have no result yet. Returns the names of those that are left."""
    end, file = time.monotonic() + seconds, out / "rows.jsonl"
    before = read(file)
    tried = {row["row"] for row in before}
    pending = [row for row in pending if row.name not in results(before)]
    (out / "logs").mkdir(parents=True, exist_ok=True)
    left = []
    for row in sorted(pending, key=lambda row: row.name in tried):
        remaining = end - time.monotonic()
        if remaining < LEAST_SECONDS:
            left.append(row.name)
            continue
        print(f"{time.strftime('%H:%M:%S')}  {row.name}", flush=True)
        with file.open("a") as lines:
            lines.write(json.dumps(run(row, out, min(remaining, row.seconds))) + "\n")
    return left


def run(row: Row, out: Path, limit: float) -> dict[str, Any]:
    """Run one row; its line of rows.jsonl."""
    network = row.name.split(":")[0]
    places = {BEST: best_variant(read(out / "rows.jsonl"), network)}
    command = [places.get(word, word.replace("OUT/", f"{out}/")) for word in row.command]
    command = [str(out) if word == "OUT" else word for word in command]
    log, begun = (
        out / "logs" / f"{row.name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.txt",
        time.time(),
    )
    line: dict[str, Any] = {"row": row.name, "command": command, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    with log.open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=output, stderr=output, env=environment()
        )
        try:
            status = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
            status = "ended after its time"
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    try:
        result = json.loads(last)
    except ValueError:
        result = {"output": last[:300]}
    line |= {"status": status, "wall_seconds": round(time.time() - begun, 1), "result": result}
    print(
        f"          {status}, {line['wall_seconds']} s" + (f": {last[:200]}" if status != "done" else ""),
        flush=True,
    )
    return line


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def read(file: Path) -> list[dict[str, Any]]:
    """Lines of rows.jsonl; a last line that is incomplete is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def results(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Result of each row that is done."""
    return {line["row"]: line["result"] for line in lines if line["status"] == "done"}


def best_variant(lines: list[dict[str, Any]], network: str) -> str:
    """The variant with the shortest update."""
    updates = [r for name, r in results(lines).items() if name.startswith(f"{network}: ") and "variant" in r]
    return min(updates, key=lambda r: r["seconds"])["variant"] if updates else "default"


def table(wanted: list[Row], lines: list[dict[str, Any]]) -> str:
    """Markdown: one line for each update and each case; empty cells where nothing was measured."""
    done = results(lines)
    where = done.get("ceilings")
    text = "Not measured yet."
    if where:
        rates = ", ".join(
            f"{k} {where[f'{k}_operations_per_second'] / 1e12:.4g}" for k in ("fp32", "tf32", "bf16")
        )
        day = next(line["time"] for line in lines if line["row"] == "ceilings")[:10]
        text = (
            f"{where['device']}, torch {where['torch']}, {day}. Large matrix product, T operations per second: {rates}; "
            f"large copy {where['bytes_per_second'] / 1e9:.4g} GB/s."
        )
    head = [
        "row",
        "slices",
        "ms",
        "ratio to plain",
        "GiB",
        "predicted",
        "TFLOP/s",
        "of operations",
        "of larger ceiling",
    ]
    body = []
    for row in wanted:
        result = done.get(row.name, {})
        if "bench_train" in row.command[0] and "--profile" not in row.command:
            plain = done.get(f"{row.name.split(':')[0]}: plain")
            body.append([row.name, *update_cells(result, plain)])
        elif "bench_infer" in row.command[0]:
            seconds = f"{1000 * result['seconds']:.0f}" if result else ""
            body.append([row.name, str(result.get("slices", "")), seconds, *[""] * 6])
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join([text, "", *("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))])


def update_cells(result: dict[str, Any], plain: dict[str, Any] | None) -> list[str]:
    """Cells of one update after its name."""
    if not result:
        return [""] * 8
    return [
        str(result["batch"]),
        f"{1000 * result['seconds']:.4g}",
        f"{plain['seconds'] / result['seconds']:.2f}" if plain else "",
        f"{result['peak_memory_gib']:.2f}",
        f"{result['predicted_gib']:.2f}",
        f"{result['operations'] / result['seconds'] / 1e12:.3g}",
        f"{result['share_of_operations_ceiling']:.0%}",
        f"{result['share_of_larger_ceiling']:.0%}",
    ]


def fill(page: Path, text: str) -> None:
    """Replace what is between the marks of a page."""
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="START", help="rows whose names start with one of these")
    parser.add_argument(
        "--fill", type=Path, metavar="PAGE", help="write the table of a GPU into a Markdown page"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    if options.fill:
        fill(options.fill, table(rows(cuda=True, toy=False), read(out / "rows.jsonl")))
        return 0
    import torch

    wanted = rows(torch.cuda.is_available(), options.toy)
    if options.only:
        wanted = [row for row in wanted if row.name.startswith(tuple(options.only))]
    left = measure(wanted, out, options.seconds)
    failed = [row.name for row in wanted if row.name not in (*results(read(out / "rows.jsonl")), *left)]
    print(
        f"left: {', '.join(left) or 'none'}; failed: {', '.join(failed) or 'none'}; results: {out / 'rows.jsonl'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
