"""One slice as bytes: a NumPy `.npy` file, as it is or compressed by Zstandard.

    planes (P, H, W) int16 | int32  --encode_slice-->  payload bytes  --decode_slice-->  the same planes, bit for bit

P is the number of modalities, and one more for the labels where the case has a segmentation. The codec's name is the file extension
of the payload inside the tar, so that other readers know what they hold. `npy.zst` carries a checksum of its content:
a flipped bit is an error when it is read. `npy` has none (only the sha256 of its whole shard) and is 7 times larger.
"""

import functools
import io
import math
import re

import numpy as np
import zstandard

from brasyn_dist.errors import DataError

CODECS = ("npy.zst", "npy")
DEFAULT_CODEC = CODECS[0]
DTYPES = ("int16", "int32")
"""Integer types of a shard set; int32 where a voxel does not fit into int16."""
ZSTD_LEVEL = 3

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<type><i[24])', 'fortran_order': False, 'shape': \((?P<shape>\d{1,3}, \d+, \d+)\), \} *\n",
    re.DOTALL,
)
MAX_PLANES = 256
MAX_BYTES = 2**28
"""No slice is larger; a damaged length must not make the reader ask for all memory."""


def encode_slice(planes: np.ndarray, codec: str = DEFAULT_CODEC) -> bytes:
    """Payload of `planes` (P, H, W), int16 or int32. Equal planes give equal bytes."""
    return SliceEncoder(codec)(planes)


class SliceEncoder:
    """Encodes one slice after another with the same memory. One for each thread."""

    def __init__(self, codec: str) -> None:
        check_codec(codec)
        self._zstandard = (
            zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True) if codec == "npy.zst" else None
        )
        self._memory = bytearray()

    def __call__(self, planes: np.ndarray, labels: np.ndarray | None = None) -> bytes:
        """Payload of `planes` (P, H, W), int16 or int32, and of `labels` (H, W) as one plane more.

        Both in any memory order. Raises DataError for anything else.
        """
        shape = (len(planes) + (labels is not None), *planes.shape[1:])
        if len(shape) != 3 or not 2 <= shape[0] <= MAX_PLANES or planes.dtype.name not in DTYPES:
            raise DataError(
                f"a slice is (2 to {MAX_PLANES}, H, W) of {' or '.join(DTYPES)}, got {shape} of {planes.dtype}"
            )
        header = npy_header(shape, planes.dtype.name)
        size = len(header) + planes.itemsize * math.prod(shape)
        if len(self._memory) < size:
            self._memory = bytearray(size)
        npy = memoryview(self._memory)[:size]
        npy[: len(header)] = header
        # The one copy that there is: from wherever the slice lies in its volume to where it is compressed from.
        content = np.frombuffer(npy, planes.dtype.newbyteorder("<"), offset=len(header)).reshape(shape)
        content[: len(planes)] = planes
        if labels is not None:
            content[-1] = labels
        return bytes(npy) if self._zstandard is None else self._zstandard.compress(npy)


@functools.lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """What comes before the values in the .npy of a little-endian C-ordered array."""
    buffer = io.BytesIO()
    description = {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).newbyteorder("<").str}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def decode_slice(data: bytes | memoryview, codec: str) -> np.ndarray:
    """Planes of a payload. Raises DataError if the payload is damaged."""
    return SliceDecoder(codec)(data).copy()


class SliceDecoder:
    """Decodes one payload after another into the same memory. One for each thread.

    Fresh memory for each slice would cost as much again as decoding it: the kernel has to clear 500 kB first.
    """

    def __init__(self, codec: str) -> None:
        check_codec(codec)
        self._zstandard = zstandard.ZstdDecompressor() if codec == "npy.zst" else None
        self._memory = bytearray()
        self._headers: dict[bytes, tuple[np.dtype, tuple[int, ...]]] = {}

    def __call__(self, data: bytes | memoryview) -> np.ndarray:
        """Planes (P, H, W), valid until the next call. Raises DataError if the payload is damaged.

        `npy` payloads have no checksum: only damage to their header or length is noticed.
        """
        return self._parse(data if self._zstandard is None else self._decompress(self._zstandard, data))

    def _decompress(self, decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview) -> memoryview:
        try:
            size = zstandard.frame_content_size(data)
            if not 0 <= size <= MAX_BYTES:
                raise DataError(f"damaged Zstandard data: {size} bytes of content")
            if len(self._memory) <= size:
                # One byte more than the content: the decoder then runs on to the checksum behind it.
                self._memory = bytearray(size + 1)
            count = decompressor.stream_reader(data).readinto(self._memory)
        except zstandard.ZstdError as error:
            raise DataError(f"damaged Zstandard data: {error}") from None
        if count != size:
            raise DataError(f"damaged Zstandard data: {count} of {size} bytes of content")
        return memoryview(self._memory)[:size]

    def _parse(self, data: bytes | memoryview) -> np.ndarray:
        start = 10 + int.from_bytes(data[8:10], "little")
        header = bytes(data[:start])
        # A set has a handful of different headers; parsing one anew costs more than reading 500 kB.
        if header not in self._headers:
            self._headers[header] = _parse_header(header)
        dtype, shape = self._headers[header]
        if len(data) != start + dtype.itemsize * math.prod(shape):
            raise DataError(f"damaged .npy: {len(data)} bytes for shape {shape} of {dtype}")
        return np.frombuffer(data, dtype, offset=start).reshape(shape)


def check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise DataError(f"unknown codec {codec!r}; this version reads {', '.join(CODECS)}")


def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """(type, shape) of a version 1.0 .npy header; only what encode_slice writes is accepted.

    NumPy's own parser compiles the header as Python, which fails at times when several threads do so (CPython issue
    106905, SystemError: AST constructor recursion depth mismatch).
    """
    match = _HEADER.fullmatch(header)
    if not match:
        raise DataError(
            f"damaged .npy, or no slice: its header is {header[:120]!r}, expected (planes, H, W) of {' or '.join(DTYPES)}"
        )
    return np.dtype(match["type"].decode()), tuple(int(n) for n in match["shape"].split(b","))
