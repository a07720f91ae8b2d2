"""Parquet with limits: whole row groups as units of work, rows a batch at a time.

What comes in: a Parquet file and the columns wanted. What goes out: parts of row groups to 256 MiB of those columns; then (origin, row). The
footer is read and judged before any data: a 105 KB file can hold a row group of 1 GB. Columns are read as plain Arrow types; extension types,
which may run code when they are loaded, are never registered here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format.errors import InputError, Reject
from pipelines.format.storage import is_local, map_file, open_read
from pipelines.listing import PART_BYTES, Input, place
from pipelines.parquet_pages import dictionary_bytes
from pipelines.stage import SourcePart

MAX_ROW_GROUP = 4 << 30  # uncompressed bytes of the columns read from one row group
MAX_COLUMNS = 10_000
BATCH = 64  # rows in memory at a time, fewer where they are large:
BATCH_BYTES = 64 << 20


def group_runs(path: str, item: Input, columns: list[str], where: str | None = None) -> list[SourcePart]:
    """Parts of one file, which lies below `path` or at `where`. A column that is not there is an `InputError`; a file that cannot be read is one
    part, whose reading says so."""
    out: list[dict[str, Any]] = []
    try:
        with _opened(where or place(path, item.path)) as file:
            known = file.schema_arrow.names
            for column in columns:
                if column not in known:
                    raise InputError("no such column", where=item.path, found=column, allowed=", ".join(known[:50]))
            row = size = 0
            for group in range(file.num_row_groups):
                more = _bytes(file, group, columns)
                if not out or size + more > PART_BYTES:
                    out.append({"file": item.path, "groups": [group, group], "row": row})
                    size = 0
                out[-1]["groups"][1] = group + 1
                size, row = size + more, row + file.metadata.row_group(group).num_rows
    except Reject as reject:
        out = [{"file": item.path, "groups": [0, 0], "row": 0, "reject": [reject.reason, reject.detail]}]
    return [SourcePart(spec, [item.as_list()]) for spec in out]


def numbered_rows(path: str, spec: dict[str, Any], columns: list[str], where: str | None = None) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    """(origin `file#row`, row) of a part; in place of a row group that cannot be read, one `Reject` under its first row not read."""
    rel, row = spec["file"], spec["row"]
    if "reject" in spec:
        yield rel, Reject(*spec["reject"])
        return
    try:
        with _source(where or place(path, rel)) as source:
            file = _judged(source)
            for group in range(*spec["groups"]):
                after = row + file.metadata.row_group(group).num_rows
                try:
                    for values in _rows(source, file, group, columns):
                        yield f"{rel}#{row}", values
                        row += 1
                except Reject as reject:
                    yield f"{rel}#{row}", reject
                row = after
    except Reject as reject:
        yield f"{rel}#{row}", reject


def column_names(where: str) -> list[str]:
    """The columns of a Parquet file, by its footer. `Reject` when it has none."""
    with _opened(where) as file:
        return list(file.schema_arrow.names)


def group_sizes(where: str) -> list[int]:
    """Rows of each row group of a Parquet file, by its footer. `Reject` when it has none."""
    with _opened(where) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def plain(value: Any) -> Any:
    """A cell as JSON can hold it: dates and decimals as text, NaN as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@contextmanager
def _source(path: str) -> Iterator[Any]:
    with open_read(path) as raw:
        # Local files are mapped: Arrow's threads over a Python file object have been seen to abort a process at its exit.
        yield pa.BufferReader(pa.py_buffer(map_file(path))) if is_local(path) else raw


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    with _source(path) as source:
        yield _judged(source)


def _judged(source: Any) -> pq.ParquetFile:
    file = _told(lambda: pq.ParquetFile(source))
    if file.metadata.num_columns > MAX_COLUMNS:
        raise Reject("too_large", f"{file.metadata.num_columns} columns, allowed {MAX_COLUMNS}")
    return file


def _bytes(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    meta = file.metadata.row_group(group)
    chunks = (meta.column(i) for i in range(meta.num_columns))
    return sum(max(0, c.total_uncompressed_size) for c in chunks if c.path_in_schema.split(".")[0] in columns)


def _largest_cell(source: Any, file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Bytes that many rows can share: of the largest dictionary of texts."""

    def peek(at: int, n: int) -> bytes:
        source.seek(at)
        return bytes(source.read(n))

    meta = file.metadata.row_group(group)
    chunks = [c for c in map(meta.column, range(meta.num_columns)) if c.path_in_schema.split(".")[0] in columns]
    return max((dictionary_bytes(c, peek) for c in chunks), default=0)


def _rows(source: Any, file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    if (size := _bytes(file, group, columns)) > MAX_ROW_GROUP:
        raise Reject("too_large", f"row group {group} holds {size} bytes, allowed {MAX_ROW_GROUP}")
    rows = max(1, min(BATCH, BATCH_BYTES * file.metadata.row_group(group).num_rows // max(1, size)))
    rows = max(1, min(rows, BATCH_BYTES // max(1, _told(lambda: _largest_cell(source, file, group, columns)))))
    batches = _told(lambda: file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False))
    while True:
        batch = _told(lambda: next(batches, None))
        if batch is None:
            return
        yield from _told(batch.to_pylist)


def _told(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Reject("unreadable", f"Parquet: {error}"[:300]) from None
