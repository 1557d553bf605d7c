"""Reading slices: ours against webdataset's own loader and a DataLoader over .npy files, in one run.

    python benchmarks/bench_stream.py --out results/ [--shards FOLDER] [--slices 960] [--rounds 3] [--threads 1 2 4 8] [--cold]

The same slices (of `--shards`, or of phantom cases made on the spot) are written in every form; each loader yields all of
them, shuffled, as batches of (32, 4, 240, 240) int16 planes and (32, 240, 240) uint8 labels. Every measurement is a
process of its own, rounds interleave the loaders, files are warm; with `--cold` each loader also reads once what the system
has been told to forget. CPU-seconds are those of the process and its children: what a loader takes away from everything
else on the node. Codecs are timed by themselves. Writes stream.json, stream.png.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import IMAGE_SIZE

BATCH = 32
SHUFFLE_BUFFER = 1000
"""As in webdataset's documentation."""
EPOCHS = 8
REFERENCE = "webdataset, npy tars, 0 workers"
Batches = Iterator[tuple[Any, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--shards", help="a shard set to take slices from; default: phantom cases")
    parser.add_argument("--slices", type=int, default=960, help="slices of the comparison")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, 2, os.cpu_count() or 1}))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--cold", action="store_true", help="also with files that are not in memory")
    parser.add_argument("--work", type=Path, help="keep the files of the comparison here; default: removed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker), options.work)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        prepare(work, options.shards, options.slices)
        result = summarise(run_all(work, options), machine()) | {"codecs": codec_rates(work)}
    (options.out / "stream.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    plot(result, options.out / "stream.png")
    return 0


# ---- the same slices in every form


def prepare(work: Path, shards: str | None, count: int) -> None:
    """Below `work`: shard sets `npy` and `npy.zst`, and `files` with one .npy a slice."""
    from brasyn_dist.data.format.codec import CODECS, DEFAULT_CODEC, decode_slice
    from brasyn_dist.data.loading.storage import open_shard_set

    if (work / DEFAULT_CODEC / "index.json").exists():
        return
    index = open_shard_set(shards or phantom_shards(work / "phantom", count))
    samples = read_all(index, count)
    samples = samples[
        : len(samples) // BATCH * BATCH
    ]  # whole batches, so that all loaders yield the same slices
    if not samples:
        raise SystemExit(f"{shards}: fewer than {BATCH} training slices")
    print(f"{len(samples)} slices", file=sys.stderr)
    for codec in CODECS:
        write_set(work / codec, index, samples, codec)
    (work / "files").mkdir()
    for number, sample in enumerate(samples):
        np.save(work / "files" / f"{number:06d}.npy", decode_slice(sample.payload, index.header.codec))


def phantom_shards(folder: Path, count: int) -> Path:
    """A shard set of axial slices of as many full-size phantom cases as it takes."""
    from brasyn_dist.data.sharding.options import ShardOptions
    from brasyn_dist.data.sharding.write_shards import make_shards
    from brasyn_dist.phantom import write_case

    for number in range(-(-count // 110)):
        print(f"phantom case {number} ...", file=sys.stderr, flush=True)
        write_case(folder / "cases", f"BraTS-GLI-{number:05d}-000", seed=number)
    make_shards(
        [folder / "cases"],
        folder / "shards",
        ShardOptions(views=("axial",), validation_fraction=0.0),
    )
    return folder / "shards"


def read_all(index: Any, count: int) -> list[Any]:
    """The first training slices, as EncodedSample."""
    from brasyn_dist.brats import VIEWS
    from brasyn_dist.data.format.tar_shards import EncodedSample
    from brasyn_dist.data.loading.reader import ShardFiles

    selection = index.select("train")
    files = ShardFiles(index.storage, index.shards)
    names = ("case", "view", "index", "tumour_pixels", "shard", "size", "offset")
    rows = zip(*(selection.column(name).tolist()[:count] for name in names))
    samples = []
    for case, view, number, tumour, shard, size, offset in rows:
        payload = bytearray(size)
        files.read(shard, offset, payload)
        samples.append(EncodedSample(case, VIEWS[view], number, tumour, bytes(payload)))
    files.close()
    return samples


def write_set(folder: Path, index: Any, samples: list[Any], codec: str) -> None:
    """The samples as a shard set of its own, eight shards."""
    from dataclasses import replace

    from brasyn_dist.data.format.codec import decode_slice, encode_slice
    from brasyn_dist.data.format.index import ShardIndex
    from brasyn_dist.data.format.tar_shards import write_shard

    def recoded(sample: Any) -> Any:
        planes = decode_slice(sample.payload, index.header.codec)
        return replace(sample, payload=encode_slice(planes, codec))

    folder.mkdir(parents=True)
    header = replace(index.header, codec=codec, shard_counts={"train": 8})
    entries = [write_shard(folder, header, "train", n, map(recoded, samples[n::8])) for n in range(8)]
    ShardIndex(header, tuple(entries)).save(folder)


# ---- the loaders: each yields all slices `EPOCHS` times, as (planes, labels) batches


def ours(work: Path, codec: str, threads: int) -> Batches:
    from brasyn_dist.data.loading.loader import SliceStream
    from brasyn_dist.data.loading.sampler import SampleOrder
    from brasyn_dist.data.loading.storage import open_shard_set

    selection = open_shard_set(work / codec).select("train")
    order = SampleOrder(0, selection.shard, BATCH)
    stop = EPOCHS * len(selection) // BATCH
    with SliceStream(selection, order, slice(0, BATCH), 0, stop, threads=threads) as stream:
        for batch in stream:
            yield batch.planes, batch.labels


def with_webdataset(work: Path, codec: str, workers: int) -> Batches:
    import webdataset
    import zstandard

    def unzip(key: str, data: bytes) -> Any:
        if not key.endswith(".zst"):
            return None
        return np.lib.format.read_array(io_of(zstandard.ZstdDecompressor().decompress(data)))

    urls = [str(path) for path in sorted((work / codec).glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100, seed=0)
        .shuffle(SHUFFLE_BUFFER)
        .decode(unzip)
        .to_tuple(codec, "json")
        .map_tuple(split_planes)
        .batched(BATCH, collation_fn=lambda rows: collate([row[0] for row in rows]))
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    for _ in range(EPOCHS):
        yield from loader


def with_files(work: Path, _: str, workers: int) -> Batches:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset):
        paths = sorted((work / "files").glob("*.npy"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            return split_planes(np.load(self.paths[number]))

    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        Files(), BATCH, shuffle=True, num_workers=workers, collate_fn=collate, generator=generator
    )
    for _epoch in range(EPOCHS):
        yield from loader


def io_of(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def split_planes(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4, S, S) images and (S, S) labels of a slice, padded; what a stock loader's user has to write."""
    from brasyn_dist.preprocessing.slicing import pad_or_crop

    if array.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        array = pad_or_crop(array, (IMAGE_SIZE, IMAGE_SIZE))
    labels = array[4] if len(array) == 5 else np.zeros(array.shape[1:])
    return array[:4], labels.astype(np.uint8)


def collate(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Any, Any]:
    import torch

    planes, labels = zip(*rows)
    return torch.from_numpy(np.stack(planes)), torch.from_numpy(np.stack(labels))


LOADERS: dict[str, Callable[[Path, str, int], Batches]] = {
    "ours": ours, "webdataset": with_webdataset, "DataLoader": with_files
}  # fmt: skip


def variants(options: argparse.Namespace) -> list[dict[str, Any]]:
    stock = [("webdataset", "npy"), ("webdataset", "npy.zst"), ("DataLoader", "npy")]
    found = [
        {"loader": loader, "codec": codec, "parallel": n} for loader, codec in stock for n in options.workers
    ]
    found += [
        {"loader": "ours", "codec": codec, "parallel": n}
        for codec in ("npy", "npy.zst")
        for n in options.threads
    ]
    found += [{**v, "cold": True} for v in found] if options.cold else []
    return [{"name": name_of(v), **v} for v in found]


def name_of(variant: dict[str, Any]) -> str:
    form = f"{variant['codec']} {'files' if variant['loader'] == 'DataLoader' else 'tars'}"
    kind = "threads" if variant["loader"] == "ours" else "workers"
    cold = ", cold" if variant.get("cold") else ""
    return f"{variant['loader']}, {form}, {variant['parallel']} {kind}{cold}"


# ---- measuring


def run_all(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants in turn, `rounds` times: what else the machine does meets each alike."""
    rows = []
    for turn in range(options.rounds):
        for variant in variants(options):
            print(f"round {turn + 1}: {variant['name']} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--work", str(work), "--worker", json.dumps(variant)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=True)
            rows.append({**variant, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def measure(variant: dict[str, Any], work: Path) -> dict[str, Any]:
    """One loader in this process: a first pass warms files and imports and checks the content, a second is timed."""
    import torch

    global EPOCHS
    torch.set_num_threads(1)
    cold = variant.get("cold", False)
    EPOCHS = 1 if cold else EPOCHS  # a second time, the files would be warm
    loader = LOADERS[variant["loader"]]
    content = sum(
        int(planes.long().sum()) + int(labels.long().sum())
        for planes, labels in loader(work, variant["codec"], variant["parallel"])
    )
    if cold:
        forget(work)
    before, started = cpu_seconds(), time.perf_counter()
    count = sum(len(planes) for planes, _ in loader(work, variant["codec"], variant["parallel"]))
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before
    size = bytes_per_slice(work, variant)
    return {
        "slices": count, "epochs": EPOCHS, "content": content, "seconds": wall, "cpu_seconds": cpu, "bytes_per_slice": size
    }  # fmt: skip


def forget(work: Path) -> None:
    """Drop all files of the comparison from the system's memory; what is not yet written is written before."""
    for path in work.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def codec_rates(work: Path, count: int = 64) -> dict[str, dict[str, float]]:
    """For each codec bytes a slice, and slices encoded and decoded in a CPU second; `.npz` is NumPy's own."""
    from functools import partial

    from brasyn_dist.data.format.codec import CODECS, SliceDecoder, encode_slice

    planes = [np.load(path) for path in sorted((work / "files").glob("*.npy"))[:count]]
    ways: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        codec: (partial(encode_slice, codec=codec), SliceDecoder(codec)) for codec in CODECS
    }
    ways["npz (deflate)"] = (to_npz, lambda data: np.load(io_of(data))["a"])
    rates = {}
    for name, (encode, decode) in ways.items():
        begun = time.process_time()
        payloads = [encode(p) for p in planes]
        encoded = time.process_time()
        for payload in payloads:
            decode(payload)
        rates[name] = {
            "bytes_per_slice": statistics.mean(map(len, payloads)),
            "encoded_per_cpu_second": len(planes) / (encoded - begun),
            "decoded_per_cpu_second": len(planes) / (time.process_time() - encoded),
        }
    return rates


def to_npz(planes: np.ndarray) -> bytes:
    buffer = io_of(b"")
    np.savez_compressed(buffer, a=planes)
    return buffer.getvalue()


def bytes_per_slice(work: Path, variant: dict[str, Any]) -> float:
    """Bytes that a loader reads from storage for one slice: whole tars, whole files, or payloads."""
    from brasyn_dist.data.loading.storage import open_shard_set

    if variant["loader"] == "DataLoader":
        return statistics.mean(path.stat().st_size for path in (work / "files").glob("*.npy"))
    index = open_shard_set(work / variant["codec"])
    if variant["loader"] == "webdataset":
        return sum(shard.size for shard in index.shards) / len(index)
    return float(index.columns["size"].mean())


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    uses = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def machine() -> dict[str, Any]:
    import torch
    import webdataset

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"cpu": cpu, **versions, "webdataset": webdataset.__version__}


def summarise(rows: list[dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds. Raises if a loader did not yield the same slices as the others."""
    contents = {(row["slices"] // row["epochs"], row["content"] // row["epochs"]) for row in rows}
    if len(contents) != 1:
        raise RuntimeError(f"the loaders did not yield the same slices: {contents}")
    summary = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        rates = [row["slices"] / row["cpu_seconds"] for row in mine]
        summary[name] = {
            "slices_per_second": statistics.median(row["slices"] / row["seconds"] for row in mine),
            "slices_per_cpu_second": statistics.median(rates),
            "slices_per_cpu_second_range": [min(rates), max(rates)],
            "bytes_per_slice": mine[0]["bytes_per_slice"],
        }
    return {"machine": where, "batch": BATCH, "loaders": summary, "rounds": rows}


def table(result: dict[str, Any]) -> str:
    reference = result["loaders"].get(REFERENCE, next(iter(result["loaders"].values())))
    lines = [
        f"{result['machine']}",
        f"{'loader':42}{'slices/s':>10}{'per CPU-s':>11}{'range':>14}{'bytes/slice':>13}{'ratio':>8}",
    ]
    for name, row in result["loaders"].items():
        low, high = row["slices_per_cpu_second_range"]
        ratio = row["slices_per_cpu_second"] / reference["slices_per_cpu_second"]
        lines.append(
            f"{name:42}{row['slices_per_second']:10.0f}{row['slices_per_cpu_second']:11.0f}"
            f"{f'{low:.0f}-{high:.0f}':>14}{row['bytes_per_slice']:13.0f}{ratio:8.1f}"
        )
    lines.append(f"ratio: slices per CPU-second, relative to {REFERENCE}")
    lines.append(f"{'codec':42}{'encodes/CPU-s':>14}{'decodes/CPU-s':>14}{'bytes':>10}")
    for name, row in result["codecs"].items():
        lines.append(
            f"{name:42}{row['encoded_per_cpu_second']:14.0f}{row['decoded_per_cpu_second']:14.0f}{row['bytes_per_slice']:10.0f}"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result["loaders"])[::-1]
    values = [result["loaders"][name]["slices_per_cpu_second"] for name in names]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1), layout="constrained")
    bars = axes.barh(names, values, color=["#3b6fb6" if n.startswith("ours") else "#b0b0b0" for n in names])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("slices per CPU-second (4 x 240 x 240 and labels, batches of 32, shuffled)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
