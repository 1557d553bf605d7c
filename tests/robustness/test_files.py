"""Kinds 4 and 5: names, encodings, and everything that a file system does."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import find_cases
from brasyn_dist.cli.drop_modality import main as drop_modality
from brasyn_dist.cli.evaluate import main as evaluate
from brasyn_dist.cli.infer import main as infer
from brasyn_dist.cli.inspect import main as inspect
from brasyn_dist.cli.phantom import main as phantom
from brasyn_dist.cli.shard import main as shard
from brasyn_dist.common import files
from brasyn_dist.config import load_config
from brasyn_dist.data.case_folders import find_cohorts
from brasyn_dist.data.nifti import is_background, read_case
from brasyn_dist.data.sharding.patient_split import read_split_file
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.scoring import Prediction
from brasyn_dist.evaluation.segmentation_sources import write_completed_case
from brasyn_dist.modality_set import read_modality_set
from brasyn_dist.training.checkpoint import open_checkpoint, save_checkpoint
from tests.conftest import REPOSITORY
from tests.inference.small import export, write_subject

MODALITIES = ("t1c", "t1n", "t2f", "t2w")
NAMES = ("BraTS-GLI-00000-000", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("weights") / "export", ["axial"])


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Three complete cases."""
    for seed, name in enumerate(NAMES):
        write_subject(tmp_path / "cases", name, MODALITIES, seed)
    return tmp_path / "cases"


def without(cases: Path, modality: str = "t2f") -> Path:
    for path in cases.glob(f"*/*-{modality}.nii.gz"):
        path.unlink()
    return cases


def rename(folder: Path, name: str) -> Path:
    """A case under another name, with its files."""
    for path in folder.iterdir():
        path.rename(folder / path.name.replace(folder.name, name))
    return folder.rename(folder.with_name(name))


def run_infer(cases: Path, weights: Path, *more: str) -> int:
    output = cases.parent / "out"
    return infer(["--weights", str(weights), "--input", str(cases), "--output", str(output), *more])


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "with space", "Mädchen_1", "患者一", "a'b\"c", "<b>&amp;", "%41{}", "-leading", "glob[0-9]*?", "line\nfeed",
        "tab\there", "$HOME", "~", "semi;colon,comma", "back\\slash", "x" * 200, "emoji-\N{BRAIN}", "12345", "e.g. 1.5",
    ],
)  # fmt: skip
def test_any_name_is_synthesised_and_scored(name: str, cases: Path, weights: Path):
    rename(cases / NAMES[0], name)
    complete = cases.parent / "complete"
    shutil.copytree(cases, complete)
    assert run_infer(without(cases), weights) == 0
    out = cases.parent / "out"
    assert (out / f"{name}-t2f.nii.gz").is_file()
    words = ["--predictions", str(out), "--references", str(complete), "--out", str(cases.parent / "ev")]
    assert evaluate([*words, "--no-baselines"]) == 0
    assert name in {case["case"] for case in json.loads((out / "manifest.json").read_text())["cases"]}


def test_names_that_are_not_utf8_are_named_and_the_others_done(
    cases: Path, weights: Path, capfd: pytest.CaptureFixture[str]
):
    wrong = os.fsdecode(b"M\xe4dchen_1")
    rename(cases / NAMES[0], wrong)
    assert run_infer(without(cases), weights) == 1
    assert r"M\xe4dchen_1: the name is not UTF-8; rename it" in capfd.readouterr().err
    assert len(list((cases.parent / "out").glob("*.nii.gz"))) == 2
    assert inspect([str(cases), "--out", str(cases.parent / "i")]) == 0
    assert r"M\xe4dchen_1" in capfd.readouterr().out
    assert shard([str(cases), "--out", str(cases.parent / "sh")]) == 1
    assert r"M\xe4dchen_1: the name is not UTF-8" in capfd.readouterr().err


def test_a_name_that_is_too_long_is_found_before_anything_is_computed(
    cases: Path, weights: Path, capfd: pytest.CaptureFixture[str]
):
    (cases / NAMES[0]).rename(cases / ("x" * 250))
    assert run_infer(without(cases), weights) == 1
    assert "a name of 250 bytes, the names of results would be too long" in capfd.readouterr().err
    assert len(list((cases.parent / "out").glob("*.nii.gz"))) == 2
    assert not list((cases.parent / "out").glob(".tmp-*"))


@pytest.mark.parametrize("suffix", [".hdr", ".mgz", ".nrrd", ".MHA", ".nii.bz2", ".nii.gz.part"])
@pytest.mark.parametrize("modality", ["t1c", "seg"])
def test_a_volume_of_another_format_is_not_a_missing_one(suffix: str, modality: str, cases: Path):
    """It would be synthesised, or its tumour would be left out of the scores."""
    volume = cases / NAMES[0] / f"{NAMES[0]}-{modality}.nii.gz"
    volume.with_name(f"{NAMES[0]}-{modality}{suffix}").write_bytes(b"x")
    if modality in MODALITIES:
        assert len(find_cases(cases)) == 3, "beside a NIfTI file it does no harm"
        volume.unlink()
    with pytest.raises(DataError, match=f"{modality}{suffix}: no NIfTI file; convert it"):
        find_cases(cases)


def test_messages_can_be_printed_in_any_encoding(cases: Path, weights: Path):
    rename(cases / NAMES[0], "患者")
    (cases / "患者" / "患者-t1n.nii.gz").write_bytes(b"no volume")
    program = "from brasyn_dist.cli.main import console; console()"
    done = subprocess.run(
        [sys.executable, "-c", program, "infer", "--weights", weights, "--input", without(cases), "--output",
         cases.parent / "out"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and r"\u60a3\u8005" in done.stderr


@pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_files_of_other_systems_are_read(encode: str, end: str, tmp_path: Path):
    def write(name: str, *lines: str) -> Path:
        (tmp_path / name).write_bytes((end.join(lines) + end).encode(encode))
        return tmp_path / name

    assert read_split_file(write("split.txt", "Mädchen", "# no", "b")) == ("Mädchen", "b")
    assert read_split_file(write("split.json", '["Mädchen",', '"b"]')) == ("Mädchen", "b")
    assert load_config(write("c.yaml", "name: Mädchen", "seed: 3")).name == "Mädchen"
    assert read_modality_set(write("m.yaml", "name: ä", "modalities: [a, b]")).modalities == ("a", "b")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"name: \xe4", bytes(range(256))])
def test_text_files_of_another_encoding_are_named(data: bytes, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(data)
    for read in (read_split_file, read_modality_set, load_config):
        with pytest.raises(Exception, match="file: ") as error:
            read(path)
        assert type(error.value).__module__ == "brasyn_dist.errors"


@pytest.mark.parametrize("image", ["t1n.nii.gz", "CASE_0000.nii.gz", "CASE-t1c.mha", "IM0001.dcm", "t1.img"])
def test_folders_with_other_images_are_listed(image: str, cases: Path, capsys: pytest.CaptureFixture[str]):
    (cases / "other").mkdir()
    (cases / "other" / image).write_bytes(b"x")
    (cases / "notes").mkdir()
    assert inspect([str(cases), "--out", str(cases.parent / "i")]) == 0
    err = capsys.readouterr().err
    assert f"other/{image}" in err and "expected folders such as CASE/CASE-" in err and "notes" not in err


def test_our_own_folders_are_no_input(cases: Path, weights: Path, capsys: pytest.CaptureFixture[str]):
    """Output inside the input, three times: nothing is synthesised for `completed`."""
    output = str(cases / "completed")
    (cases / "__MACOSX").mkdir()
    (cases / "__MACOSX" / f"._{NAMES[0]}-t1c.nii.gz").write_bytes(b"x")
    without(cases)
    for _ in range(3):
        assert infer(["--weights", str(weights), "--input", str(cases), "--output", output]) == 0
    assert [case.name for case in find_cases(cases)] == list(NAMES)
    assert len(list((cases / "completed").glob("*.nii.gz"))) == 3


# ---- inputs


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../.git/annex/objects/x")


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def two_inside(path: Path) -> None:
    folder_in_place(path)
    for name in "ab":
        (path / f"{name}.nii").write_bytes(b"x")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [dead_link, folder_in_place, pipe, device, two_inside, empty])
def test_a_bad_file_is_named_and_the_other_cases_are_done(
    harm: Callable[[Path], None], cases: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    name = f"{NAMES[0]}-t1n.nii.gz"
    harm(cases / NAMES[0] / name)
    assert run_infer(without(cases), weights) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and name in err and "Traceback" not in err
    assert len(list((cases.parent / "out").glob("*.nii.gz"))) == 2


def test_one_volume_in_a_folder_of_its_name_is_used(cases: Path):
    path = cases / NAMES[0] / f"{NAMES[0]}-t1n.nii.gz"
    data = path.read_bytes()
    folder_in_place(path)
    (path / "00000057_brain_t1n.nii.gz").write_bytes(data)
    found, bad = find_cohorts([cases])
    assert not bad and found[0].files["t1n"] == path / "00000057_brain_t1n.nii.gz"


def plain_content(path: Path) -> Path:
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return path


LIES: dict[str, Callable[[Path], Path]] = {
    "plain content called .nii.gz": plain_content,
    "compressed content called .nii": lambda path: path.rename(path.with_suffix("")),
    "upper case": lambda path: path.rename(str(path).replace(".nii.gz", ".NII.GZ")),
}


@pytest.mark.parametrize("lie", LIES)
def test_content_counts_not_the_ending(lie: str, cases: Path, tmp_path: Path):
    """A segmenter is handed .nii.gz, and a volume of zeros is a missing modality."""
    path = cases / NAMES[0] / f"{NAMES[0]}-t1n.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), path)
    assert is_background(LIES[lie](path))
    case = find_cases(cases)[0]
    prediction = Prediction(case.files["t2f"], NAMES[0], "t2f")
    values = write_completed_case(tmp_path / "completed", prediction, read_case(case, segmentation=False))
    assert nibabel.load(values["t1n"]).get_fdata().shape == image.shape


def test_an_unreadable_folder_is_named_and_left_out(cases: Path, monkeypatch: Any, caplog: Any):
    """Root may read everything, so the error is injected."""
    (cases / "lost+found").mkdir()
    real = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self.name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with caplog.at_level("WARNING", "brasyn_dist"):
        assert len(find_cases(cases)) == 3
    assert "lost+found: cannot be read (Permission denied); left out" in caplog.text


# ---- outputs

COMMANDS: dict[str, Callable[[Path, Path, Path], int]] = {
    "infer": lambda cases, weights, out: infer(
        ["--weights", str(weights), "--input", str(without(cases)), "--output", str(out)]
    ),
    "inspect": lambda cases, weights, out: inspect([str(cases), "--out", str(out)]),
    "shard": lambda cases, weights, out: shard(
        [str(cases), "--out", str(out), "--views", "axial", "--minimum-foreground", "50", "--workers", "1"]
    ),
    "drop-modality": lambda cases, weights, out: drop_modality([str(cases), str(out)]),
    "phantom": lambda cases, weights, out: phantom([str(out), "--gli", "1", "--met", "0", "--shape", "32", "32", "24",
                                                    "--workers", "1"]),
    "evaluate": lambda cases, weights, out: evaluate(
        ["--predictions", str(predictions(cases)), "--references", str(cases), "--out", str(out), "--no-baselines"]
    ),
}  # fmt: skip


def predictions(cases: Path) -> Path:
    """Real volumes as predictions."""
    folder = cases.parent / "predictions"
    folder.mkdir()
    for path in cases.glob("*/*-t2f.nii.gz"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["file", "file/below", "link"])
def test_an_output_that_is_a_file_is_named(
    command: str, where: str, cases: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    out = cases.parent / where
    (cases.parent / "file").write_text("x")
    if where == "link":
        out.symlink_to(cases.parent / "file")
    assert COMMANDS[command](cases, weights, out) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ") and str(cases.parent / where.partition("/")[0]) in err[-1]
    assert (cases.parent / "file").read_text() == "x"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_is_named_at_once(
    command: str,
    number: int,
    cases: Path,
    weights: Path,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
):
    """Every flush to the disk fails: one line with path, cause and remedy; nothing is half-written."""

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "fsync", fail)
    out = cases.parent / "out"
    assert COMMANDS[command](cases, weights, out) == 1
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {out}") and os.strerror(number) in last and "Traceback" not in err
    assert not list(out.rglob(".tmp-*"))
    assert not [p for p in out.rglob("*") if p.suffix in (".gz", ".csv", ".html")]


def test_no_case_is_synthesised_that_cannot_be_written(cases: Path, weights: Path, monkeypatch: Any):
    """The first volume fails: at most the case that is under way is computed, not the rest."""
    from brasyn_dist.inference import case_job

    for seed in range(3, 8):
        write_subject(cases, f"BraTS-GLI-{seed:05d}-000", MODALITIES, seed)
    synthesised: list[object] = []
    real = case_job.CaseJob.synthesise

    def count(self: Any, *arguments: Any) -> Any:
        synthesised.append(self)
        return real(self, *arguments)

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out")

    monkeypatch.setattr(case_job.CaseJob, "synthesise", count)
    monkeypatch.setattr(case_job, "write_like", fail)
    assert run_infer(without(cases), weights) == 1
    assert len(synthesised) <= 2
    monkeypatch.undo()
    assert run_infer(cases, weights) == 0


def test_a_volume_that_no_run_has_written_is_not_overwritten(
    cases: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    without(cases)
    foreign = cases.parent / "out" / f"{next(cases.iterdir()).name}-t2f.nii.gz"
    foreign.parent.mkdir()
    foreign.write_bytes(b"somebody's work")
    assert run_infer(cases, weights) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith(f"error: {foreign}: in the way of a result") and "--overwrite" in err[-1]
    assert [path.name for path in foreign.parent.iterdir()] == [foreign.name]
    assert foreign.read_bytes() == b"somebody's work"
    foreign.unlink()
    assert run_infer(cases, weights) == run_infer(cases, weights) == 0


def test_foreign_files_in_our_folders_do_no_harm(cases: Path, weights: Path):
    queue = cases.parent / "out" / ".workqueue" / "000001"
    for name in ("workers", "claims", "records"):
        (queue / name / "folder").mkdir(parents=True)
        (queue / name / "note.txt").write_text("x")
        (queue / name / "strange.jsonl").write_bytes(b"\xff\n[]\n{}\n")
    (queue.parent / "finished-jobs.json").write_text("5")
    assert run_infer(without(cases), weights) == 0


@pytest.mark.parametrize(
    "text",
    ["5", "[]", "{}", '{"step": "x", "files": {}}', '{"step": 3, "files": {}}', '{"step": 3, "files": [1]}'],
)
def test_damaged_manifests_of_checkpoints_are_refused(text: str, tmp_path: Path):
    folder = save_checkpoint(tmp_path, 3, {}, {"step": 3})
    (folder / "manifest.json").write_text(text)
    with pytest.raises(Exception, match="manifest.json"):
        open_checkpoint(folder)


def test_a_changed_step_is_found(tmp_path: Path):
    folder = save_checkpoint(tmp_path, 3, {}, {"step": 3})
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(Exception, match="step 4 instead of 3"):
        open_checkpoint(folder)


def test_errors_name_the_file_that_failed(tmp_path: Path):
    """Not the temporary file, and not the target if the source cannot be read."""
    with pytest.raises(FileNotFoundError) as error, files.atomic_path(tmp_path / "to") as temporary:
        shutil.copyfile(tmp_path / "from", temporary)
    assert error.value.filename == str(tmp_path / "from")
    with pytest.raises(OSError, match="No space") as full, files.atomic_path(tmp_path / "to"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "to")
    assert files.os_error_text(full.value).startswith(
        f"{tmp_path / 'to'}: No space left on device; free space"
    )


def test_data_error_for_a_root_without_cases(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "flair.nii").write_bytes(b"")
    with pytest.raises(DataError, match="no BraTS case found; expected .*; found a/flair.nii"):
        find_cases(tmp_path)
