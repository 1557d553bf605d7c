"""Reading gzip files straight into memory that the caller has.

What the standard library and isal offer makes the content grow piece by piece, joins the pieces and copies them: for a volume
of 18 MB fresh memory thrice, which costs more than decompressing does.
"""

import io
from pathlib import Path
from typing import BinaryIO, Protocol

from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor

MAGIC = b"\x1f\x8b"
_PIECE = 1 << 17
"""Bytes: small enough to be copied from a core's own cache."""


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readinto(self, memory: memoryview, /) -> int | None: ...

    def close(self) -> None: ...


def open_stream(path: Path) -> Stream:
    """The content of a file, decompressed if it is a gzip file. Raises OSError, as its methods do where the disk fails."""
    file = path.open("rb", buffering=0)
    try:
        compressed = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return GunzipStream(file) if compressed else io.BufferedReader(file)


class GunzipStream:
    """Content of a gzip file, of all its members. Checksums are looked at where a member ends: read to the end.

    Its methods raise EOFError where the file ends too early, and isal's IsalError where it is damaged.
    """

    def __init__(self, file: BinaryIO | io.FileIO) -> None:
        self._file = file
        self._member = IgzipDecompressor(flag=DECOMP_GZIP)
        self._ahead = b""
        """Read from the file, not yet given to the member."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        pieces = []
        while size and (piece := self._piece(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def readinto(self, memory: memoryview, /) -> int:
        """Fill `memory` (bytes); returns how many there are, fewer than it holds only at the end."""
        filled = 0
        while filled < len(memory) and (piece := self._piece(len(memory) - filled)):
            memory[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def close(self) -> None:
        self._file.close()

    def _piece(self, most: int) -> bytes:
        """The next bytes, at most `most`; none at the end."""
        while not self._member.eof or self._next_member():
            data = b""
            if self._member.needs_input:
                data, self._ahead = self._ahead or self._more(), b""
                if not data:
                    raise EOFError("the file ends before its content does")
            if piece := self._member.decompress(data, min(most, _PIECE)):
                return piece
        return b""

    def _next_member(self) -> bool:
        """gzip files may be put one behind the other, and zeros may follow them, as gzip reads it."""
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            if not (more := self._more()):
                return False
            rest = more.lstrip(b"\0")
        self._member, self._ahead = IgzipDecompressor(flag=DECOMP_GZIP), rest
        return True

    def _more(self) -> bytes:
        return self._file.read(_PIECE) or b""
