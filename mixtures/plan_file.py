"""The rows of a plan on disk: `sequences-NNNNN.parquet` and `heldout-NNNNN.parquet`, 4,096 rows a file, a row = one packed sequence.

Columns of spans go in, files come out, and the other way round: a file is read once into numpy columns, from which single rows are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixtures.span import Row, Span, Spans
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.flat import flat
from pipelines.format.manifest import file_entry
from pipelines.format.storage import join

ROWS_PER_FILE = 4096
FILES_IN_CARD = 128
SPLITS = {"train": "sequences", "heldout": "heldout"}
_SPAN: list[tuple[str, Any]] = [
    ("dataset", pa.int16()),
    ("source", pa.int16()),
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("first", pa.int16()),
    ("count", pa.int16()),
    ("caption", pa.int16()),
    ("start", pa.int32()),
    ("stop", pa.int32()),
    ("image_first", pa.bool_()),
    ("loss", pa.list_(pa.bool_())),
    ("epoch", pa.int16()),
]
_FORM: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}  # a fifth faster than the defaults, 2 % larger
SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("stage", pa.int16()),
        ("length", pa.int32()),
        ("payload", pa.int32()),
        ("cost", pa.float32()),
        ("spans", pa.list_(pa.struct(_SPAN))),
    ]
)


def table_of(spans: Spans, stage: int, sequence_length: int) -> pa.Table:
    """Whole rows as an Arrow table. `cost` predicts relative work: positions, plus attention as Σ length² over the row length."""
    lead = np.flatnonzero(np.diff(spans.row_in_plan, prepend=-1))
    seq, owner = spans.row_in_plan[lead], spans.row_in_plan - spans.row_in_plan[0]
    payload = (spans.stop - spans.start).astype(np.int64)
    length = payload + spans.structure
    columns: list[Any] = []
    for name, kind in _SPAN:
        if name == "loss":
            columns.append(pa.ListArray.from_arrays(pa.array(spans.bit_start, pa.int32()), pa.array(spans.bits)))
        else:
            columns.append(pa.array(np.asarray(getattr(spans, name)), kind))
    structs = pa.StructArray.from_arrays(columns, fields=[pa.field(*f) for f in _SPAN])
    offsets = pa.array(np.append(lead, len(spans)), pa.int32())
    rows = len(seq)
    cost = np.bincount(owner, weights=length + length.astype(np.float64) ** 2 / sequence_length, minlength=rows)
    arrays = [
        pa.array(seq, pa.int64()),
        pa.array(np.full(rows, stage), pa.int16()),
        pa.array(np.bincount(owner, weights=length, minlength=rows).astype(np.int32)),
        pa.array(np.bincount(owner, weights=payload, minlength=rows).astype(np.int32)),
        pa.array(cost.astype(np.float32)),
        pa.ListArray.from_arrays(offsets, structs),
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


class RowWriter:
    """Takes tables of rows in order and publishes files of 4,096; `close` publishes the last one. `files` are entries for the card."""

    def __init__(self, root: str, split: str) -> None:
        self.root, self.stem = root, SPLITS[split]
        self.files: list[dict[str, Any]] = []
        self._held: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Append rows; whole files are published."""
        self._held.append(table)
        if sum(t.num_rows for t in self._held) >= ROWS_PER_FILE:
            rows = pa.concat_tables(self._held)
            while rows.num_rows >= ROWS_PER_FILE:
                self._publish(rows.slice(0, ROWS_PER_FILE))
                rows = rows.slice(ROWS_PER_FILE)
            self._held = [rows]

    def close(self) -> list[dict[str, Any]]:
        """Publish what is left."""
        rows = pa.concat_tables(self._held) if self._held else None
        if rows is not None and rows.num_rows:
            self._publish(rows)
        return self.files

    def _publish(self, rows: pa.Table) -> None:
        name = f"{self.stem}-{len(self.files):05d}.parquet"
        with storage.building(self.root) as b:
            sink = pa.BufferOutputStream()
            pq.write_table(rows.combine_chunks(), sink, row_group_size=ROWS_PER_FILE, **_FORM)
            b.write(sink.getvalue())
            self.files.append({"path": name, "bytes": b.nbytes, "sha256": b.sha256})
            b.publish(self.root, name)


def list_files(root: str, files: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(entries for the card's `files`, more keys for the card). A card has room for some hundred names; beyond that it names a table of them."""
    if len(files) <= FILES_IN_CARD:
        return files, {}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(files), sink, compression="zstd", compression_level=3)
    data = sink.getvalue().to_pybytes()
    entry = file_entry(root, f"files-{sha256_hex(data)[:16]}.parquet", data)
    return [entry], {"row_files": {"file": entry["path"], "sha256": entry["sha256"], "n": len(files)}}


def listed_files(root: str, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file of a plan: path, bytes, sha256."""
    more = card.get("row_files")
    rows = pq.read_table(pa.BufferReader(storage.read(join(root, more["file"])))).to_pylist() if more else []
    return [*card["files"], *rows]


@dataclass(frozen=True, slots=True, eq=False)
class RowFile:
    """One file of rows in numpy columns: `rows` per sequence, `spans` per span, `start` [n + 1] into the spans."""

    rows: dict[str, NDArray[Any]]
    start: NDArray[Any]
    spans: dict[str, NDArray[Any]]
    bit_start: NDArray[Any]
    bits: NDArray[np.bool_]

    @classmethod
    def read(cls, path: str) -> RowFile:
        """From a path of any protocol."""
        found = pq.ParquetFile(pa.BufferReader(storage.read(path))).read()  # read_table imports pandas: 0.3 s before the first row
        table = found.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        lists = table["spans"].combine_chunks()
        structs = lists.flatten()
        loss = structs.field("loss")
        offsets = flat(loss.offsets).astype(np.int64)
        spans = {name: flat(structs.field(name)) for name, _ in _SPAN if name != "loss"}
        rows = {name: flat(table[name].combine_chunks()) for name in ("seq", "stage", "length", "payload", "cost")}
        bits = flat(loss.flatten())
        return cls(rows, flat(lists.offsets).astype(np.int64), spans, offsets - offsets[:1], bits)

    def __len__(self) -> int:
        return len(self.rows["seq"])

    def row(self, i: int) -> Row:
        """Row i of this file."""
        a, b = int(self.start[i]), int(self.start[i + 1])
        columns = [column[a:b].tolist() for column in self.spans.values()]
        edges = self.bit_start[a : b + 1].tolist()
        bits = self.bits[edges[0] : edges[-1]].tolist() if edges else []
        spans = []
        for k, values in enumerate(zip(*columns, strict=True)):
            loss = tuple(bits[edges[k] - edges[0] : edges[k + 1] - edges[0]])
            spans.append(Span(**dict(zip(self.spans, values, strict=True)), loss=loss))
        head = {name: self.rows[name][i].item() for name in self.rows}
        return Row(**head, spans=tuple(spans))


def row_path(root: str, split: str, i: int) -> str:
    """The file that holds row i of a split."""
    return join(root, f"{SPLITS[split]}-{i // ROWS_PER_FILE:05d}.parquet")
