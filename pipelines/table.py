"""Rows of the tables people keep beside their images: JSON Lines, one JSON list, CSV or TSV, each plain, gzip or zstd.

What comes in: a path. What goes out: rows with the place of their bytes, so that a plan can scan a table once, name rows by (at, size), and
a worker can fetch just those. Places count unpacked bytes. A JSON list is cut into its elements as it streams by: LLaVA's gigabyte of
conversations is never held whole. Damage costs the row it is in; where the following row cannot be found again (a broken JSON list, a cut
archive) the last row says so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from posixpath import dirname, normpath
from posixpath import join as posix_join
from typing import IO, Any, NamedTuple

from pipelines.bounded import COMPRESSIONS, MAX_LINE, lines, opened
from pipelines.format.errors import InputError, Reject
from pipelines.json_list import json_list, member, parse

csv.field_size_limit(MAX_LINE)  # of the whole process; its own 128 KiB is less than a photo in base64
SUFFIXES = tuple(kind + end for kind in (".jsonl", ".json", ".csv", ".tsv") for end in ("", *COMPRESSIONS))


class Row(NamedTuple):
    """One row: where its bytes lie, its ordinal, and its value, or the reason why it has none. Columns of a CSV are a mapping by header."""

    at: int
    size: int
    number: int
    value: Any
    problem: Reject | None = None


def scan(path: str, key: str | None = None) -> Iterator[Row]:
    """All rows in order. In a `.json` file that holds an object, `key` names the list inside it (VQA v2's `questions`)."""
    kind = _kind(path)
    number = -1
    try:
        with opened(path) as stream:
            found = _jsonl(stream) if kind == "jsonl" else json_list(stream, key) if kind == "json" else _csv(stream, kind)
            for number, (at, size, value) in enumerate(found):
                bad = value if isinstance(value, Reject) else None
                yield Row(at, size, number, None if bad else value, bad)
    except Reject as problem:
        yield Row(-1, 0, number + 1, None, problem)


def between(path: str, at: int, end: int, first: int) -> Iterator[Row]:
    """The rows in the bytes [at, end) of a file that `scan` has been over: `at` is where one begins, `end` where one ends, `first` its ordinal.
    At most that slice is held. In a `.json` list the places of the rows are those inside the slice."""
    kind = _kind(path)
    with opened(path) as stream:
        head = stream.readline(MAX_LINE) if kind in ("csv", "tsv") else b""
        _forward(stream, at, len(head))
        data = stream.read(end - at)
    named = data[:1] == b'"'  # members of an object
    slice_ = io.BytesIO((b"{" + data + b"}" if named else b"[" + data + b"]") if kind == "json" else head + data)
    found = _jsonl(slice_) if kind == "jsonl" else json_list(slice_, "*") if kind == "json" else _csv(slice_, kind)
    for number, (start, size, value) in enumerate(found, first):
        bad = value if isinstance(value, Reject) else None
        yield Row(at - len(head) + start, size, number, None if bad else value, bad)


def pick(path: str, spots: Iterable[tuple[int, int]]) -> dict[int, Any]:
    """The values of the rows at these (at, size), by `at`; a row that scanned well is taken to be well."""
    kind, out = _kind(path), {}
    with opened(path) as stream:
        header, now = list[str](), 0
        if kind in ("csv", "tsv"):
            first = stream.readline(MAX_LINE)
            header, now = _cells(first, kind), len(first)
        for at, size in sorted(spots):
            _forward(stream, at, now)
            data = stream.read(size)
            out[at] = dict(zip(header, _cells(data, kind), strict=False)) if header else member(data) if data[:1] == b'"' else parse(data)
            now = at + size
    return out


def matching(pattern: str, relpaths: Iterable[str]) -> list[str]:
    """The files a pattern names: an exact name, or `*` wildcards that also cross folders. None is an `InputError`."""
    names = list(relpaths)
    found = [pattern] if pattern in names else sorted((n for n in names if fnmatchcase(n, pattern)), key=str.encode)
    if not found:
        raise InputError("no such table in the source's path", found=pattern, allowed=", ".join(names[:5]) or "the folder has no table")
    return found


def beside(table: str, image: str) -> str:
    """The image a row names, relative to its table's folder, as a path relative to the source. Leaving the source's path is refused."""
    path = normpath(posix_join(dirname(table), image))
    if image.startswith("/") or "\0" in image or "\\" in image or path.split("/")[0] == "..":
        raise Reject("not_allowed", f"a path outside the source: {image[:200]!r}")
    return path


def template(pattern: str, row: Any) -> str:
    """`images/{image_id}.jpg` filled from a row: `{name}` is a column, `{2}` a position in a list, `{id:012}` a number in a format.
    A word without braces is the name of a column."""
    try:
        if "{" not in pattern:
            return str(cell(row, pattern))
        out, rest = "", pattern
        while "{" in rest:
            before, _, rest = rest.partition("{")
            name, _, rest = rest.partition("}")
            name, _, form = name.partition(":")
            value = cell(row, name)
            out += before + (format(int(value), form) if form else str(value))
        return out + rest
    except (ValueError, TypeError) as error:
        raise Reject("unreadable", f"{pattern!r}: {error}"[:200]) from None


def cell(row: Any, name: str) -> Any:
    """A column by name, or a list's element by position; `types.structural` is a column's member, and `Index|lndex` the first of these columns that
    there is. `Reject` when there is none."""
    if isinstance(row, dict) and "|" in name and name not in row:
        name = next((one for one in name.split("|") if one in row), name)
    if isinstance(row, dict) and name in row:
        return row[name]
    if isinstance(row, dict) and "." in name and isinstance(row.get(name.partition(".")[0]), dict):
        return cell(row[name.partition(".")[0]], name.partition(".")[2])
    if isinstance(row, list) and name.isdigit() and int(name) < len(row):
        return row[int(name)]
    known = ", ".join(map(str, row)) if isinstance(row, dict) else f"0 to {len(row) - 1}" if isinstance(row, list) else type(row).__name__
    raise Reject("unreadable", f"no column {name!r}; there are: {known[:200]}")


def _kind(path: str) -> str:
    name = path.lower()
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    kind = name.rpartition(".")[2]
    if kind not in ("jsonl", "json", "csv", "tsv"):
        raise InputError("this is no table", where=path, allowed=", ".join(SUFFIXES))
    return kind


def _delimiter(kind: str) -> str:
    return "," if kind == "csv" else "\t"


def _forward(stream: IO[bytes], at: int, now: int) -> None:
    if stream.seekable():
        stream.seek(at)
        return
    while now < at:
        now += len(stream.read(min(at - now, 1 << 20))) or at


def _jsonl(stream: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
    for at, line in lines(stream):
        if line is None:
            yield at, 0, Reject("too_large", f"a line of more than {MAX_LINE} bytes")
        elif line.strip():
            yield at, len(line.rstrip(b"\r\n")), parse(line)


def _csv(stream: IO[bytes], kind: str) -> Iterator[tuple[int, int, Any]]:
    end = 0

    def feed() -> Iterator[str]:
        nonlocal end
        for at, line in lines(stream):
            if line is None:
                raise Reject("too_large", f"a line of more than {MAX_LINE} bytes")
            end = at + len(line)
            # Bytes that are no UTF-8 become surrogates, so that only their own row is refused.
            yield line.decode("utf-8-sig" if at == 0 else "utf-8", errors="surrogateescape")

    reader = csv.reader(feed(), delimiter=_delimiter(kind))
    header = next(reader, [])
    start = end
    while True:
        value: Any
        try:
            values = next(reader)
            bad = len(values) != len(header) or any("\ud800" <= c <= "\udfff" for v in values for c in v)
            value = Reject("unreadable", "not UTF-8, or not as many cells as the header") if bad else dict(zip(header, values, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            values, value = ["?"], Reject("unreadable", str(error))
        if values:
            yield start, end - start, value
        start = end


def _cells(data: bytes, kind: str) -> list[str]:
    return next(csv.reader([data.decode("utf-8-sig")], delimiter=_delimiter(kind)))
