"""Tables of numbers beside frames: JSON Lines, JSON, CSV, Parquet, npy and npz, as columns.

What comes in: a table file whose rows line up with frames in time. What goes out: a column by name as float64 [n] (what is no number is NaN), or as
text. `action[3]` is the fourth element of a list column; `action` alone, when it holds lists, stands for all of them (`widths`). `mouse.dx` is a
field inside a field. In an npy the only column has no name: `[0]`, `[1]`. Matrices are counted row by row.

Tables come from strangers too: sizes are judged from headers before anything is read (a 128-byte npy header can ask for 3.6 TiB, an npz
is a zip and can be a bomb), and nothing is ever unpickled: a pickle's numbers are read by `pickled.py`, which runs none of it.
"""

from __future__ import annotations

import io
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.action_text import keys_text, plain
from pipelines.bounded import lines, opened
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, Reject
from pipelines.json_list import parse
from pipelines.parquet_pages import dictionary_bytes
from pipelines.pickled import arrays
from pipelines.table import scan

SUFFIXES = (".jsonl", ".catalog", ".json", ".csv", ".tsv", ".parquet", ".npy", ".npz", ".pkl")
MAX_BYTES = 1 << 30  # of one trajectory's numbers: 100 h at 60 Hz with 5 doubles is 0.9 GB
MAX_ROWS = 20_000_000
MAX_TEXT = 128 << 20  # of JSON and CSV, whose values take up to twenty times their bytes once read
MAX_TEXT_ROWS = 5_000_000
_BATCH_BYTES = 64 << 20
_ELEMENT = re.compile(r"(.*)\[(\d+)\]")


class Columns(Protocol):
    """Rows as columns."""

    rows: int
    names: list[str]

    def raw(self, name: str) -> Any:
        """The values of one column: an array [n] or [n, …], or a list of n."""
        ...


class _Arrays:
    """npy, npz and Parquet: columns that are arrays already."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = columns
        self.names = list(columns)
        lengths = {len(c) for c in columns.values()}
        self.rows = min(lengths, default=0)

    def raw(self, name: str) -> Any:
        return self._columns[name][: self.rows]


class _Rows:
    """JSON and CSV: one mapping per row."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self.rows = len(rows)
        self.names = list(rows[0]) if rows else []

    def raw(self, name: str) -> Any:
        if name in self.names:
            return [row.get(name) for row in self._rows]
        return [_inside(row, name) for row in self._rows]


def read_columns(path: str, name: str | None = None) -> Columns:
    """The table at `path`, by the suffix of its `name` (a scratch file has none of its own). Raises `Reject`."""
    name = (name or path).lower()
    try:
        if storage.size(path) > MAX_BYTES:
            raise Reject("too_large", f"a table of {storage.size(path)} bytes, allowed {MAX_BYTES}")
        if name.endswith(".parquet"):
            return _parquet(storage.read(path))
        if name.endswith(".npy"):
            return _Arrays({"": _npy(storage.read(path))})
        if name.endswith(".npz"):
            return _npz(storage.read(path))
        if name.endswith(".pkl"):
            return _Arrays(dict(arrays(storage.read(path))))
        if storage.size(path) > MAX_TEXT:
            raise Reject("too_large", f"a table of {storage.size(path)} bytes as text, allowed {MAX_TEXT}; Parquet and npy may hold {MAX_BYTES}")
        return _text(path, name)
    except HeadwaterError as e:
        raise Reject("unreadable", f"{e.what}: {e.found}"[:300]) from None


def numbers(table: Columns, name: str) -> np.ndarray:
    """A column as float64 [rows]; NaN where there is no finite number. `Reject` when there is no such column."""
    found = _ELEMENT.fullmatch(name)
    base, element = (found[1], int(found[2])) if found and name not in table.names else (name, None)
    values = _column(table, base)
    if isinstance(values, np.ndarray) and values.dtype != object:
        flat = values.reshape(len(values), -1)
        if element is None and flat.shape[1] == 1:
            element = 0
        if element is None or element >= flat.shape[1]:
            raise Reject("unreadable", f"column {base!r} has {flat.shape[1]} numbers a row, not one called {name!r}")
        return np.where(np.isfinite(flat[:, element].astype(np.float64)), flat[:, element].astype(np.float64), np.nan)
    return np.array([_number(v, element) for v in values], np.float64)


def texts(table: Columns, name: str) -> list[str | None]:
    """A column as text; None where there is nothing."""
    return [None if v is None else str(v) for v in _column(table, name)]


def widths(table: Columns, name: str) -> int:
    """How many numbers a row of this column holds; 0 for a plain number."""
    if not _has(table, name):
        return 0
    values = table.raw(name)
    if isinstance(values, np.ndarray) and values.dtype != object:
        return 0 if values.ndim == 1 else int(np.prod(values.shape[1:]))
    first = next((v for v in values if v is not None), None)
    return len(first) if isinstance(first, list | tuple | np.ndarray) else 0


def words(table: Columns, name: str) -> list[str | None]:
    """A column in words: text as one line, a list (of pressed keys, of buttons) as `w+space` in a fixed order; None where there is neither."""
    return [_words(v) for v in _column(table, name)]


def _words(value: Any) -> str | None:
    if isinstance(value, list | tuple | np.ndarray):
        return keys_text(list(value))
    return plain(str(value)) if isinstance(value, str | int) else None


def _inside(row: dict[str, Any], path: str) -> Any:
    """`mouse.dx` of {"mouse": {"dx": 1.0}}."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _has(table: Columns, name: str) -> bool:
    return name in table.names or (isinstance(table, _Rows) and name.partition(".")[0] in table.names)


def _column(table: Columns, name: str) -> Any:
    if not _has(table, name):
        raise Reject("unreadable", f"no column {name!r}; there are: {', '.join(table.names)[:200] or 'none'}")
    return table.raw(name)


def _number(value: Any, element: int | None) -> float:
    if element is not None:
        value = value[element] if isinstance(value, list | tuple | np.ndarray) and element < len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # an integer may have hundreds of digits
        return np.nan
    return number if np.isfinite(number) else np.nan


def _text(path: str, name: str) -> Columns:
    if name.endswith(".json"):
        with opened(path) as stream:
            whole = parse(stream.read(MAX_TEXT))
        if isinstance(whole, Reject):
            raise whole
        if isinstance(whole, dict):  # columns as lists
            return _Arrays({k: np.array(v, object) if _ragged(v) else np.array(v) for k, v in whole.items() if isinstance(v, list) and v})
        return _Rows([row if isinstance(row, dict) else {} for row in whole] if isinstance(whole, list) else [])
    if name.endswith(".catalog"):  # donkeycar's name for JSON Lines
        with opened(path) as stream:
            found = _few(parse(line or b"") for _, line in lines(stream) if line is None or line.strip())
    else:
        found = _few(row.problem or row.value for row in scan(path))
    return _Rows([row if isinstance(row, dict) else {} for row in found])


def _few(rows: Iterable[Any]) -> list[Any]:
    out = list(islice(rows, MAX_TEXT_ROWS + 1))
    if len(out) > MAX_TEXT_ROWS:
        raise Reject("too_large", f"more than {MAX_TEXT_ROWS} rows of text")
    return out


def _ragged(values: list[Any]) -> bool:
    return any(isinstance(v, list | dict | str) or v is None for v in values) and len({len(v) if isinstance(v, list) else -1 for v in values}) > 1


def _parquet(data: bytes) -> Columns:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        chunks = [g.column(i) for g in groups for i in range(g.num_columns)]
        # Repeated numbers take next to nothing packed, and eight bytes each as a column.
        size = sum(max(0, c.total_uncompressed_size, 8 * c.num_values) for c in chunks)
        if size > MAX_BYTES or file.metadata.num_rows > MAX_ROWS:
            raise Reject("too_large", f"{file.metadata.num_rows} rows, {size} bytes unpacked; allowed {MAX_ROWS} and {MAX_BYTES}")
        cell = max((dictionary_bytes(c, lambda at, n: data[at : at + n]) for c in chunks), default=0)
        table = _within(file, max(1, min(1 << 16, _BATCH_BYTES // max(1, cell))))
    except (pa.ArrowException, OSError, ValueError) as e:
        raise Reject("unreadable", f"Parquet: {e}"[:300]) from None
    return _Arrays({name: _arrow(table[name].combine_chunks()) for name in table.schema.names})


def _within(file: pq.ParquetFile, rows: int) -> pa.Table:
    """The table, read so many rows at a time until it is whole or too large."""
    batches, held = [], 0
    for batch in file.iter_batches(batch_size=rows, use_threads=False):
        held += batch.nbytes
        if held > MAX_BYTES:
            raise Reject("too_large", f"unpacks to more than {MAX_BYTES} bytes")
        batches.append(batch)
    return pa.Table.from_batches(batches, file.schema_arrow)


def _arrow(column: Any) -> Any:
    """A number column as an array, lists of one length as a matrix, all else as Python values."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        rows = column.to_pylist()
        wide = {len(r) for r in rows if r is not None}
        if len(wide) == 1 and all(r is not None for r in rows) and not pa.types.is_nested(kind.value_type):
            return np.array(rows, np.float64) if pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type) else rows
        return rows
    return column.to_pylist()


def _npz(data: bytes) -> Columns:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_BYTES:
                raise Reject("too_large", f"unpacks to {sum(m.file_size for m in members)} bytes, allowed {MAX_BYTES}")
            found = {}
            for m in members:
                if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # what numpy writes; lzma's window can be 4 GiB
                    raise Reject("not_allowed", f"npz: {m.filename[:100]!r} is packed in another way than numpy packs")
                with archive.open(m) as f:
                    found[m.filename.removesuffix(".npy")] = _npy(f.read(m.file_size + 1))
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as e:
        raise Reject("unreadable", f"npz: {e}"[:300]) from None
    return _Arrays({name: a for name, a in found.items() if a.ndim})


def _npy(data: bytes) -> np.ndarray:
    """A numeric array whose header tells the truth about its size."""
    f = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(f)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise Reject("not_allowed", f"an array of {dtype}: only numbers are read")
        wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if wanted != len(data) - f.tell():
            raise Reject("truncated", f"the header speaks of {wanted} bytes, {len(data) - f.tell()} are there")
        f.seek(0)
        return np.asarray(np.load(f, allow_pickle=False))
    except (ValueError, OverflowError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as e:
        raise Reject("unreadable", f"npy: {e}"[:300]) from None
