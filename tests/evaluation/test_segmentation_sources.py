"""Segmentations from folders and programs: the right ones are scored; whatever goes wrong becomes that case's named problem."""

import csv
import json
import shlex
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import find_cases
from brasyn_dist.cli.evaluate import main
from brasyn_dist.data.nifti import read_labels, write_like
from brasyn_dist.errors import ConfigError
from brasyn_dist.evaluation.segmentation_sources import parse_command
from tests.data.case_files import NAMES_2021, write_case

pytestmark = pytest.mark.usefixtures("no_report")
CASES = ("case-a", "case-b", "case-c", "case-d")


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """Four cases of different ages and storage orders; `case-b` in 2021's names, uncompressed, in RAS order."""
    for number, name in enumerate(CASES):
        old = name == "case-b"
        write_case(
            tmp_path / "references",
            name,
            number,
            names=NAMES_2021 if old else {k: f"-{k}" for k in ("t1c", "t1n", "t2f", "t2w", "seg")},
            suffix=".nii" if old else ".nii.gz",
            ras=old,
            enhancing=3,
        )
    return tmp_path / "references"


@pytest.fixture
def predictions(references: Path, tmp_path: Path) -> Path:
    """Of each case, its own t1c, named as inference names it."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for case in find_cases(references):
        image = nibabel.load(case.files["t1c"])
        nibabel.save(image, folder / f"{case.name}-t1c.nii.gz")
    return folder


def evaluate(tmp_path: Path, *options: str) -> int:
    paths = {name: str(tmp_path / name) for name in ("predictions", "references", "out")}
    return main([x for n, p in paths.items() for x in (f"--{n}", p)] + ["--no-baselines", *options])


def rows(tmp_path: Path) -> dict[str, dict[str, str]]:
    with (tmp_path / "out/cases.csv").open() as file:
        return {r["case"]: r for r in csv.DictReader(file)}


def problems(tmp_path: Path) -> dict[str, str]:
    listed = json.loads((tmp_path / "out/summary.json").read_text())["problems"]
    return {p["prediction"].removesuffix("-t1c.nii.gz"): p["reason"] for p in listed}


def write_segmentations(references: Path, folder: Path, order: str = "brats") -> None:
    """The reference segmentations, in 2023's labels or nnU-Net's, under the three names that are known."""
    folder.mkdir()
    for case, name in zip(
        find_cases(references), ("{}-seg.nii.gz", "{}.nii.gz", "{}_seg.nii", "{}-t1c-seg.nii.gz")
    ):
        labels = read_labels(case.files["seg"])
        values = np.array([0, 2, 1, 3] if order == "nnunet" else [0, 1, 2, 3])[labels.array]
        path = folder / name.format(case.name)
        write_like(path if path.name.endswith(".gz") else path.with_suffix(".nii.gz"), values, labels)
        if not path.name.endswith(".gz"):
            image = nibabel.load(path.with_suffix(".nii.gz"))
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), path)
            path.with_suffix(".nii.gz").unlink()


@pytest.mark.parametrize("order", ["brats", "nnunet"])
def test_a_folder_of_perfect_segmentations(
    references: Path, predictions: Path, tmp_path: Path, order: str, capsys
):
    write_segmentations(references, tmp_path / "segs", order)
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs"), "--label-order", order) == 0
    for row in rows(tmp_path).values():
        assert all(
            float(row[f"{m}/{r}"]) == 1 for m in ("dice", "nsd") for r in ("ET", "TC", "WT", "NETC", "ED")
        )
        assert float(row["hd95/WT"]) == 0 and row["mae/brain"] == "0"
    text = capsys.readouterr().out
    assert "dice/ET" in text and "1.000" in text
    means = json.loads((tmp_path / "out/summary.json").read_text())["means"]
    assert means["t1c"]["synthetic"]["dice/TC"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "cases": 4}


def test_the_wrong_order_of_labels_shows(references: Path, predictions: Path, tmp_path: Path):
    """The mistake of the published scores: nnU-Net's order read as BraTS'. ET and WT look right, TC does not."""
    write_segmentations(references, tmp_path / "segs", "nnunet")
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 0
    row = rows(tmp_path)["case-a"]
    assert float(row["dice/ET"]) == float(row["dice/WT"]) == 1
    assert float(row["dice/NETC"]) == 0 and float(row["dice/TC"]) < 0.7


def test_missing_and_unusable_files_are_problems_of_their_cases(
    references: Path, predictions: Path, tmp_path: Path, capsys
):
    write_segmentations(references, tmp_path / "segs")
    (tmp_path / "segs/case-a-seg.nii.gz").unlink()
    (tmp_path / "segs/case-b.nii.gz").write_bytes(b"rubbish")
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 1
    found = problems(tmp_path)
    assert set(found) == {"case-a", "case-b"}
    assert "expected case-a-t1c-seg.nii.gz" in found["case-a"] and "not a NIfTI file" in found["case-b"]
    table = rows(tmp_path)
    assert len(table) == 4 and table["case-a"]["mae/brain"] == "0" and table["case-a"]["dice/WT"] == ""
    assert table["case-c"]["dice/WT"] == "1"
    assert "scored in part: segmentation of case-b with synthetic t1c" in capsys.readouterr().err


def test_one_segmentation_does_not_serve_two_predictions(references: Path, predictions: Path, tmp_path: Path):
    (predictions / "case-a-t2w.nii.gz").write_bytes((references / "case-a/case-a-t2w.nii.gz").read_bytes())
    write_segmentations(references, tmp_path / "segs")
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 1
    listed = json.loads((tmp_path / "out/summary.json").read_text())["problems"]
    assert {p["prediction"] for p in listed} == {"case-a-t1c.nii.gz", "case-a-t2w.nii.gz"}


def test_a_folder_without_any_segmentation_is_an_error(
    references: Path, predictions: Path, tmp_path: Path, capsys
):
    (tmp_path / "segs").mkdir()
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 1
    assert "no segmentation of any predicted case" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_new_segmentations_are_scored_anew(references: Path, predictions: Path, tmp_path: Path):
    """An evaluation in which something failed, repeated: unchanged scores may be kept, those of changed files not."""
    write_segmentations(references, tmp_path / "segs")
    good = (tmp_path / "segs/case-a-seg.nii.gz").read_bytes()
    labels = read_labels(references / "case-a/case-a-seg.nii.gz")
    write_like(tmp_path / "segs/case-a-seg.nii.gz", 0 * labels.array, labels)
    (tmp_path / "segs/case-b.nii.gz").write_bytes(b"rubbish")
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 1
    assert rows(tmp_path)["case-a"]["dice/WT"] == "0"
    (tmp_path / "segs/case-a-seg.nii.gz").write_bytes(good)
    assert evaluate(tmp_path, "--segmentations", str(tmp_path / "segs")) == 1
    assert rows(tmp_path)["case-a"]["dice/WT"] == "1"


STAND_IN = """
import gzip, pathlib, sys
import nibabel, numpy as np
folder, output, case = sys.argv[1:4]
names = sorted(p.name for p in pathlib.Path(folder).iterdir())
assert names == [f"{case}-{m}.nii.gz" for m in ("t1c", "t1n", "t2f", "t2w")], names
image = nibabel.load(sys.argv[4])
assert sys.argv[4] == f"{folder}/{case}-t1c.nii.gz"
values = np.asarray(image.dataobj)
behaviour = pathlib.Path(sys.argv[5]).read_text().split()[["case-a", "case-b", "case-c", "case-d"].index(case)]
if behaviour == "fails":
    sys.exit("out of memory: no tumour today")
if behaviour == "nothing":
    sys.exit(0)
if behaviour == "rubbish":
    pathlib.Path(output).write_bytes(gzip.compress(b"this is no volume"))
    sys.exit(0)
labels = (values > 800).astype(np.uint8)
if behaviour == "labels":
    labels = labels * 7
if behaviour == "fractions":
    labels = labels * 0.5
if behaviour == "shape":
    labels = labels[1:]
affine = image.affine
if behaviour == "shifted":
    affine = affine.copy(); affine[0, 3] += 2
nibabel.save(nibabel.Nifti1Image(labels, affine), output)
"""


def command(tmp_path: Path, *behaviours: str) -> str:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "behaviour").write_text(" ".join(behaviours))
    words = [sys.executable, tmp_path / "stand_in.py"]
    quoted = " ".join(shlex.quote(str(w)) for w in words)
    return f"{quoted} {{input}} {{output}} {{case}} {{t1c}} {shlex.quote(str(tmp_path / 'behaviour'))}"


def test_a_command_that_fails_or_writes_damaged_files(references: Path, predictions: Path, tmp_path: Path):
    template = command(tmp_path, "fails", "fails", "rubbish", "works")
    assert evaluate(tmp_path, "--segment-command", template) == 1
    found = problems(tmp_path)
    assert "status 1" in found["case-a"] and "out of memory: no tumour today" in found["case-a"]
    assert "not a NIfTI file" in found["case-c"] and "case-d" not in found
    table = rows(tmp_path)
    assert len(table) == 4 and all(r["mae/brain"] == "0" for r in table.values())
    assert 0 < float(table["case-d"]["dice/WT"]) < 1 and table["case-a"]["dice/WT"] == ""


def test_a_command_that_hangs_is_ended_with_its_children(references: Path, predictions: Path, tmp_path: Path):
    for path in predictions.glob("case-[b-d]*"):
        path.unlink()
    script = tmp_path / "hang.sh"
    script.write_text(f"echo loading weights\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    template = f"sh {shlex.quote(str(script))} {{output}}"
    assert evaluate(tmp_path, "--segment-command", template, "--segment-timeout", "3") == 1
    found = problems(tmp_path)["case-a"]
    assert "longer than 3 s" in found and "loading weights" in found
    assert rows(tmp_path)["case-a"]["mae/brain"] == "0"
    status = Path(f"/proc/{int((tmp_path / 'child').read_text())}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_what_a_command_writes_is_checked(references: Path, predictions: Path, tmp_path: Path):
    template = command(tmp_path, "labels", "shape", "shifted", "nothing")
    assert evaluate(tmp_path, "--segment-command", template) == 1
    found = problems(tmp_path)
    assert "unknown labels [7]" in found["case-a"] and "shape" in found["case-b"]
    assert "affine differs" in found["case-c"] and "wrote no {output}" in found["case-d"]
    assert all(r["mae/brain"] == "0" and r["dice/WT"] == "" for r in rows(tmp_path).values())


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("true {input}", "must contain {output}"),
        ("true {input} {output} {modality}", "bad placeholder"),
        ("no-such-program-anywhere {output}", "no program"),
        ("true '{output}", "No closing quotation"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_once(template: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        parse_command(template)


def test_the_template_is_split_as_a_shell_would_and_no_further():
    words = parse_command("env A={case} sh {input} '{output} x'").words
    assert words == ("env", "A={case}", "sh", "{input}", "{output} x")


def test_cases_without_reference_segmentation_have_no_overlap(
    references: Path, predictions: Path, tmp_path: Path
):
    for case in find_cases(references):
        case.files["seg"].unlink()
    template = command(tmp_path, "fails", "fails", "fails", "fails")
    assert evaluate(tmp_path, "--segment-command", template) == 0
    assert all(r["dice/WT"] == "" for r in rows(tmp_path).values())


DOCUMENT = Path(__file__).parents[2] / "docs/how-to/evaluate.md"
FAKE_BRATS = """
import nibabel, numpy as np
class AdultGliomaPreTreatmentSegmenter:
    def __init__(self, cuda_devices): assert cuda_devices == "0"
    def infer_single(self, t1c, t1n, t2f, t2w, output_file):
        names = [p.rsplit("-", 1)[1] for p in (t1c, t1n, t2f, t2w)]
        assert names == ["t1c.nii.gz", "t1n.nii.gz", "t2f.nii.gz", "t2w.nii.gz"]
        image = nibabel.load(t2w)
        nibabel.save(nibabel.Nifti1Image((np.asarray(image.dataobj) > 900).astype(np.uint8), image.affine), output_file)
"""
FAKE_NNUNET = """
import argparse, pathlib, nibabel, numpy as np
p = argparse.ArgumentParser()
for o in "iodcf": p.add_argument("-" + o, required=True)
a = p.parse_args()
assert (a.d, a.c, a.f) == ("137", "3d_fullres", "5")
files = sorted(pathlib.Path(a.i).iterdir())
assert [f.name[-11:-7] for f in files] == ["0000", "0001", "0002", "0003"]
image = nibabel.load(files[1])
out = pathlib.Path(a.o); out.mkdir()
labels = (np.asarray(image.dataobj) > 700).astype(np.uint8)
nibabel.save(nibabel.Nifti1Image(labels, image.affine), out / (files[0].name[:-12] + ".nii.gz"))
"""


def documented(tmp_path: Path, language: str, name: str) -> str:
    """Write the document's script `name` (the block of code in that language); returns the command line given for it."""
    text = DOCUMENT.read_text()
    blocks = [b.split("```")[0] for b in text.split(f"```{language}\n")[1:]]
    (script,) = [b for b in blocks if not b.startswith("brasyn ")]
    (tmp_path / name).write_text(script)
    (line,) = [x.strip() for x in text.splitlines() if x.startswith("    --segment-command") and name in x]
    return line.replace(name, str(tmp_path / name)).replace("python ", f"{sys.executable} ")


@pytest.mark.parametrize(
    ("language", "name", "region"),
    [("python", "segment_brats.py", "NETC"), ("bash", "segment_nnunet.sh", "ED")],
)
def test_the_documented_scripts_hand_on_the_right_files(
    references: Path, predictions: Path, tmp_path: Path, monkeypatch, language: str, name: str, region: str
):
    """Stand-ins for the programs themselves, which need containers and weights. Label 1 is NETC in BraTS' order, ED in nnU-Net's."""
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes/brats.py").write_text(FAKE_BRATS)
    program = tmp_path / "fakes/nnUNetv2_predict"
    program.write_text(f"#!{sys.executable}\n{FAKE_NNUNET}")
    program.chmod(0o755)
    for path in sorted(predictions.iterdir())[1:]:
        path.unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "fakes"), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"), prepend=":")
    assert evaluate(tmp_path, *shlex.split(documented(tmp_path, language, name))) == 0
    other = {"NETC": "ED", "ED": "NETC"}[region]
    for row in rows(tmp_path).values():
        assert float(row[f"dice/{region}"]) > 0 and float(row[f"dice/{other}"]) == 0
