"""A Parquet table read as the other tables are: scanned once for its rows, then picked from by their places.

What comes in: a file and the columns wanted. What goes out: rows whose place is their ordinal. For tables that name files which lie beside them; a
table that holds its images is cut into parts by row groups instead (`row_groups.py`). Picking reads the row groups that hold the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.format.errors import Reject
from pipelines.listing import Input
from pipelines.row_groups import group_runs, group_sizes, numbered_rows
from pipelines.table import Row


def scan_rows(path: str, columns: list[str]) -> Iterator[Row]:
    """All rows in order. A row group that cannot be read is one row with a problem. A column that is not there is an `InputError`."""
    for part in group_runs(path, Input(path.rsplit("/", 1)[-1], 0, ""), columns, where=path):
        for origin, row in numbered_rows(path, part.spec, columns, where=path):
            number = int(origin.rpartition("#")[2]) if "#" in origin else 0
            yield Row(-1, 0, number, None, row) if isinstance(row, Reject) else Row(number, 1, number, row)


def pick_rows(path: str, places: Iterable[int], columns: list[str]) -> dict[int, Any]:
    """The rows with these ordinals."""
    wanted, out, first = set(places), dict[int, Any](), 0
    for group, rows in enumerate(group_sizes(path)):
        if not wanted.isdisjoint(range(first, first + rows)):
            spec = {"file": "", "groups": [group, group + 1], "row": first}
            for number, (_, row) in enumerate(numbered_rows(path, spec, columns, where=path), first):
                if number in wanted and not isinstance(row, Reject):
                    out[number] = row
        first += rows
    return out
