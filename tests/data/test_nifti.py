"""Reading and writing NIfTI, compared with nibabel, for all orders, types and editions."""

import gzip

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from brasyn_dist.brats import MODALITIES, find_case
from brasyn_dist.data.nifti import check_geometry, read_case, read_labels, read_volume, write_like
from brasyn_dist.errors import DataError
from tests.data.case_files import LPS, NAMES_2021, brain, save, to_ras, write_case

SHAPE = (7, 6, 5)


def numbers(low: int = 0, high: int = 3000, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape)


def in_order(codes: str, array_lps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of the same volume stored in the order of `codes`."""
    change = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(codes)))
    return apply_orientation(array_lps, change), LPS @ inv_ornt_aff(change, array_lps.shape)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "PIR", "SLA", "ILP"])
def test_every_storage_order_gives_the_same_volume(tmp_path, codes):
    array, affine = in_order(codes, numbers())
    volume = read_volume(save(tmp_path / "a.nii.gz", array, affine))
    np.testing.assert_array_equal(volume.array, numbers())
    np.testing.assert_allclose(volume.affine, LPS, atol=1e-5)
    assert volume.array.flags.f_contiguous


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SLA"])
def test_write_like_keeps_order_affine_type_and_codes(tmp_path, codes):
    array, affine = in_order(codes, numbers())
    reference = read_volume(save(tmp_path / "a.nii.gz", array, affine))
    write_like(tmp_path / "b.nii.gz", numbers() + 5, reference)
    written, source = nibabel.load(tmp_path / "b.nii.gz"), nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), array + 5)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.int16
    assert [int(written.header[k]) for k in ("qform_code", "sform_code")] == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_write_like_keeps_a_header_with_only_a_qform(tmp_path):
    image = nibabel.Nifti1Image(numbers().astype(np.float32), LPS)
    image.set_qform(LPS, 2)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    write_like(tmp_path / "b.nii.gz", numbers(), read_volume(tmp_path / "a.nii.gz"))
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert [int(written.header[k]) for k in ("qform_code", "sform_code")] == [2, 0]
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "a.nii.gz").affine)
    assert written.get_data_dtype() == np.float32


def test_write_like_rounds_and_clips_to_the_type(tmp_path):
    reference = read_volume(save(tmp_path / "a.nii", numbers(0, 200), dtype=np.uint8))
    values = np.full(SHAPE, 7.5)
    values[0] = -3.2
    values[1] = 999.0
    values[2] = 6.6
    write_like(tmp_path / "b.nii", values, reference)
    written = np.asarray(nibabel.load(tmp_path / "b.nii").dataobj)
    assert [int(written[i, 0, 0]) for i in range(4)] == [0, 255, 7, 8]
    write_like(tmp_path / "c.nii", values, reference, np.int16)
    assert int(np.asarray(nibabel.load(tmp_path / "c.nii").dataobj).max()) == 999


def test_write_like_writes_the_same_bytes_every_time(tmp_path):
    reference = read_volume(save(tmp_path / "a.nii.gz", numbers()))
    for name in ("b.nii.gz", "c.nii.gz"):
        write_like(tmp_path / name, numbers(), reference)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_write_like_refuses_another_shape(tmp_path):
    reference = read_volume(save(tmp_path / "a.nii.gz", numbers()))
    with pytest.raises(DataError, match=r"b\.nii\.gz: shape .* differs"):
        write_like(tmp_path / "b.nii.gz", np.zeros((3, 3, 3)), reference)
    assert not (tmp_path / "b.nii.gz").exists()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"]
)
def test_every_header_type_gives_the_same_integers(tmp_path, dtype, suffix):
    volume = read_volume(save(tmp_path / f"a{suffix}", numbers(0, 250), dtype=dtype))
    np.testing.assert_array_equal(volume.array, numbers(0, 250))
    assert volume.array.dtype == np.int16


def test_scaled_headers_and_nifti_2(tmp_path):
    image = nibabel.Nifti1Image((numbers() // 3 * 3).astype(np.int16), LPS)
    image.header.set_slope_inter(1 / 3, 2)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "scaled.nii.gz").array, numbers() // 3 + 2)
    nibabel.save(nibabel.Nifti2Image(numbers().astype(np.int16), LPS), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii.gz").array, numbers())


def test_negative_and_large_values_are_kept(tmp_path):
    values = numbers(-200, 32768)
    assert read_volume(save(tmp_path / "a.nii.gz", values, dtype=np.float32)).array.dtype == np.int16
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, values)
    values[0, 0, 0] = 70_000
    volume = read_volume(save(tmp_path / "b.nii.gz", values, dtype=np.int32))
    assert volume.array.dtype == np.int32 and volume.array[0, 0, 0] == 70_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    values = numbers().astype(np.float32)
    values[1, 2, 3] = values[0, 0, 0] = bad
    with pytest.raises(DataError, match=r"a\.nii\.gz: NaN or infinity in 2 of 210 voxels"):
        read_volume(save(tmp_path / "a.nii.gz", values, dtype=np.float32))


def test_fractions_are_refused_unless_rounding_is_asked_for(tmp_path):
    save(tmp_path / "a.nii.gz", numbers() + 0.4, dtype=np.float32)
    with pytest.raises(DataError, match=r"a\.nii\.gz: intensities are not whole numbers .*--round"):
        read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", round_values=True).array, numbers())
    save(tmp_path / "b.nii.gz", numbers() + 0.0004, dtype=np.float64)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, numbers())


def gzipped_in(form: str, plain: bytes) -> bytes:
    whole, first, second = gzip.compress(plain), gzip.compress(plain[:9000]), gzip.compress(plain[9000:], 1)
    return {
        "two members": first + second,
        "three members, one of them empty": first + gzip.compress(b"") + second,
        "zeros after it": whole + bytes(300_000),
        "content after the values": gzip.compress(plain + b"more" * 50_000),
    }[form]


@pytest.mark.parametrize(
    "form",
    ["two members", "three members, one of them empty", "zeros after it", "content after the values"],
)
def test_every_form_of_gzip(tmp_path, form):
    plain = save(tmp_path / "a.nii", numbers(shape=(20, 20, 20))).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzipped_in(form, plain))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, numbers(shape=(20, 20, 20)))


def test_every_flipped_bit_of_the_checksum_is_noticed(tmp_path):
    data = save(tmp_path / "a.nii.gz", numbers()).read_bytes()
    for bit in range(64):
        damaged = bytearray(data)
        damaged[-8 + bit // 8] ^= 1 << bit % 8
        (tmp_path / "bad.nii.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.nii\.gz: truncated or damaged gzip"):
            read_volume(tmp_path / "bad.nii.gz")


def damaged(name: str, tmp_path) -> bytes:
    whole = save(tmp_path / "whole.nii.gz", numbers(shape=(20, 20, 20))).read_bytes()
    plain = gzip.decompress(whole)
    flipped, flags = bytearray(whole), bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    flags[3] ^= 0xE5
    return {
        "gzip cut in the middle": whole[: len(whole) // 2],
        "gzip without its end": whole[:-8],
        "gzip with a flipped byte": bytes(flipped),
        "gzip with other flags": bytes(flags),
        "gzip of which two bytes are left": whole[:2],
        "gzip without its last byte": whole[:-1],
        "gzip with a second member that was cut": gzip.compress(plain[:9000])
        + gzip.compress(plain[9000:])[:-9],
        "gzip and something else": whole + b"something else",
        "gzip of a cut volume": gzip.compress(plain[:-100]),
        "volume cut": plain[:-1],
        "header cut": plain[:200],
        "nothing": b"",
        "text": b"this is not a volume\n" * 100,
        "gzip of text": gzip.compress(b"this is not a volume\n" * 100),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "gzip cut in the middle", "gzip without its end", "gzip with a flipped byte",
        "gzip with other flags", "gzip of which two bytes are left", "gzip without its last byte",
        "gzip with a second member that was cut", "gzip and something else", "gzip of a cut volume",
        "volume cut", "header cut", "nothing", "text", "gzip of text",
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / "bad.nii.gz").write_bytes(damaged(name, tmp_path))
    with pytest.raises(DataError, match=r"bad\.nii\.gz: (truncated or damaged|not a NIfTI file).*again"):
        read_volume(tmp_path / "bad.nii.gz")


def test_what_is_no_volume_of_intensities_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.nii\.gz: cannot be read \(No such file"):
        read_volume(tmp_path / "absent.nii.gz")
    with pytest.raises(DataError, match=r"has shape \(7, 6, 5, 2\)"):
        read_volume(save(tmp_path / "four.nii.gz", np.zeros((*SHAPE, 2))))
    with pytest.raises(DataError, match="complex64 are no intensities"):
        read_volume(save(tmp_path / "complex.nii.gz", numbers(), dtype=np.complex64))
    with pytest.raises(DataError, match="do not fit 32-bit"):
        read_volume(save(tmp_path / "huge.nii.gz", numbers() * 1e9, dtype=np.float64))
    image = nibabel.Nifti1Image(numbers().astype(np.int16), LPS)
    image.header["srow_x"] = image.header["srow_y"] = 0
    image.header["sform_code"] = 1
    (tmp_path / "flat.nii").write_bytes(
        image.header.binaryblock + b"\0" * 4 + b"\0" * (2 * image.dataobj.size)
    )
    with pytest.raises(DataError, match=r"flat\.nii: truncated or damaged"):
        read_volume(tmp_path / "flat.nii")


def test_labels_of_all_editions_are_canonical(tmp_path):
    labels = numbers(0, 4)
    for number, (stored, dtype) in enumerate(
        [(labels, np.uint8), (labels, np.float32), (np.where(labels == 3, 4, labels), np.int16)]
    ):
        read = read_labels(save(tmp_path / f"{number}.nii.gz", stored, dtype=dtype)).array
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("value", [5, -1, 2.5])
def test_unknown_labels_are_refused(tmp_path, value):
    labels = numbers(0, 3).astype(np.float32)
    labels[0, 0, 0] = value
    with pytest.raises(DataError, match=r"a-seg\.nii\.gz: unknown labels"):
        read_labels(save(tmp_path / "a-seg.nii.gz", labels, dtype=np.float32))


def test_labels_three_and_four_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="unknown labels"):
        read_labels(save(tmp_path / "a-seg.nii.gz", numbers(0, 5)))


@pytest.mark.parametrize("ras", [False, True])
def test_a_case_of_either_edition(tmp_path, ras):
    images, labels = brain(3)
    folder = write_case(tmp_path, "old", 3, names=NAMES_2021, suffix=".nii", enhancing=4, ras=ras)
    case = read_case(find_case(folder), ("t2w", "t1c"))
    assert case.modalities == ("t2w", "t1c")
    np.testing.assert_array_equal(case.images, [images["t2w"], images["t1c"]])
    np.testing.assert_array_equal(case.labels, labels)
    np.testing.assert_array_equal(case.reference.array, images["t2w"])
    assert read_case(find_case(folder), segmentation=False).labels is None


def test_a_case_stored_in_two_orders_is_aligned(tmp_path):
    folder = write_case(tmp_path, "mixed", 4)
    save(folder / "mixed-t2f.nii.gz", *to_ras(brain(4)[0]["t2f"]))
    np.testing.assert_array_equal(read_case(find_case(folder)).images[2], brain(4)[0]["t2f"])


def unlike(kind: str, path, array: np.ndarray) -> np.ndarray:
    """Store the volume in another way than its neighbours; returns what it then holds."""
    if kind == "RAS":
        save(path, *to_ras(array))
        return array
    held = array.astype(np.int32) + 100_000 if kind == "int32" else array
    stored = {"big-endian": ">i2", "float": np.float32, "int32": np.int32}.get(kind, np.int16)
    format_ = nibabel.Nifti2Image if kind == "NIfTI-2" else nibabel.Nifti1Image
    header = format_.header_class(endianness=">" if kind == "big-endian" else "<")
    header.set_data_dtype(np.dtype(stored).newbyteorder("="))
    image = format_(held.astype(stored), LPS, header)
    if kind == "extension":
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made by hand" * 9))
    nibabel.save(image, path)
    assert nibabel.load(path).dataobj.dtype == np.dtype(stored)
    return held


KINDS = ["int32", "big-endian", "extension", "float", "NIfTI-2", "RAS"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(4))
def test_a_case_with_one_volume_unlike_the_others(tmp_path, number, kind):
    folder = write_case(tmp_path, "mixed", 4)
    case = find_case(folder)
    expected = [brain(4)[0][m] for m in MODALITIES]
    expected[number] = unlike(kind, case.files[MODALITIES[number]], expected[number])
    found = read_case(case)
    np.testing.assert_array_equal(found.images, expected)
    assert found.images.dtype == (np.int32 if kind == "int32" else np.int16)
    assert found.images[0].flags.f_contiguous and found.foreground[0].flags.f_contiguous
    np.testing.assert_array_equal(found.foreground, np.array(expected) > 0)
    again = [nibabel.as_closest_canonical(nibabel.load(case.files[m])).get_fdata() for m in MODALITIES]
    np.testing.assert_array_equal(found.images[:, ::-1, ::-1], again)  # LPS, and nibabel's RAS


def test_all_problems_of_a_case_come_in_one_message(tmp_path):
    folder = write_case(tmp_path, "bad", 5)
    (folder / "bad-t1c.nii.gz").unlink()
    (folder / "bad-t1n.nii.gz").write_bytes(b"no volume")
    save(folder / "bad-t2w.nii.gz", np.zeros((9, 9, 9)))
    save(folder / "bad-seg.nii.gz", np.full((36, 40, 28), 9))
    with pytest.raises(DataError) as raised:
        read_case(find_case(folder))
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    for line, (name, problem) in zip(
        lines,
        [
            ("bad", "no volume for t1c"),
            ("bad-t1n", "not a NIfTI"),
            ("bad-t2w", "shape"),
            ("bad-seg", "unknown labels"),
        ],
        strict=True,
    ):
        assert str(folder.parent / name.split("-")[0]) in line and name in line and problem in line


def test_affines_may_differ_by_less_than_a_thousandth(tmp_path):
    def shifted(name: str, mm: float):
        affine = LPS.copy()
        affine[1, 3] += mm
        return read_volume(save(tmp_path / name, numbers(), affine))

    reference = shifted("a.nii.gz", 0)
    check_geometry(reference, shifted("b.nii.gz", 0.0005))
    with pytest.raises(DataError, match=r"c\.nii\.gz: affine differs by up to 0\.00999"):
        check_geometry(reference, shifted("c.nii.gz", 0.01))


@pytest.mark.real
@pytest.mark.parametrize(
    "name, modality",
    [("BraTS-GLI-00000-000", "t1c"), ("BraTS-GLI-00000-000", "seg"), ("BraTS-MET-00110-000", "t2w")],
)
def test_real_subjects_survive_reading_and_writing(shared, tmp_path, name, modality):
    """LPS, a float header with only a qform, RAS: data, affine, type and codes stay as they were."""
    path = find_case(shared / "data" / name).files[modality]
    volume = read_volume(path)
    write_like(tmp_path / "copy.nii.gz", volume.array, volume)
    ours, theirs = nibabel.load(tmp_path / "copy.nii.gz"), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for field in ("datatype", "qform_code", "sform_code", "pixdim", "xyzt_units", "dim"):
        np.testing.assert_array_equal(ours.header[field], theirs.header[field])


@pytest.mark.real
def test_negative_voxels_of_a_real_subject_are_kept(shared):
    assert read_case(find_case(shared / "data" / "TCGA-DU-7294")).images.min() == -122
