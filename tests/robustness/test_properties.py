"""Property-based tests: NIfTI headers and configurations of any content."""

import contextlib
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from brasyn_dist.config import Config, all_options, from_dict, load_config, to_dict
from brasyn_dist.data.nifti import read_volume, write_like
from brasyn_dist.errors import BrasynError, ConfigError

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TYPES = (
    np.uint8,
    np.int8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.float32,
    np.float64,
    np.complex64,
)
numbers = st.floats(-1e3, 1e3, width=32)


@st.composite
def volumes(draw: st.DrawFn) -> nibabel.Nifti1Image:
    """A volume with any affine, codes, type, scaling, units and shape, also senseless ones."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(TYPES))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape).astype(dtype)
    signs = draw(st.permutations([0, 1, 2]))
    affine = np.eye(4)
    if draw(st.booleans()):  # a permutation with any voxel sizes
        affine[:3, :3] = np.eye(3)[signs] * np.array([draw(st.sampled_from([-1, 1])) for _ in range(3)])
        affine[:3, :3] *= draw(st.floats(0.1, 10))
    else:
        affine[:3, :3] = np.array([draw(numbers) for _ in range(9)]).reshape(3, 3)
    affine[:3, 3] = [draw(numbers) for _ in range(3)]
    kind = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    image = kind(array, np.eye(4), dtype=dtype)
    header = image.header
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):  # also singular ones
        header[name] = affine[row]
    header["qform_code"], header["sform_code"] = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 10]))
    header["pixdim"][1:4] = [draw(st.sampled_from([0.0, 1.0, 0.5, -1.0, float("nan")])) for _ in range(3)]
    return image


@given(image=volumes(), scale=st.sampled_from([(1, 0), (0, 0), (2, 0), (0.5, 1), (float("nan"), 0)]))
@SETTINGS
def test_reading_and_writing_keeps_a_volume_or_refuses_it(image, scale, tmp_path: Path):
    path, copy = tmp_path / "a.nii", tmp_path / "b.nii.gz"
    try:
        data = bytearray(image.to_bytes())
    except nibabel.spatialimages.HeaderDataError:
        assume(False)  # nibabel does not write such a header
    if isinstance(image, nibabel.Nifti1Image) and not isinstance(image, nibabel.Nifti2Image):
        data[112:120] = np.array(
            scale, image.header["scl_slope"].dtype.newbyteorder(image.header.endianness)
        ).tobytes()
    path.write_bytes(data)
    try:
        volume = read_volume(path)
        write_like(copy, volume.array, volume, volume.array.dtype)
        again = read_volume(copy)
    except BrasynError as error:
        assert str(error).startswith(str(tmp_path))
        return
    assert np.array_equal(volume.array, again.array)
    assert np.allclose(volume.affine, again.affine, atol=1e-3, equal_nan=True)
    kept = nibabel.load(copy).header
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert kept[name] == volume.image.header[name]


def values() -> st.SearchStrategy[object]:
    simple = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
        st.sampled_from(["no", "off", "bf16", "axial", "auto", 0, 1, 2, 4, 8, 16, 48, 0.5, 1e-3]),
    )  # fmt: skip
    return st.one_of(simple, st.lists(simple, max_size=3))


@given(st.dictionaries(st.sampled_from([key for key, _ in all_options(Config)]), values(), max_size=3))
@SETTINGS
def test_any_configuration_is_accepted_or_names_an_option(chosen: dict[str, object]):
    nested: dict = {}
    for key, value in chosen.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        config = from_dict(Config, nested)
    except ConfigError as error:
        text = str(error)
        assert "\n" not in text and any(key in text or key.rpartition(".")[0] in text for key in chosen), text
        return
    assert from_dict(Config, to_dict(config)) == config


@given(st.text(max_size=20), st.text(max_size=20))
@SETTINGS
def test_any_override_is_accepted_or_refused(key: str, value: str):
    with contextlib.suppress(ConfigError):
        load_config(None, [f"{key}={value}"])
