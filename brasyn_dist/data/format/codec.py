"""One sample as bytes: a NumPy `.npy` file, uncompressed or compressed with Zstandard.

    planes (P, H, W) int16 | int32 --encode_slice--> payload bytes --decode_slice--> the same planes

A chunk of a volume (P, X, Y, Z) is stored in the same way. P is the number of modalities, twice that in a
chunk with stage-1 volumes, plus one for the labels if the case has a segmentation. The name of the codec is
the file extension of the payload in the tar, as the WebDataset convention requires. `npy.zst` has a checksum
of its content: a flipped bit is an error when the sample is read. `npy` has none (only the SHA-256 of its
shard) and is 7 times larger.
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
"""Integer types of a shard set; int32 if a voxel does not fit into int16."""
ZSTD_LEVEL = 3

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<type><i[24])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,3}, \d+, \d+(?:, \d+)?)\), \} *\n",
    re.DOTALL,
)
MAX_PLANES = 256
MAX_BYTES = 2**28
"""Larger lengths are damaged; the reader must not allocate all memory for them."""


def encode_slice(planes: np.ndarray, codec: str = DEFAULT_CODEC) -> bytes:
    """Payload of `planes` (P, H, W) or (P, X, Y, Z), int16 or int32. Equal planes give equal bytes."""
    return SliceEncoder(codec)(planes)


class SliceEncoder:
    """Encodes slices one after another in the same memory. Not thread-safe."""

    def __init__(self, codec: str) -> None:
        check_codec(codec)
        self._zstandard = (
            zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True) if codec == "npy.zst" else None
        )
        self._memory = bytearray()

    def __call__(self, planes: np.ndarray, labels: np.ndarray | None = None) -> bytes:
        """Payload of a slice or chunk.

        Args:
            planes: (M, H, W) or (M, X, Y, Z) int16 or int32, in any memory order.
            labels: (H, W) or (X, Y, Z), stored as an additional plane.

        Raises:
            DataError: Another shape or type.
        """
        shape = (len(planes) + (labels is not None), *planes.shape[1:])
        if len(shape) not in (3, 4) or not 2 <= shape[0] <= MAX_PLANES or planes.dtype.name not in DTYPES:
            raise DataError(
                f"a sample is (2 to {MAX_PLANES}, H, W) or (..., X, Y, Z) of {' or '.join(DTYPES)}, "
                f"got {shape} of {planes.dtype}"
            )
        header = npy_header(shape, planes.dtype.name)
        size = len(header) + planes.itemsize * math.prod(shape)
        if len(self._memory) < size:
            self._memory = bytearray(size)
        npy = memoryview(self._memory)[:size]
        npy[: len(header)] = header
        # The only copy: from the volume to the memory that is compressed.
        content = np.frombuffer(npy, planes.dtype.newbyteorder("<"), offset=len(header)).reshape(shape)
        content[: len(planes)] = planes
        if labels is not None:
            content[-1] = labels
        return bytes(npy) if self._zstandard is None else self._zstandard.compress(npy)


@functools.lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Header of the .npy file of a little-endian C-ordered array."""
    buffer = io.BytesIO()
    description = {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).newbyteorder("<").str}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def decode_slice(data: bytes | memoryview, codec: str) -> np.ndarray:
    """Planes (P, H, W) or (P, X, Y, Z) of a payload. Raises DataError if it is damaged."""
    return SliceDecoder(codec)(data).copy()


class SliceDecoder:
    """Decodes payloads one after another into the same memory. Not thread-safe.

    New memory for each slice would take as long as decoding: the kernel has to clear 500 kB first.
    """

    def __init__(self, codec: str) -> None:
        check_codec(codec)
        self._zstandard = zstandard.ZstdDecompressor() if codec == "npy.zst" else None
        self._memory = bytearray()
        self._headers: dict[bytes, tuple[np.dtype, tuple[int, ...]]] = {}

    def __call__(self, data: bytes | memoryview) -> np.ndarray:
        """Planes (P, H, W) or (P, X, Y, Z), valid until the next call.

        Raises DataError if the payload is damaged. `npy` payloads have no checksum: only damage to their
        header or length is detected.
        """
        return self._parse(data if self._zstandard is None else self._decompress(self._zstandard, data))

    def _decompress(self, decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview) -> memoryview:
        try:
            size = zstandard.frame_content_size(data)
            if not 0 <= size <= MAX_BYTES:
                raise DataError(f"damaged Zstandard data: {size} bytes of content")
            if len(self._memory) <= size:
                # One byte more than the content: the decoder then also reads the checksum.
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
        # A set has few different headers, and parsing one takes longer than reading 500 kB.
        if header not in self._headers:
            self._headers[header] = _parse_header(header)
        dtype, shape = self._headers[header]
        if len(data) != start + dtype.itemsize * math.prod(shape):
            raise DataError(f"damaged .npy: {len(data)} bytes for shape {shape} of {dtype}")
        return np.frombuffer(data, dtype, offset=start).reshape(shape)


def check_codec(codec: str) -> None:
    """Raise DataError for an unknown codec."""
    if codec not in CODECS:
        raise DataError(f"unknown codec {codec!r}; this version reads {', '.join(CODECS)}")


def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """(type, shape) of a version 1.0 .npy header as `npy_header` writes it.

    NumPy's parser compiles the header as Python code, which sometimes fails in several threads (CPython issue
    106905, SystemError: AST constructor recursion depth mismatch).
    """
    match = _HEADER.fullmatch(header)
    if not match:
        raise DataError(
            f"damaged .npy, or no sample: its header is {header[:120]!r}, "
            f"expected (planes, H, W) or (planes, X, Y, Z) of {' or '.join(DTYPES)}"
        )
    return np.dtype(match["type"].decode()), tuple(int(n) for n in match["shape"].split(b","))
