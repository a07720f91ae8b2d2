"""Rows into a Parquet file as they come, in bounded memory: the index of a shard and the rejects of a part.

In: rows as dictionaries, in order. Out: a scratch file that `publish` makes visible. A row as Python objects takes 3 KB beside its text, so a
quarter of a gigabyte of short documents would take three of them; here rows are packed into Arrow a thousand or 8 MB at a time, and written as soon
as a row group is full: 10,000 rows, or the rows whose text reaches 32 MiB. Where packs and groups end depends on the rows alone, so the same rows
give the same bytes.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.storage import Building

ROW_GROUP = 10_000
GROUP_BYTES = 32 << 20  # of text in one row group: what a writer keeps and a reader decodes at a time
_PACK_ROWS, _PACK_BYTES = 1_024, 8 << 20
_AHEAD = 1 << 20
ZSTD: dict[str, Any] = {"compression": "zstd", "compression_level": 3}


class RowFile:
    """One Parquet file of `schema` in the scratch space of `root`. Close it, published or not."""

    def __init__(self, root: str, schema: pa.Schema) -> None:
        self._schema, self._stack = schema, ExitStack()
        self._building = self._stack.enter_context(storage.building(root))
        self._sink = _Sink(self._building)
        self._stack.callback(self._sink.leave)  # before the file is closed: Arrow writes its footer whenever it lets go of a writer
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), schema, **ZSTD)
        self._rows: list[dict[str, Any]] = []
        self._packed: list[pa.Table] = []
        self._bytes = self._packed_bytes = self._packed_rows = 0
        self.rows = 0

    def add(self, row: dict[str, Any], nbytes: int = 0) -> None:
        """One row; `nbytes` says how much of it is text."""
        self._rows.append(row)
        self.rows += 1
        self._bytes += nbytes
        if len(self._rows) == _PACK_ROWS or self._packed_rows + len(self._rows) == ROW_GROUP or self._bytes >= _PACK_BYTES:
            self._pack()
        if self._packed_rows == ROW_GROUP or self._packed_bytes >= GROUP_BYTES:
            self._write()

    def finish(self) -> Building:
        """Write what is left and the footer; the building can then be named by its hash and published."""
        self._pack()
        if self._packed_rows or not self.rows:
            self._write()
        self._writer.close()
        self._sink.send()
        return self._building

    def close(self) -> None:
        """Drop what was not published."""
        self._stack.close()

    def _pack(self) -> None:
        if self._rows:
            self._packed.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._packed_rows += len(self._rows)
        self._packed_bytes += self._bytes
        self._rows, self._bytes = [], 0

    def _write(self) -> None:
        self._writer.write_table(pa.concat_tables(self._packed or [self._schema.empty_table()]), row_group_size=ROW_GROUP)
        self._packed, self._packed_rows, self._packed_bytes = [], 0, 0


class _Sink:
    """A building as Arrow wants a file, which writes a few bytes at a time. Once it is left, writes go nowhere."""

    def __init__(self, building: Building) -> None:
        self._building, self._ahead = building, bytearray()
        self.closed = self._left = False

    def write(self, data: Any) -> int:
        if not self._left:
            self._ahead += data
            if len(self._ahead) >= _AHEAD:
                self.send()
        return len(data)

    def send(self) -> None:
        if self._ahead:
            self._building.write(bytes(self._ahead))
            self._ahead.clear()

    def tell(self) -> int:
        return self._building.tell() + len(self._ahead)

    def leave(self) -> None:
        self._left = True

    def flush(self) -> None: ...

    def close(self) -> None: ...
