"""Kind 1: wrong results are never silent. Each test plants what would give one, and finds it said or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brasyn_dist.brats import MODALITIES, find_case
from brasyn_dist.data.case_folders import find_cohorts
from brasyn_dist.data.format.codec import decode_slice
from brasyn_dist.data.nifti import read_volume, write_like
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.inference.api import infer_batch
from brasyn_dist.inference.case_job import CaseJob
from brasyn_dist.inference.case_requests import CaseRequest
from tests.data.case_files import LPS, brain, save
from tests.robustness.cohorts import OPTIONS, SHAPE, cohort, rewrite

# Volumes without a voxel above 0


@pytest.mark.parametrize("content", ["zeros", "negative", "zeros in a plain file"])
@pytest.mark.parametrize("absent", [(), ("t1c",)])
def test_a_volume_without_foreground_is_a_missing_modality(tmp_path, weights, content, absent):
    folder = cohort(tmp_path / "in", "c") / "c"
    path = folder / "c-t2f.nii.gz"
    rewrite(path, lambda a: a * 0 if content != "negative" else np.full_like(a, -1))
    if content == "zeros in a plain file":
        nibabel.save(nibabel.load(path), folder / "c-t2f.nii")
        path.unlink()
    for modality in absent:
        (folder / f"c-{modality}.nii.gz").unlink()
    lines: list[str] = []
    (record,) = infer_batch(tmp_path / "in", tmp_path / "out", weights=weights, say=lines.append)
    assert record.status == "done" and record.targets == tuple(sorted((*absent, "t2f")))
    assert "t2f" not in record.available
    assert any("c-t2f.nii" in line and "taken as missing" in line for line in lines)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "taken as missing" in manifest["cases"][0]["notes"][0]
    assert (read_volume(tmp_path / "out/c-t2f.nii.gz").array > 0).any()


def test_a_case_of_zeros_only_fails_by_name(tmp_path, weights):
    folder = cohort(tmp_path / "in", "c") / "c"
    for modality in MODALITIES:
        rewrite(folder / f"c-{modality}.nii.gz", lambda a: a * 0)
    (record,) = infer_batch(tmp_path / "in", tmp_path / "out", weights=weights)
    assert record.status == "failed" and str(folder) in record.reason


# Type and geometry of written volumes


@pytest.mark.parametrize("inputs", ["u1 u1 u1", "u1 i2 u1", "i2 i2 i2", "u2 i2 u1", "i4 i2 i2", "f4 i2 u1"])
@pytest.mark.parametrize("highest", [200, 3000, 40_000, 70_000])
def test_the_output_type_holds_the_values(tmp_path, inputs, highest):
    folder = cohort(tmp_path / "in", "c") / "c"
    for modality, dtype in zip(("t1c", "t1n", "t2w"), inputs.split()):
        rewrite(folder / f"c-{modality}.nii.gz", lambda a: np.minimum(a, 250), np.dtype(dtype).type)
    (folder / "c-t2f.nii.gz").unlink()
    case = find_case(folder)
    made = np.where(brain(0, SHAPE)[0]["t2f"] > 0, highest, 0).astype(np.int32)
    request = CaseRequest(case, case.available, {"t2f": tmp_path / "c-t2f.nii.gz"})
    job = CaseJob(request).read().synthesise(lambda volumes, targets, timer: {"t2f": made}).write()
    assert job.record is not None and job.record.status == "done", job.record
    written = np.asanyarray(nibabel.load(tmp_path / "c-t2f.nii.gz").dataobj)
    np.testing.assert_array_equal(written, made)


def oblique(angle: float = 0.3) -> np.ndarray:
    affine = np.diag([-1.0, -0.9, 1.2, 1])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] = 12.5, -7, 3
    return affine


def with_forms(image: nibabel.Nifti1Image, qform: tuple, sform: tuple) -> nibabel.Nifti1Image:
    image.set_qform(*qform)
    image.set_sform(*sform)
    return image


SHIFTED = LPS + np.eye(4)[:, [3, 0, 1, 2]] @ np.diag([0, 0.3, 0, 0])  # contradicts LPS a little
HEADERS: dict[str, Callable[[np.ndarray], nibabel.Nifti1Image]] = {
    "both forms": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (LPS, 1), (LPS, 1)),
    "two codes": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (LPS, 2), (LPS, 4)),
    "qform only": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (LPS, 1), (None, 0)),
    "sform only": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (None, 0), (LPS, 2)),
    "oblique": lambda a: with_forms(nibabel.Nifti1Image(a, oblique()), (oblique(), 1), (oblique(), 1)),
    "forms that differ": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (SHIFTED, 1), (LPS, 1)),
    "no orientation": lambda a: with_forms(nibabel.Nifti1Image(a, LPS), (None, 0), (None, 0)),
    "one volume of four dimensions": lambda a: nibabel.Nifti1Image(a[..., None], LPS),
    "NIfTI-2": lambda a: nibabel.Nifti2Image(a, LPS),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_written_volumes_have_the_grid_of_the_input(tmp_path, kind):
    import SimpleITK

    image = HEADERS[kind](np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    write_like(tmp_path / "out.nii.gz", volume.array, volume)
    ours, theirs = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "in.nii.gz")
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    names = ["dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"]
    for name in [*names, "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]:
        np.testing.assert_array_equal(ours.header[name], theirs.header[name], err_msg=name)
    if kind == "NIfTI-2":  # ITK does not read it
        return
    a, b = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("in.nii.gz", "out.nii.gz"))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(a, get)() == getattr(b, get)(), get


@settings(max_examples=60, deadline=None)
@given(
    turn=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    sizes=st.tuples(*[st.floats(0.2, 6)] * 3),
    codes=st.tuples(*[st.integers(0, 5)] * 2),
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8", ">i2"]),
    slope=st.sampled_from([1.0, 2.0, 0.5, 1 / 3]),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    angle=st.floats(-0.3, 0.3),
)
def test_any_header_survives_or_is_refused(
    tmp_path_factory, turn, signs, sizes, codes, dtype, slope, shape, angle
):
    folder = tmp_path_factory.mktemp("h")
    affine = np.eye(4)
    affine[:3, :3] = oblique(angle)[:3, :3] @ np.diag([-1, -1 / 0.9, 1 / 1.2]) @ np.eye(3)[list(turn)]
    affine[:3, :3] = affine[:3, :3] @ np.diag(np.multiply(signs, sizes))
    raw = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    image = nibabel.Nifti1Image(raw, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_slope_inter(slope, 0)
    (folder / "a.nii").write_bytes(image.to_bytes())
    try:
        volume = read_volume(folder / "a.nii")
    except BrasynError as error:
        assert str(folder / "a.nii") in str(error)
        return
    write_like(folder / "b.nii", volume.array, volume, np.int32)
    ours, theirs = nibabel.load(folder / "b.nii"), nibabel.load(folder / "a.nii")
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_allclose(np.asarray(ours.dataobj), np.asarray(theirs.dataobj), atol=1e-3)
    assert [int(ours.header[f"{n}form_code"]) for n in "qs"] == list(codes)
    assert volume.oriented == any(codes)


# Headers that leave something open


def reheader(folder: Path, kind: str) -> None:
    """Rewrite all volumes of a case with the header HEADERS[kind], or one of two contradicting forms."""
    for path in folder.iterdir():
        array = np.asanyarray(nibabel.load(path).dataobj)
        if kind == "contradicting forms":
            image = with_forms(nibabel.Nifti1Image(array, LPS), (np.diag([1.0, 1, 1, 1]), 1), (LPS, 1))
        else:
            image = HEADERS[kind](array)
        nibabel.save(image, path)


OPEN = {"no orientation": "no orientation in the header: LAS assumed", "contradicting forms": "contradict"}


@pytest.mark.parametrize("kind", OPEN)
def test_sharding_refuses_an_open_orientation_unless_it_is_stated(tmp_path, kind):
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000", "BraTS-GLI-00001-000")
    before = make_shards([root], tmp_path / "before", OPTIONS)
    reheader(root / "BraTS-GLI-00000-000", kind)
    with pytest.raises(DataError, match=r"BraTS-GLI-00000-000-seg.nii.gz: the header .*--assume LPS"):
        make_shards([root], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
    stated = ShardOptions(**{**vars(OPTIONS), "assume": "LPS"})
    after = make_shards([root], tmp_path / "out", stated)
    assert [s.columns[:, -1].tolist() for s in after.shards] == [
        s.columns[:, -1].tolist() for s in before.shards
    ]
    assert after.header.cases == before.header.cases
    assert "LPS assumed as stated" in after.header.options["notes"]["BraTS-GLI-00000-000"][0]
    first = [
        decode_slice(read_sample(folder, index), "npy.zst")
        for folder, index in ((tmp_path / "before", before), (tmp_path / "out", after))
    ]
    np.testing.assert_array_equal(*first)


def read_sample(folder: Path, index) -> bytes:
    offset, size = (int(index.columns[name][0]) for name in ("offset", "size"))
    return (folder / index.shards[0].name).read_bytes()[offset : offset + size]


@pytest.mark.parametrize("axes", ["LP", "XYZ", "LRS", "LPSS", ""])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(DataError, match="--assume"):
        ShardOptions(assume=axes)


@pytest.mark.parametrize("kind", [*OPEN, "forms that differ"])
def test_inference_says_what_it_assumes(tmp_path, weights, kind):
    root = cohort(tmp_path / "in", "c", segmentation=False)
    (root / "c/c-t2f.nii.gz").unlink()
    reheader(root / "c", kind)
    lines: list[str] = []
    (record,) = infer_batch(root, tmp_path / "out", weights=weights, say=lines.append)
    expected = OPEN.get(kind, "sform used")
    assert record.status == "done" and expected in record.notes[0] and expected in "\n".join(lines)
    assert expected in json.loads((tmp_path / "out/manifest.json").read_text())["cases"][0]["notes"][0]
    (kept,) = infer_batch(root, tmp_path / "out", weights=weights)
    assert kept.status == "kept" and kept.notes == record.notes
    (refused,) = infer_batch(root, tmp_path / "strict", weights=weights, strict=True)
    assert refused.status == "failed" and expected in refused.reason and "--strict" in refused.reason


def test_a_stated_orientation_is_used_in_inference(tmp_path, weights):
    root = cohort(tmp_path / "in", "c", segmentation=False)
    (root / "c/c-t2f.nii.gz").unlink()
    infer_batch(root, tmp_path / "right", weights=weights)
    reheader(root / "c", "no orientation")
    infer_batch(root, tmp_path / "stated", weights=weights, assume="lps")
    infer_batch(root, tmp_path / "assumed", weights=weights)
    right, stated, assumed = (
        np.asanyarray(nibabel.load(tmp_path / name / "c-t2f.nii.gz").dataobj)
        for name in ("right", "stated", "assumed")
    )
    np.testing.assert_array_equal(right, stated)
    assert (right != assumed).any(), "LAS is another orientation"


# Scans that are no skull-stripped brains of 1 mm


def spacing(path: Path) -> None:
    image = nibabel.load(path)
    save(path, np.asanyarray(image.dataobj), np.diag([-3.0, -3, 3, 1]), image.get_data_dtype())


UNUSUAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "voxels of 3 mm": (spacing, "voxels of 3 mm, trained at 1 mm"),
    "an offset": (lambda p: rewrite(p, lambda a: a - 200), "below 0 and count as background"),
    "no background": (lambda p: rewrite(p, lambda a: a + 20), "not skull-stripped?"),
    "noise in the air": (
        lambda p: rewrite(p, lambda a: np.maximum(a, np.indices(a.shape).sum(0) % 2).astype(a.dtype)),
        "not skull-stripped?",
    ),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_scans_are_named_and_refused_on_request(tmp_path, weights, caplog, kind):
    change, expected = UNUSUAL[kind]
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000", "BraTS-GLI-00001-000", segmentation=False)
    for path in (root / "BraTS-GLI-00000-000").iterdir():
        change(path)
    index = make_shards([root], tmp_path / "shards", OPTIONS)
    assert list(index.header.options["notes"]) == ["BraTS-GLI-00000-000"]
    assert expected in caplog.text
    with pytest.raises(DataError, match=r"(?s)^1 bad case.*--strict"):
        make_shards([root], tmp_path / "strict", ShardOptions(**{**vars(OPTIONS), "strict": True}))
    for case in root.iterdir():
        (case / f"{case.name}-t2f.nii.gz").unlink()
    unusual, usual = infer_batch(root, tmp_path / "out", weights=weights)
    assert expected in unusual.notes[0] and not usual.notes
    unusual, usual = infer_batch(root, tmp_path / "out2", weights=weights, strict=True)
    assert (unusual.status, usual.status) == ("failed", "done")


def test_one_volume_in_place_of_another_is_named(tmp_path, weights):
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000", "BraTS-GLI-00001-000")
    folder = root / "BraTS-GLI-00000-000"
    data = (folder / "BraTS-GLI-00000-000-t1n.nii.gz").read_bytes()
    (folder / "BraTS-GLI-00000-000-t1c.nii.gz").write_bytes(data)
    index = make_shards([root], tmp_path / "out", OPTIONS)
    assert index.header.options["notes"] == {
        "BraTS-GLI-00000-000": ["t1c, t1n: equal volumes: one copied in place of another?"]
    }
    (folder / "BraTS-GLI-00000-000-t2f.nii.gz").unlink()
    first = infer_batch(root, tmp_path / "predictions", weights=weights)[0]
    assert "t1c, t1n: equal volumes: one copied in place of another?" in first.notes


def test_a_head_is_larger_than_a_brain():
    from brasyn_dist.data.case_notes import _judge

    ball = np.zeros((170, 170, 170), np.uint8)
    ball[5:165, 5:165, 5:165] = 1  # 4.1 litres at 1 mm
    assert "larger than a brain" in _judge(ball, 1e-6)[0]
    ball[:60] = 0
    assert not _judge(ball, 0.8e-6)


# Rescaled intensities


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    "rescale", [lambda a: a / a.max(), lambda a: (a - a[a > 0].mean()) / a.std(), lambda a: a / 1e5]
)
def test_rounding_is_refused_where_it_leaves_few_values(tmp_path, rescale, rounded):
    path = save(tmp_path / "a.nii.gz", rescale(brain(0)[0]["t2w"].astype(float)), dtype=np.float32)
    with pytest.raises(DataError, match=r"a\.nii\.gz: values from .* are rescaled.*original volume"):
        read_volume(path, rounded)


def test_rounding_is_allowed_where_it_keeps_the_values(tmp_path):
    path = save(tmp_path / "a.nii.gz", brain(0)[0]["t2w"] * 0.13, dtype=np.float32)
    assert read_volume(path, round_values=True).array.max() > 150


def test_constant_volumes_give_no_statistics(tmp_path):
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000", "BraTS-GLI-00001-000")
    for path in root.glob("*/*-t1c.nii.gz"):
        rewrite(path, lambda a: (a > 0).astype(np.int16))
    with pytest.raises(DataError, match="t1c has std 0"):
        make_shards([root], tmp_path / "out", OPTIONS)


# Files in other forms


@pytest.mark.parametrize("volumes", [0, 1, 2])
def test_a_folder_in_place_of_a_file(tmp_path, volumes):
    (tmp_path / "c-t1c.nii").mkdir()
    for number in range(volumes):
        save(tmp_path / f"c-t1c.nii/0000_{number}.nii", brain(0)[0]["t1c"])
    if volumes == 1:
        np.testing.assert_array_equal(read_volume(tmp_path / "c-t1c.nii").array, brain(0)[0]["t1c"])
    else:
        with pytest.raises(DataError, match=f"a folder with {volumes} volumes; replace it"):
            read_volume(tmp_path / "c-t1c.nii")


@pytest.mark.parametrize(
    "name", ["t1c.nii.gz", "BraTS-GLI-00001-000_0000.nii.gz", "BraTS-GLI-00001-000-t1c.mha"]
)
def test_folders_with_images_under_other_names_are_listed(tmp_path, caplog, name):
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000")
    (root / "BraTS-GLI-00001-000").mkdir()
    (root / "BraTS-GLI-00001-000" / name).write_bytes(b"x")
    (root / "notes").mkdir()
    (root / "notes/read.txt").write_text("no image")
    cases, bad = find_cohorts([root])
    assert [case.name for case in cases] == ["BraTS-GLI-00000-000"] and not bad
    (line,) = caplog.messages
    assert f"are no cases and are left out: BraTS-GLI-00001-000/{name}; expected" in line
    assert "CASE-t1c.nii.gz" in line
