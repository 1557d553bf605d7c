"""Every planted fault is found under its kind only; a clean cohort has no findings."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import find_case, find_cases
from brasyn_dist.cli.inspect import main
from brasyn_dist.data.qc.anomalies import OUTLIER_FACTS, Finding, find_anomalies, robust_z, similar_pairs
from brasyn_dist.data.qc.measurements import end_areas, inspect_case, measure
from tests.report.checked import checked
from tests.small import small_cases

IGNORED = ("geometry",)
"""Small phantoms are none of BraTS' shape."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("clean") / "c", cases=8, shape=(64, 64, 48)) / "train_gli"


@pytest.fixture
def cohort(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean, tmp_path / "cohort")


def change(cohort: Path, number: int, modality: str, how) -> str:
    """Rewrite a volume by `how(array)`. Returns the case's name."""
    case = find_cases(cohort)[number]
    image = nibabel.load(case.files[modality])
    array = how(np.array(image.dataobj))
    nibabel.save(nibabel.Nifti1Image(array, image.affine), case.files[modality])
    return case.name


def found(cohort: Path) -> list[Finding]:
    findings = find_anomalies([inspect_case(case) for case in find_cases(cohort)])
    return [f for f in findings if f.kind not in IGNORED]


@pytest.fixture(scope="module")
def before(clean: Path) -> list[Finding]:
    """Of the clean cohort, outliers aside: small phantoms spread widely."""
    return [f for f in found(clean) if f.kind != "outlier"]


def cut_top(array: np.ndarray) -> np.ndarray:
    array[:, :, array.shape[2] // 2 :] = 0
    return array


def repeat_plane(array: np.ndarray) -> np.ndarray:
    array[:, :, 25] = array[:, :, 24]
    return array


def clip(array: np.ndarray) -> np.ndarray:
    return np.minimum(array, int(np.percentile(array[array > 0], 90)))


def negative(array: np.ndarray) -> np.ndarray:
    array[30, 30, 24] = -7
    return array


def coarse_scale(array: np.ndarray) -> np.ndarray:
    return np.where(array > 0, np.maximum(1, array // 20 * 20), 0).astype(np.int16)


def thick(array: np.ndarray) -> np.ndarray:
    """Slices of 6 mm, linearly interpolated: neighbours along z differ little."""
    planes = array[:, :, ::6].astype(float)
    places = np.minimum(np.arange(array.shape[2]) / 6, planes.shape[2] - 1.001)
    low = places.astype(int)
    mixed = planes[:, :, low] * (1 - (places - low)) + planes[:, :, low + 1] * (places - low)
    return np.where(array > 0, np.maximum(1, np.rint(mixed)), 0).astype(np.int16)


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        (cut_top, {"truncated", "mask differs"}),
        (repeat_plane, {"low quality"}),
        (clip, {"low quality"}),
        (negative, {"intensities"}),
        (coarse_scale, {"low quality"}),
        (thick, {"low quality"}),
        (lambda a: a.astype(np.float32), {"intensities"}),
        (lambda a: np.where(a > 0, a + 0.25, 0).astype(np.float32), {"intensities", "file"}),
    ],
    ids=["cut", "repeated", "clipped", "negative", "coarse", "thick", "float", "fractions"],
)
def test_a_planted_fault_is_found_where_it_is(cohort: Path, how, kinds: set[str], before):
    name = change(cohort, 2, "t2f", how)
    new = [f for f in found(cohort) if f.kind != "outlier" and f not in before]
    findings = {(f.case, f.kind, f.modality) for f in new}
    assert {case for case, _, _ in findings} == {name}
    assert {kind for _, kind, _ in findings} == kinds
    assert {modality for _, kind, modality in findings if kind != "file"} == {"t2f"}


def test_copies_are_found_exact_and_altered(cohort: Path, before):
    cases = find_cases(cohort)
    shutil.copyfile(cases[0].files["t1c"], cases[3].files["t1c"])
    shutil.copyfile(cases[1].files["t2w"], cases[4].files["t2w"])
    change(
        cohort,
        4,
        "t2w",
        lambda a: np.where(a > 0, 2 * a + np.random.default_rng(0).integers(0, 30, a.shape), 0).astype(
            np.int16
        ),
    )
    duplicates = {(f.case, f.modality): f.detail for f in found(cohort) if f.kind == "duplicate"}
    assert set(duplicates) == {(cases[3].name, "t1c"), (cases[4].name, "t2w")}
    assert f"equal voxel for voxel to {cases[0].name} t1c" in duplicates[cases[3].name, "t1c"]
    assert f"with {cases[1].name}" in duplicates[cases[4].name, "t2w"]
    assert not [f for f in before if f.kind == "duplicate"]


def test_two_modalities_of_one_case_that_are_the_same_file(cohort: Path):
    case = find_cases(cohort)[0]
    shutil.copyfile(case.files["t1n"], case.files["t1c"])
    assert [(f.case, f.modality) for f in found(cohort) if f.kind == "duplicate"] == [(case.name, "t1n")]


def test_an_outlier_in_scale(cohort: Path):
    name = change(cohort, 5, "t1n", lambda a: np.minimum(a.astype(np.int32) * 30, 32000).astype(np.int16))
    details = [f.detail for f in found(cohort) if (f.kind, f.case, f.modality) == ("outlier", name, "t1n")]
    assert any(d.startswith("median") for d in details) and any(d.startswith("p995") for d in details)


def test_segmentations(cohort: Path, before):
    def outside(labels: np.ndarray) -> np.ndarray:
        labels[0, 0, :5] = 2
        return labels

    first = change(cohort, 0, "seg", outside)
    second = change(cohort, 1, "seg", lambda a: np.where(a == 3, 1, a).astype(np.uint8))
    third = change(cohort, 2, "seg", lambda a: a * 0)
    fourth = find_cases(cohort)[3]
    fourth.files["seg"].unlink()
    details = {f.case: f.detail for f in found(cohort) if f.kind == "segmentation" and f not in before}
    assert details == {
        first: "5 labelled voxels outside the brain",
        second: "no enhancing tumour",
        third: "empty",
        fourth.name: "none",
    }


def test_facts_by_hand():
    volume = np.zeros((10, 10, 6), np.int16)
    volume[2:8, 2:8, 1:5] = 100
    volume[2:8, 2:8, 4] = 300
    volume[2, 2, 1], volume[0, 0, 0] = 0, -3
    brain = np.zeros(volume.shape, bool)
    brain[2:8, 2:8, 0:5] = True
    facts = measure(volume, brain, "int16")
    assert (facts.voxels, facts.negative, facts.minimum, facts.maximum) == (143, 1, -3, 300)
    assert (facts.extra, facts.missing, facts.absent) == (0, 37, {"x": 0, "y": 0, "z": 1})
    assert facts.distinct == 2 and facts.saturated == pytest.approx(36 / 143)
    assert facts.repeated == 1 and facts.median == 100  # planes 2 and 3 are equal; 1 lacks a voxel
    assert facts.ends["z low"] == pytest.approx(35 / 36) and facts.ends["z high"] == 1
    assert end_areas(np.zeros((3, 3, 3), bool)) == dict.fromkeys(facts.ends, 0)


def test_robust_z_and_correlation():
    values = np.array([1.0, 2, 3, 4, 100])
    assert robust_z(values).tolist() == pytest.approx([-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 97 / 1.4826])
    assert not robust_z(np.array([1.0, 1, 1, 5])).any()
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0.2, 1, (3, 50))
    blocks[2] = 0.5 * blocks[0] + 0.1
    assert [(i, j) for i, j, _ in similar_pairs(blocks)] == [(0, 2)]


def test_a_case_that_cannot_be_read_is_a_finding(cohort: Path):
    case = find_cases(cohort)[0]
    case.files["t2w"].write_bytes(case.files["t2w"].read_bytes()[:500])
    facts = inspect_case(find_case(case.folder))
    assert not facts.modalities
    kinds = {(f.case, f.kind) for f in found(cohort)}
    assert (case.name, "unreadable") in kinds


@pytest.mark.slow
def test_as_its_user_runs_it(cohort: Path, tmp_path: Path, capsys):
    name = change(cohort, 2, "t2f", cut_top)
    find_cases(cohort)[4].files["t1c"].unlink()
    out = tmp_path / "out"
    assert main([str(cohort), "--out", str(out)]) == 0
    assert "truncated" in capsys.readouterr().out
    values = json.loads((out / "inspection.json").read_text())
    assert len(values["cases"]) == 7 and {"case", "kind", "modality", "detail"} == set(values["findings"][0])
    assert any(f["case"] == name and f["kind"] == "truncated" for f in values["findings"])
    assert len((out / "cases.csv").read_text().splitlines()) == 1 + 7 * 4 - 1
    page = checked(out / "inspection.html")
    assert page.titles() == ["Findings", "Intensities", "Distributions", "Cases", "Numbers"]
    assert len(page.all("article")) == 7 and name in page.text()
    charts = [svg["aria-label"].split(".")[0] for svg in page.all("svg")]
    assert charts.count("Intensities as stored") == 4 and charts[-5:] == list(OUTLIER_FACTS)
    # Axial and sagittal slices of all modalities but one; the first row opens the page.
    assert len(page.all("img")) in (2 * (7 * 4 - 1) + 3, 2 * (7 * 4 - 1) + 4)
    (tmp_path / "bad/case").mkdir(parents=True)
    (tmp_path / "bad/case/case-t1c.nii.gz").write_bytes(b"x")
    assert main([str(tmp_path / "bad"), "--out", str(tmp_path / "none")]) == 1
    assert "no case can be read" in capsys.readouterr().err
