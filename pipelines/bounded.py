"""Reading what strangers packed, with a limit on everything they could make large: the bytes a compressed file unpacks to, the length of
a line, the size of a Parquet row group.

What comes in: paths. What goes out: streams of decompressed bytes, lines with the offset of their first byte, Parquet files whose metadata
has been looked at. A 32 KB zstd file can unpack to 1 GiB and a 105 KB Parquet file to 1 GB; nothing here ever holds more than one buffer,
one line or one batch of rows, and a file that goes on unpacking beyond reason is a `Reject` for its rest, after the good records before it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format.errors import Reject
from pipelines.format.storage import open_read

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_LINE = 64 << 20  # bytes of one JSON line: ten times the longest book
MAX_UNPACKED = 256 << 30  # bytes out of one compressed file
MAX_RATIO = 300  # bytes out for each byte in, once FREE bytes are out; web text packs 3 to 10 times, logs 50
FREE = 64 << 20
MAX_ROW_GROUP = 4 << 30  # uncompressed bytes of the columns read from one row group
MAX_COLUMNS = 10_000
_STEP = 16 << 10  # what a cut file loses before its cut is at most this


def compression(path: str) -> str | None:
    """gzip, zstd or None, by the file name's end."""
    return next((name for end, name in COMPRESSIONS.items() if path.lower().endswith(end)), None)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A binary stream of a file's content, unpacked when its name says so. Reading raises `Reject` where it is cut, damaged or a bomb."""
    kind = compression(path)
    with open_read(path) as raw:
        if kind is None:
            yield raw
            return
        yield io.BufferedReader(_Unpacked(raw, kind), 256 << 10)


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


@contextmanager
def parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file with its footer read and its number of columns checked. `Reject` when it is no Parquet file."""
    with open_read(path) as raw:
        file = _parquet(lambda: pq.ParquetFile(raw))
        if file.metadata.num_columns > MAX_COLUMNS:
            raise Reject("too_large", f"{file.metadata.num_columns} columns, allowed {MAX_COLUMNS}")
        yield file


def parquet_rows(file: pq.ParquetFile, group: int, columns: list[str], batch: int = 256) -> Iterator[dict]:
    """The rows of one row group as plain dicts, a batch in memory at a time. The row group's stated size is checked before it is read."""
    meta = file.metadata.row_group(group)
    wanted = set(columns)
    sizes = (meta.column(i) for i in range(meta.num_columns))
    total = sum(max(0, c.total_uncompressed_size) for c in sizes if c.path_in_schema.split(".")[0] in wanted)
    if total > MAX_ROW_GROUP:
        raise Reject("too_large", f"row group {group} holds {total} bytes, allowed {MAX_ROW_GROUP}")
    batches = _parquet(lambda: file.iter_batches(batch_size=batch, row_groups=[group], columns=columns, use_threads=False))
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Reject("unreadable", f"row group {group}: {error}"[:300]) from None
        yield from rows


def _parquet(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Reject("unreadable", str(error)[:300]) from None
