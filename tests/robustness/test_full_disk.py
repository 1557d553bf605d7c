"""Kind 5: a disk that is really full, under every command that writes (a tmpfs of a few kilobytes; needs root)."""

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import pytest

from brasyn_dist.cli.main import module_name
from tests.distributed.launch import SMALL
from tests.inference.small import export, write_subject
from tests.small import small_shard_set

MODALITIES = ("t1c", "t1n", "t2f", "t2w")
PAGE = 4096
ROOM = 64 << 20
SHARES = (0.0, 0.5, 0.9)
LOGS = (".lock", "metrics.jsonl", "performance.jsonl", "logs", "attempts.jsonl", ".workqueue", ".work")
"""Files that grow by lines; a line that is cut off is skipped when they are read."""


@dataclass(frozen=True)
class Inputs:
    """What the commands read; on a disk that is not full."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    for seed in range(3):
        name = f"BraTS-GLI-{seed:05d}-000"
        write_subject(folder / "complete", name, MODALITIES, seed)
        write_subject(folder / "cases", name, MODALITIES[:2] + MODALITIES[3:], seed)
        (folder / "predictions").mkdir(exist_ok=True)
        shutil.copy(folder / "complete" / name / f"{name}-t2f.nii.gz", folder / "predictions")
    export(folder / "weights", ["axial", "sagittal"])
    small_shard_set(folder / "shards")
    found = Inputs(folder)
    call(
        "evaluate",
        ["--predictions", found.predictions, "--references", found.complete, "--out", found.evaluation],
    )
    call("train", [*training(found, folder / "runs"), "telemetry.report=true"])
    return found


def call(command: str, words: list[str]) -> None:
    assert importlib.import_module(module_name(command)).main(words) == 0


def training(inputs: Inputs, runs: Path) -> list[str]:
    return [
        *SMALL, f"data.shards={inputs.shards}", f"runs_dir={runs}", "training.max_steps=2", "training.global_batch_size=2",
        "checkpoint.every_steps=1", "validation.every_steps=1",
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[Inputs, Path], list[str]]] = {
    "phantom": lambda i, out: [str(out), "--gli", "1", "--met", "1", "--shape", "32", "32", "24", "--workers", "1"],
    "shard": lambda i, out: [i.complete, "--out", str(out), "--views", "axial", "--minimum-foreground", "50",
                             "--workers", "1"],
    "inspect": lambda i, out: [i.complete, "--out", str(out)],
    "drop-modality": lambda i, out: [i.complete, str(out)],
    "train": lambda i, out: training(i, out),
    "infer": lambda i, out: ["--weights", i.weights, "--input", i.cases, "--output", str(out), "--views", "axial"],
    "evaluate": lambda i, out: ["--predictions", i.predictions, "--references", i.complete, "--out", str(out)],
    "table": lambda i, out: [i.evaluation, "--out", str(out)],
    "compare": lambda i, out: [i.evaluation, i.evaluation, "--method-b", "mean of available", "--resamples", "99",
                               "--out", str(out / "comparison.json")],
    "fit-fusion": lambda i, out: ["--weights", i.weights, "--cases", i.complete, "--out", str(out / "fusion.json"),
                                  "--voxels", "100"],
    "report": lambda i, out: [str(out / "run")],
    "export": lambda i, out: [i.weights, str(out)],
    "export --format monai-bundle": lambda i, out: [i.weights, str(out), "--format", "monai-bundle"],
    "export --format torch-export": lambda i, out: [i.weights, str(out), "--format", "torch-export"],
    "configs": lambda i, out: ["--copy", str(out)],
    "slurm-attempt": lambda i, out: ["begin", f"runs_dir={out}"],
}  # fmt: skip
"""convert writes what export writes."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk whose size in bytes is set by a call."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own needs root and the right to mount")

    def resize(size: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
        return folder

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    if path.name.endswith(".nii.gz"):
        return nibabel.load(path).get_fdata().size > 0
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()))
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    return path.stat().st_size > 0


SLOW = ("train", "evaluate", "fit-fusion", "report", "export --format torch-export")


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in COMMANDS]
)
def test_a_full_disk_ends_a_command_with_one_line(
    command: str, inputs: Inputs, disk: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
):
    """With shares of the room that it needs. With enough room, the same command then does what is left."""
    main = importlib.import_module(module_name(command.split()[0])).main
    folder = disk(ROOM)
    out = folder / "out"

    def prepare() -> int:
        """An empty output folder; the room that is used."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (folder / "filler").write_bytes(bytes(PAGE))  # a tmpfs has at least one page
        if command == "report":
            shutil.copytree(inputs.folder / "runs" / "run", out / "run")
            (out / "run" / "report.html").unlink()
        return used(folder)

    words = COMMANDS[command](inputs, out)
    before = prepare()
    assert main(words) == 0
    complete = {p.relative_to(out) for p in out.rglob("*") if p.is_file()}
    needed = used(folder) - before
    for share in SHARES:
        disk(ROOM)
        disk(max(prepare() + PAGE * int(share * needed / PAGE), PAGE))
        capfd.readouterr()
        status, text = main(words), capfd.readouterr().err
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert status == 1 and "Traceback" not in text, text
        assert len(errors) == 1 and text.endswith(errors[0] + "\n"), text
        assert str(folder) in errors[0] and "No space left" in errors[0] and "ree space" in errors[0]
        for path in out.rglob("*"):
            if path.is_file() and not set(path.relative_to(out).parts) & set(LOGS):
                assert ".tmp-" not in str(path) and is_whole(path), path
    disk(ROOM)
    assert main(words) == 0, capfd.readouterr().err
    assert complete <= {p.relative_to(out) for p in out.rglob("*") if p.is_file()}


CALLING: dict[tuple[str, int], Callable[[Inputs, Path], list[str]]] = {
    ("cross-validate", 1): lambda i, out: [i.complete, "--out", str(out), "--folds", "3"],
    ("cross-validate", 16): lambda i, out: [i.complete, "--out", str(out), "--folds", "3", "--minimum-foreground", "50"],
    ("ablate", 1): lambda i, out: [i.complete, "--out", str(out), "--folds", "3"],
    ("ablate", 2): lambda i, out: [i.complete, "--out", str(out), "--folds", "3"],
    ("study", 1): lambda i, out: ["thesis", "--data", f"{i.shards}-cases", "--out", str(out)],
    ("study", 16): lambda i, out: ["thesis", "--data", f"{i.shards}-cases", "--out", str(out),
                                   "--shard-options=--minimum-foreground 200"],
    ("demo", 1): lambda i, out: ["--data", f"{i.shards}-cases", "--out", str(out)],
    ("demo", 16): lambda i, out: ["--gli", "1", "--met", "1", "--out", str(out)],
}  # fmt: skip
"""Commands that call others as processes, by the size of the disk in pages: their first file, or their first stage."""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "pages"), CALLING)
def test_a_full_disk_ends_a_command_that_calls_others(
    command: str, pages: int, inputs: Inputs, disk: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
):
    """One line names path and remedy; the commands above say in a line which one failed."""
    folder = disk(pages * PAGE)
    (folder / "filler").write_bytes(bytes(PAGE))
    words = CALLING[command, pages](inputs, folder / "out")
    assert importlib.import_module(module_name(command)).main(words) == 1
    text = capfd.readouterr().err
    first, *above = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text and text.endswith(f"{[first, *above][-1]}\n"), text
    assert str(folder / "out") in first and "No space left" in first and "free space" in first
    assert all("exit status 1; its messages are above" in line for line in above)
    assert bool(above) == (pages > 1 or command == "demo")
    assert not [p for p in folder.rglob(".tmp-*") if not set(p.parts) & set(LOGS)]
