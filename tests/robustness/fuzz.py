"""Damage everything that is read at random, and read it.

Volumes, shards, indices, checkpoints, manifests, exports, score tables, findings, lists of patients and of cases,
modality sets, configurations, statistics, MONAI bundles, fusions, and what the viewer shows.

    python -m tests.robustness.fuzz [--count 2000] [--seed 0] [--only KIND]

A finding is an exception other than BrasynError, a read of more than 20 s, or other values than before from a
damaged shard set or checkpoint, whose values are covered by checksums.
"""

import argparse
import collections
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from brasyn_dist.config import load_config
from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.nifti import read_labels, read_volume
from brasyn_dist.data.patients import read_patients_file
from brasyn_dist.data.sharding.exclusions import read_exclusions
from brasyn_dist.data.sharding.patient_split import read_split_file
from brasyn_dist.errors import BrasynError
from brasyn_dist.evaluation.tables import read_table, summarise, table_csv
from brasyn_dist.inference.ensemble import load_inference, load_members
from brasyn_dist.inference.fusion import WeightedFusion, describe_members, load_fusion
from brasyn_dist.inference.manifest import read_manifest
from brasyn_dist.modality_set import read_modality_set
from brasyn_dist.models.export import load_network
from brasyn_dist.models.monai_bundle import write_bundle
from brasyn_dist.models.registry import Generator
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from brasyn_dist.report.viewer import open_viewer
from brasyn_dist.training.checkpoint import open_checkpoint, save_checkpoint
from tests.data.shard_sets import write_set
from tests.inference.small import export, write_subject

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


def read_viewer(path: Path) -> object:
    """What the viewer lists."""
    return open_viewer(path.parent).listing()


def bundle_targets(root: Path) -> dict[str, tuple[list[Path], Callable[[Path], object], bool]]:
    """A MONAI bundle (the part that this project reads), a fusion of its members, and an inference configuration."""
    bundle, fusion, members_file = root / "bundle", root / "fusion.json", root / "inference.yaml"
    write_bundle(load_network(export(root / "two-views", ["axial", "sagittal"])), bundle, "brain", None)
    models, cpu = bundle / "models", torch.device("cpu")
    members = load_members(models, cpu)
    shares = WeightedFusion(dict.fromkeys(members[0].modality_set.modalities, (0.25, 0.75)))
    shares.save(fusion, {"members": describe_members(members)})
    members_file.write_text(
        f"members:\n- {{weights: {models}, views: [axial]}}\n- {{weights: {models}, views: [sagittal]}}\n"
        f"fusion: {fusion}\ntta: true\n"
    )

    def read_fusion(path: Path) -> object:
        fuse = load_fusion(path, members)
        volumes = torch.ones(len(members), 2, 2, 2)
        assert all(torch.allclose(fuse(volumes, target), volumes[0]) for target in fuse.weights), "no weights"
        return fuse.weights

    return {
        "monai bundle": (sorted(models.iterdir()), lambda path: load_members(path.parent, cpu), False),
        "fusion": ([fusion], read_fusion, False),
        "inference.yaml": ([members_file], load_inference, False),
    }


def text_targets(root: Path, subject: Path) -> dict[str, tuple[list[Path], Callable[[Path], object], bool]]:
    """Text files that users edit, and results that later commands read."""
    root.mkdir()

    def write(name: str, text: str) -> Path:
        (root / name).write_text(text)
        return root / name

    finding = {"case": "a", "kind": "duplicate", "modality": "t1c", "detail": "equal to b"}
    rows = [{"case": name, "cohort": "gli", "modality": "t1c", "method": "synthetic"} for name in "abc"]
    table = pd.DataFrame(rows).assign(**{"mae/brain": [1.5, 2, 3], "psnr/brain": [20, 21.5, 19]})
    evaluation = root / "evaluation"
    evaluation.mkdir()
    folders = {"predictions": str(root / "predictions"), "references": str(subject.parent)}
    shutil.copytree(subject, root / "predictions")
    shown = [
        write("evaluation/cases.csv", table_csv(table)),
        write("evaluation/summary.json", json.dumps(folders)),
    ]
    weights = export(root / "export", ["axial"])
    return {
        "cases.csv": ([shown[0]], lambda path: summarise(read_table(path)), False),
        "viewer": (shown, read_viewer, False),
        "findings.json": ([write("findings.json", json.dumps([finding] * 3))], read_exclusions, False),
        "exclusions.txt": ([write("exclusions.txt", "a # blurred\nb\n")], read_exclusions, False),
        "patients.csv": ([write("patients.csv", "case,patient\na,1\nb,1\nc,2\n")], read_patients_file, False),
        "split.txt": ([write("split.txt", "a\n# no\nb\n")], read_split_file, False),
        "modalities.yaml": (
            [write("set.yaml", "name: x\nmodalities: [ct, mr]\nlabels: {1: tumour}\n")], read_modality_set, False
        ),
        "config.yaml": ([write("run.yaml", "seed: 3\ntraining: {epochs: 1.5}\nname: x\n")], load_config, False),
        "statistics.json": ([write("statistics.json", json.dumps(PUBLISHED.to_dict()))], Statistics.load, False),
        "export": (sorted(weights.iterdir()), lambda path: Generator.from_pretrained(path.parent), False),
    }  # fmt: skip


def targets(root: Path) -> dict[str, tuple[list[Path], Callable[[Path], object], bool]]:
    """Files to damage, what reads them, and whether a changed result is a finding."""
    import nibabel

    subject = write_subject(root, "case", ("t1c", "t1n"))
    volume = subject / "case-t1c.nii.gz"
    plain, labels = root / "case-t1c.nii", root / "case-seg.nii"
    image = nibabel.load(volume)
    nibabel.save(image, plain)
    nibabel.save(nibabel.Nifti1Image((image.get_fdata() > 2000).astype("u1"), image.affine), labels)
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
        "labels .nii": ([labels], read_labels, False),
        "shards": (sorted((root / "set").glob("*.tar")), read_shards, True),
        "index.json": ([root / "set" / "index.json"], read_shards, True),
        "checkpoint": (sorted(folder.iterdir()), read_checkpoint, True),
        "manifest.json": ([manifest], read_manifest, False),
        **text_targets(root / "texts", subject),
        **bundle_targets(root),
    }


def too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="KIND", help="damage only this; may be repeated")
    options = parser.parse_args()
    rng, results = random.Random(options.seed), collections.Counter[tuple[str, str]]()
    signal.signal(signal.SIGALRM, too_long)
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        chosen = targets(Path(folder))
        if unknown := set(options.only or ()) - set(chosen):
            parser.error(f"--only {unknown.pop()}: choose from {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in options.only or chosen}
        expected = {name: read(paths[0]) for name, (paths, read, _) in chosen.items()}
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
