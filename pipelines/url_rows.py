"""Tables of URLs as units of work: 10,000 rows each, whatever the table's form.

What comes in: Parquet, CSV, TSV, JSON Lines or JSON lists, plain, gzip or zstd, and the columns that matter. What goes out: parts, then
(ordinal, row). A part of a text table is a slice of its bytes with a digest of its rows, so rows appended to a table add parts and change none:
what has been fetched is not fetched again. A part of a Parquet file is a range of its rows. A compressed text table is unpacked up to the slice
each time: keep long lists as Parquet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate
from typing import Any

import pyarrow.parquet as pq

from pipelines.format.errors import InputError, Reject
from pipelines.format.storage import open_read
from pipelines.listing import Input, list_files, place
from pipelines.row_groups import numbered_rows
from pipelines.stage import SourcePart
from pipelines.table import SUFFIXES, Row, between, matching, scan

ROWS = 10_000
MAX_SLICE = 64 << 20  # bytes of a text table in one part: 10,000 rows are 3 MB, if nobody put books into the captions


def url_parts(path: str, columns: list[str], key: str | None = None, table: str | None = None, rows: int | None = None) -> list[SourcePart]:
    """The parts, of at most so many rows, of every table below `path`, or of the one it is; or of those that `table` names (`*` for several)."""
    out: list[SourcePart] = []
    most = rows or ROWS
    found = list_files(path, (".parquet", *SUFFIXES))
    named = matching(table, [f.path for f in found]) if table else [f.path for f in found]
    for item in (f for f in found if f.path in named):
        out += _parquet(path, item, columns, most) if item.path.lower().endswith(".parquet") else _text(path, item, columns, key, most)
    return out


def url_rows(path: str, spec: dict[str, Any], columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """(ordinal in its table, row) of one part."""
    if "broken" in spec:
        yield spec["first"], Reject(*spec["broken"])
    elif "groups" in spec:
        first, stop = spec["rows"]
        for origin, row in numbered_rows(path, spec, columns):
            number = int(origin.rpartition("#")[2])
            if first <= number < stop:
                yield number, row
            elif number >= stop:
                return
    else:
        for found in between(place(path, spec["file"]), spec["at"], spec["end"], spec["first"]):
            mapping = found.problem is None and isinstance(found.value, dict)
            yield found.number, found.value if mapping else found.problem or Reject("unreadable", "a row is a mapping of columns")


def _parquet(path: str, item: Input, columns: list[str], rows: int) -> Iterator[SourcePart]:
    with open_read(place(path, item.path)) as f:
        try:
            file = pq.ParquetFile(f)
            known, groups = file.schema_arrow.names, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except Exception as error:  # pyarrow has several classes for damaged footers
            yield SourcePart({"file": item.path, "first": 0, "broken": ["unreadable", f"Parquet: {error}"[:300]]}, [item.as_list()])
            return
    missing = [c for c in columns if c not in known]
    if missing:
        raise InputError("no such column", where=item.path, found=missing[0], allowed=", ".join(known[:50]))
    starts = [0, *accumulate(groups)]
    for first in range(0, starts[-1], rows):
        stop = min(first + rows, starts[-1])
        a, b = bisect_right(starts, first) - 1, bisect_left(starts, stop)
        yield SourcePart({"file": item.path, "groups": [a, b], "row": starts[a], "rows": [first, stop]}, [item.as_list()])


def _text(path: str, item: Input, columns: list[str], key: str | None, rows: int) -> Iterator[SourcePart]:
    run: _Run | None = None
    for row in scan(place(path, item.path), key):
        if run and (row.at < 0 or run.rows >= rows or run.end - run.at > MAX_SLICE):
            yield run.part(item)
            run = None
        if row.at < 0:  # the table is broken from here on
            bad = row.problem or Reject("unreadable", "the table ends badly")
            yield SourcePart({"file": item.path, "first": row.number, "broken": [bad.reason, bad.detail]}, [item.as_list()])
            return
        run = run or _Run(row.at, row.number)
        run.add(row, columns)
    if run:
        yield run.part(item)


class _Run:
    """Neighbouring rows of a text table on their way to a part."""

    def __init__(self, at: int, first: int) -> None:
        self.at = self.end = at
        self.first, self.rows, self._digest = first, 0, sha256()

    def add(self, row: Row, columns: list[str]) -> None:
        value = row.value if isinstance(row.value, dict) else {}
        self._digest.update(repr([value.get(c) for c in columns]).encode("utf-8", errors="surrogatepass"))
        self.end, self.rows = row.at + row.size, self.rows + 1

    def part(self, item: Input) -> SourcePart:
        spec = {"file": item.path, "at": self.at, "end": self.end, "first": self.first}
        return SourcePart(spec, [[item.path, self.end - self.at, self._digest.hexdigest()]])
