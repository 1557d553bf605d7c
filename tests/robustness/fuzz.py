"""Damage volumes, shards, indices, checkpoints and manifests at random, and read them.

    python -m tests.robustness.fuzz [--count 2000] [--seed 0]

A finding is an exception other than BrasynError, a read of more than 20 s, or other values than before from a
damaged shard set or checkpoint, whose values are covered by checksums.
"""

import argparse
import collections
import json
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.nifti import read_labels, read_volume
from brasyn_dist.errors import BrasynError
from brasyn_dist.inference.manifest import read_manifest
from brasyn_dist.training.checkpoint import open_checkpoint, save_checkpoint
from tests.data.shard_sets import write_set
from tests.inference.small import write_subject

SECONDS = 20
NUMBERS = (b"0", b"-1", b"NaN", b"1e999", b"null", b"[]", b"{}", b'"x"', b"99999999999999999999")


def damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one of: flipped bits, zeros, cut off, a part repeated or removed, a number replaced."""
    if not data:
        return b"x"
    at, length = rng.randrange(len(data)), rng.randint(1, 64)
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at : at + length] + data[at:]
    if kind == 4:
        return data[:at] + data[at + length :]
    if kind == 5:  # headers are at the beginning
        at = rng.randrange(min(len(data), 400))
        return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at + 1 :]
    digits = [i for i, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    at = rng.choice(digits) if digits else at
    return data[:at] + rng.choice(NUMBERS) + data[at + 1 :]


def read_shards(path: Path) -> list[object]:
    """Everything that a training gets from a set."""
    index = open_shard_set(path.parent)
    found: list[object] = [index.header.statistics]
    for split in ("train", "val"):
        selection = index.select(split, ("axial",))
        batch = read_samples(selection, range(len(selection)), 24)
        found += [
            batch.keys,
            *(t.tolist() for t in (batch.planes, batch.labels, batch.view, batch.tumour_type)),
        ]
    return found


def read_checkpoint(path: Path) -> list[object]:
    """Everything that a resume gets from a checkpoint."""
    checkpoint = open_checkpoint(path.parent)
    return [checkpoint.step, checkpoint.state, checkpoint.tensors("generator")["w"].tolist()]


def targets(root: Path) -> dict[str, tuple[list[Path], Callable[[Path], object], bool]]:
    """Files to damage, what reads them, and whether a changed result is a finding."""
    import nibabel

    subject = write_subject(root, "case", ("t1c", "t1n"))
    volume = subject / "case-t1c.nii.gz"
    plain = subject / "case-t1c.nii"
    nibabel.save(nibabel.load(volume), plain)
    write_set(root / "set")
    folder = save_checkpoint(
        root / "checkpoints",
        3,
        {"generator": {"w": torch.arange(500.0)}},
        {"step": 3, "options": {"seed": 1}},
    )
    manifest = root / "manifest.json"
    values = {
        "format": "brasyn_dist.predictions", "format_version": 1, "finished": True, "identity": {}, "details": {},
        "workers": {}, "cases": [{"case": "a", "status": "done", "available": ["t1c"], "targets": ["t2f"]}],
    }  # fmt: skip
    manifest.write_text(json.dumps(values))
    return {
        "volume .nii.gz": ([volume], read_volume, False),
        "volume .nii": ([plain], read_volume, False),
        "labels .nii": ([plain], read_labels, False),
        "shards": (sorted((root / "set").glob("*.tar")), read_shards, True),
        "index.json": ([root / "set" / "index.json"], read_shards, True),
        "checkpoint": (sorted(folder.iterdir()), read_checkpoint, True),
        "manifest.json": ([manifest], read_manifest, False),
    }


def too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, results = random.Random(options.seed), collections.Counter[tuple[str, str]]()
    signal.signal(signal.SIGALRM, too_long)
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        chosen = targets(Path(folder))
        expected = {name: read(paths[0]) for name, (paths, read, covered) in chosen.items() if covered}
        for number in range(options.count):
            name = list(chosen)[number % len(chosen)]
            paths, read, covered = chosen[name]
            path = rng.choice(paths)
            intact = path.read_bytes()
            changed = damage(intact, rng)
            path.write_bytes(changed)
            signal.alarm(SECONDS)
            try:
                found = read(path)
                outcome = "accepted"
                if covered and found != expected[name]:
                    outcome, findings = "damage accepted", findings + 1
                    print(f"{number}: {name}: {path.name}: damage is accepted")
            except BrasynError:
                outcome = "refused"
            except Exception:
                outcome, findings = "exception", findings + 1
                print(f"{number}: {name}: {path.name}")
                traceback.print_exc(limit=-3, file=sys.stdout)
            finally:
                signal.alarm(0)
                path.write_bytes(intact)
            results[name, outcome] += 1
    for (name, outcome), count in sorted(results.items()):
        print(f"{name:<16}{outcome:<18}{count}")
    print(f"{options.count} files, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
