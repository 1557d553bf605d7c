"""Payloads are standard files, lossless, and damage to them is always detected."""

import ast
import io

import numpy as np
import pytest
import zstandard

from brasyn_dist.data.format.codec import CODECS, SliceDecoder, decode_slice, encode_slice
from brasyn_dist.errors import DataError


def some_planes(planes: int = 5, dtype: str = "int16", shape: tuple[int, int] = (240, 155)) -> np.ndarray:
    rng = np.random.RandomState(planes)
    values = rng.randint(np.iinfo(dtype).min, np.iinfo(dtype).max, (planes, *shape), dtype=dtype)
    values[:, : shape[0] // 2] = 0
    return values


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("planes", [4, 5])
def test_round_trip_is_exact(codec: str, dtype: str, planes: int) -> None:
    values = some_planes(planes, dtype)
    decoded = decode_slice(encode_slice(values, codec), codec)
    assert decoded.dtype == values.dtype
    np.testing.assert_array_equal(decoded, values)


def test_payloads_are_plain_npy_and_zstandard_files() -> None:
    values = some_planes()
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_slice(values, "npy"))), values)
    npy = zstandard.ZstdDecompressor().decompress(encode_slice(values, "npy.zst"))
    np.testing.assert_array_equal(np.load(io.BytesIO(npy)), values)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_planes_give_equal_bytes_whatever_their_memory_layout(codec: str) -> None:
    values = some_planes()
    other_layout = np.asfortranarray(values)
    other_order = values.astype(values.dtype.newbyteorder(">"))
    assert (
        encode_slice(values, codec) == encode_slice(other_layout, codec) == encode_slice(other_order, codec)
    )


@pytest.mark.parametrize(
    "values", [np.zeros((5, 4, 4), "float32"), np.zeros((1, 4, 4), "int16"), np.zeros((4, 4), "int16")]
)
def test_what_is_no_slice_is_not_encoded(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="a sample is"):
        encode_slice(values)


def test_no_flipped_byte_goes_unnoticed() -> None:
    values = some_planes(shape=(24, 20))
    payload = encode_slice(values)
    noticed = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x10
        try:
            decoded = decode_slice(bytes(damaged), "npy.zst")
        except DataError:
            noticed += 1
        else:  # a bit of the frame's header that does not matter
            np.testing.assert_array_equal(decoded, values)
    assert noticed >= len(payload) - 2


def test_flips_in_the_checksum_itself_are_noticed() -> None:
    payload = bytearray(encode_slice(some_planes()))
    payload[-1] ^= 1
    with pytest.raises(DataError, match="damaged Zstandard"):
        decode_slice(bytes(payload), "npy.zst")


@pytest.mark.parametrize("codec", CODECS)
def test_truncated_payload(codec: str) -> None:
    payload = encode_slice(some_planes(), codec)
    for length in (0, 1, 9, 40, len(payload) // 2, len(payload) - 5):
        with pytest.raises(DataError, match="damaged"):
            decode_slice(payload[:length], codec)


def test_absurd_length_asks_for_no_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=True)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(2**28 + 1))
    with pytest.raises(DataError, match="bytes of content"):
        decode_slice(bomb, "npy.zst")


@pytest.mark.parametrize(
    "values", [np.zeros((5, 4, 4), "float64"), np.asfortranarray(np.ones((5, 4, 4), "int16"))]
)
def test_other_npy_files_are_refused(values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    with pytest.raises(DataError, match="no sample"):
        decode_slice(buffer.getvalue(), "npy")


def test_unknown_codec_is_named_with_the_choices() -> None:
    with pytest.raises(DataError, match=r"'lz4'.*npy\.zst"):
        decode_slice(b"", "lz4")


def test_decoding_does_not_use_the_interpreters_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy reads .npy headers with it, and in CPython 3.11 it fails at times in one of several threads."""

    def refuse(*args: object, **options: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    payloads = {codec: encode_slice(some_planes(), codec) for codec in CODECS}
    monkeypatch.setattr(ast, "parse", refuse)
    for codec, payload in payloads.items():
        np.testing.assert_array_equal(decode_slice(payload, codec), some_planes())


def test_decoder_reuses_its_memory_and_follows_changing_sizes() -> None:
    decoder = SliceDecoder("npy.zst")
    for shape in [(8, 8), (240, 240), (8, 8), (240, 155)]:
        for planes in (4, 5):
            values = some_planes(planes, shape=shape)
            np.testing.assert_array_equal(decoder(encode_slice(values)), values)
