"""Reading gzip files into given memory: the standard library's gzip is the truth."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from isal.igzip_lib import IsalError

from brasyn_dist.data.gunzip import open_stream

CONTENT = np.random.default_rng(0).integers(0, 50, 700_000, np.uint8).tobytes()  # several pieces, in and out
FIRST, SECOND = gzip.compress(CONTENT[:400_000]), gzip.compress(CONTENT[400_000:], 1)
FORMS = {
    "one member": FIRST,
    "two members": FIRST + SECOND,
    "three, one of them empty": FIRST + gzip.compress(b"") + SECOND,
    "zeros after it": FIRST + bytes(300_000),
    "zeros between": FIRST + bytes(1000) + SECOND + bytes(1),
    "no content": gzip.compress(b""),
    "not compressed": CONTENT,
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "file.gz"
    path.write_bytes(data)
    return path


def everything(path: Path, size: int) -> bytes:
    """In pieces of `size` bytes, by `readinto` and `read` in turn."""
    stream, found, memory = open_stream(path), [], memoryview(bytearray(size))
    while count := stream.readinto(memory):
        found.append(bytes(memory[:count]))
        found.append(stream.read(size))
        assert count == size or not found[-1], "fewer bytes than asked for, though not at the end"
    assert stream.read(size) == b""
    stream.close()
    return b"".join(found)


@pytest.mark.parametrize("size", [1000, 1 << 17, 1_000_000])
@pytest.mark.parametrize("form", FORMS)
def test_the_content_is_that_which_gzip_reads(tmp_path: Path, form: str, size: int) -> None:
    data = FORMS[form]
    assert everything(write(tmp_path, data), size) == (data if data == CONTENT else gzip.decompress(data))


@pytest.mark.parametrize("kept", [2, 9, 5000, -9, -1])
@pytest.mark.parametrize("before", [b"", FIRST], ids=["alone", "second member"])
def test_files_that_end_too_early(tmp_path: Path, before: bytes, kept: int) -> None:
    with pytest.raises(EOFError):
        everything(write(tmp_path, before + SECOND[:kept]), 1 << 17)


@pytest.mark.parametrize("where", [3, 100, -6, -2], ids=["flags", "content", "checksum", "length"])
def test_damage(tmp_path: Path, where: int) -> None:
    data = bytearray(FIRST)
    data[where] ^= 0xE5
    with pytest.raises((IsalError, EOFError)):
        everything(write(tmp_path, bytes(data)), 1 << 17)


def test_what_is_no_gzip_after_it(tmp_path: Path) -> None:
    with pytest.raises(IsalError):
        everything(write(tmp_path, FIRST + b"something else"), 1 << 17)


def test_every_flipped_bit_of_the_checksum_is_seen(tmp_path: Path) -> None:
    data = gzip.compress(b"values")
    assert int.from_bytes(data[-8:-4], "little") == zlib.crc32(b"values")
    for bit in range(32):
        damaged = bytearray(data)
        damaged[-8 + bit // 8] ^= 1 << bit % 8
        with pytest.raises(IsalError):
            everything(write(tmp_path, bytes(damaged)), 100)
