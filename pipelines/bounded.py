"""Reading what strangers packed, with a limit on everything they could make large: the bytes a compressed file unpacks to, the length of
a line. (`row_groups.py` does the same for Parquet.)

What comes in: paths. What goes out: streams of unpacked bytes, and lines with the offset of their first byte. A 32 KB zstd file can unpack to
1 GiB; nothing here ever holds more than one buffer or one line, and a file that goes on unpacking beyond reason is a `Reject` for its
rest, after the good records before it. A cut archive is noticed, which Python's own zstd reader leaves unsaid.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import pyarrow as pa

from pipelines.format.errors import Reject
from pipelines.format.storage import open_read

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_LINE = 16 << 20  # bytes of one JSON line: twice the longest novel. What reads it holds four copies, of up to four bytes a character
MAX_UNPACKED = 256 << 30  # bytes out of one compressed file
MAX_RATIO = 300  # bytes out for each byte in, once FREE bytes are out; web text packs 3 to 10 times, logs 50
FREE = 64 << 20
_STEP = 16 << 10  # what a cut file loses before its cut is at most this


def compression(path: str) -> str | None:
    """gzip, zstd or None, by the file name's end."""
    name = path.lower().replace(".tgz", ".tar.gz")
    return next((kind for end, kind in COMPRESSIONS.items() if name.endswith(end)), None)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A binary stream of a file's content, unpacked when its name says so. Reading raises `Reject` where it is cut, damaged or a bomb."""
    kind = compression(path)
    with open_read(path) as raw:
        if kind is not None:
            yield io.BufferedReader(_Unpacked(raw, kind), 256 << 10)
        elif isinstance(raw, io.BufferedIOBase):
            yield raw
        else:  # fsspec's files know no limit on a line
            yield io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)


class _Unpacked(io.RawIOBase):
    """A forward-only view of a compressed file. zstd windows above 128 MiB are refused by the library."""

    def __init__(self, raw: IO[bytes], kind: str) -> None:
        self._raw, self._out = raw, 0
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), kind)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(min(len(buffer), _STEP))
        except OSError as error:
            text = str(error)
            raise Reject("truncated" if "Truncated" in text else "unreadable", text[:200]) from None
        self._out += len(data)
        if self._out > MAX_UNPACKED:
            raise Reject("too_large", f"unpacks to more than {MAX_UNPACKED} bytes")
        if self._out > FREE and self._out > MAX_RATIO * max(1, self._raw.tell()):
            raise Reject("too_large", f"unpacks more than {MAX_RATIO} to 1: {self._out} bytes from {self._raw.tell()}")
        buffer[: len(data)] = data
        return len(data)


def lines(stream: IO[bytes], start: int = 0, stop: int | None = None, max_line: int = MAX_LINE) -> Iterator[tuple[int, bytes | None]]:
    """Lines whose first byte lies in [start, stop), each with the offset of that byte; None stands for one longer than `max_line`.

    With `start` > 0 the stream must be seekable: the line that straddles `start` belongs to the range before."""
    at = start
    if start:
        stream.seek(start - 1)
        at = start - 1 + _to_newline(stream, max_line)
    while stop is None or at < stop:
        line = stream.readline(max_line + 1)
        if not line:
            return
        size = len(line)
        if size > max_line and not line.endswith(b"\n"):
            size += _to_newline(stream, max_line)
            yield at, None
        else:
            yield at, line
        at += size


def _to_newline(stream: IO[bytes], step: int) -> int:
    skipped = 0
    while piece := stream.readline(step):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
