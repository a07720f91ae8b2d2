"""Rows of a table that name image files: planned once on the driver, read part by part.

What comes in: a folder, the table in it, and how a row names its image. What goes out: parts of at most 1,000 images and 256 MiB, whose
specs say where the rows lie; then, in a worker, the bytes of each image with its rows. The table is scanned once and never held. A part's spec
carries a digest of its rows instead of the table's date, so that rows appended to a table add parts and change none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from posixpath import dirname
from posixpath import join as posix_join
from typing import Any

from pipelines.format.errors import HeadwaterError, InputError, Reject
from pipelines.format.storage import join, open_read, read
from pipelines.listing import PART_BYTES, PART_FILES, Input, list_files
from pipelines.parquet_table import pick_rows, scan_rows
from pipelines.pictures import SUFFIXES as IMAGES
from pipelines.stage import Rejected, SourcePart
from pipelines.table import SUFFIXES as TABLES
from pipelines.table import Row, beside, matching, pick, scan
from pipelines.tar_stream import places

PART_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one record: images (path, bytes) and the rows about them, as (ordinal, value, joined value). `fields` and `url` are
    what is known of the images themselves: how they were fetched, where from."""

    origin: str
    images: list[tuple[str, bytes]]
    rows: list[tuple[int, Any, Any]]
    fields: dict[str, Any] = field(default_factory=dict)
    url: str | None = None


@dataclass(frozen=True)
class Rows:
    """How a table is read. `images_of` gives the image paths of a row, relative to the table's folder (none = the row is no item: `Reject`).
    `merge` puts all rows about one image into one item. `usable` raises `Reject` for a row that lacks what the recipe names: a table without one
    usable row is an error of the recipe, told before anything runs. `joined` is a second table, matched by the column `on`. Of a Parquet table the
    `columns` are read. A row that names no image is an item of its own. `archives` are plain tars below the path (`*` for several): their members
    are files as if they had been unpacked beside them."""

    path: str
    table: str
    images_of: Callable[[Any], list[str]]
    usable: Callable[[Any], Any] = lambda row: None
    merge: bool = False
    key: str | None = None
    joined: str | None = None
    joined_key: str | None = None
    on: str = "question_id"
    columns: tuple[str, ...] = ()
    archives: str | None = None

    def parts(self) -> list[SourcePart]:
        """Parts in the order of the tables' rows; with `merge`, in the order in which images first appear."""
        listed = list_files(self.path)
        files = {f.path: f for f in listed if f.path.lower().endswith(IMAGES)}
        names = [f.path for f in listed if f.path.lower().endswith((*TABLES, ".parquet"))]
        other = self._other(names)
        inside = self._inside(listed, files)
        return [part for table in matching(self.table, names) for part in _cut(table, self._entries(table, files, other), files, inside)]

    def items(self, spec: dict[str, Any]) -> Iterator[Item | Rejected]:
        """The items of a part, in order."""
        entries = spec["items"]
        spots = [(r[1], r[2]) for e in entries if len(e) == 3 for r in e[2]]
        rows = self._picked(join(self.path, spec["table"]), spots)
        joined = [(r[3], r[4]) for e in entries if len(e) == 3 for r in e[2] if len(r) > 3]
        other = pick(join(self.path, spec["joined"]), joined) if joined else {}
        inside = spec.get("inside", {})
        last: tuple[list[str], list[tuple[str, bytes]]] = ([], [])  # neighbouring questions on one image read it once
        for entry in entries:
            if len(entry) == 4:
                yield Rejected(*entry[1:])
                continue
            origin, images, found = entry
            try:
                if images != last[0]:
                    last = (images, [(image, self._bytes(image, inside)) for image in images])
            except HeadwaterError as error:
                yield Rejected(origin, "unreadable", error.what)
                continue
            yield Item(origin, last[1], [(r[0], rows[r[1]], other.get(r[3]) if len(r) > 3 else None) for r in found])

    def _inside(self, listed: list[Input], files: dict[str, Input]) -> dict[str, list[Any]]:
        """The members of archives, added to `files`, and where each lies: archive, offset, size. What follows damage in an archive is not there."""
        out: dict[str, list[Any]] = {}
        tars = {f.path: f for f in listed if f.path.lower().endswith(".tar")}
        for name in matching(self.archives, tars) if self.archives else ():
            with open_read(join(self.path, name)) as stream, suppress(Reject):
                for member, at, size in places(stream, IMAGES):
                    path = posix_join(dirname(name), member)
                    if path not in files:
                        files[path] = Input(path, size, f"{tars[name].tag}@{at}")
                        out[path] = [name, at, size]
        return out

    def _bytes(self, image: str, inside: dict[str, list[Any]]) -> bytes:
        if image not in inside:
            return read(join(self.path, image))
        archive, at, size = inside[image]
        return read(join(self.path, archive), at, at + size)

    def _picked(self, table: str, spots: list[tuple[int, int]]) -> dict[int, Any]:
        return pick_rows(table, [at for at, _ in spots], list(self.columns)) if table.lower().endswith(".parquet") else pick(table, spots)

    def _scanned(self, table: str) -> Iterator[Row]:
        return scan_rows(table, list(self.columns)) if table.lower().endswith(".parquet") else scan(table, self.key)

    def _other(self, names: list[str]) -> tuple[str, dict[Any, tuple[int, int, bytes]]]:
        if self.joined is None:
            return "", {}
        table = matching(self.joined, names)[0]
        rows = (r for r in scan(join(self.path, table), self.joined_key) if isinstance(r.value, dict) and self.on in r.value)
        return table, {r.value[self.on]: (r.at, r.size, _said(r.value)) for r in rows}

    def _entries(self, table: str, files: dict[str, Input], other: tuple[str, dict[Any, tuple[int, int, bytes]]]) -> list[_Entry]:
        seen: dict[tuple[str, ...], _Entry] = {}
        out: list[_Entry] = []
        problem: Reject | None = None
        found = False
        for row in self._scanned(join(self.path, table)):
            try:
                images, joined = self._place(table, row, files, other[1])
                if not found:
                    misfit = _fits(self.usable, row)
                    found, problem = misfit is None, problem or misfit
            except Reject as reject:
                problem = problem or reject
                out.append(_Entry(f"{table}#{row.number}", (), reject=reject))
                continue
            entry = seen.get(images) if images else None
            if entry is None or not self.merge:
                # An image that more than one row names, each for itself, needs more than its path to tell its records apart.
                origin = f"{images[0] if images else table}#{row.number}" if entry is not None or len(images) != 1 else images[0]
                entry = _Entry(origin, images, sum(files[i].bytes for i in set(images)))
                seen.setdefault(images, entry)
                out.append(entry)
            entry.add(row, joined, other[0])
        if out and not found and problem is not None:
            raise InputError("no row of this table can be used as the recipe says", where=join(self.path, table), found=problem.detail)
        return out

    def _place(self, table: str, row: Row, files: dict[str, Input], other: dict[Any, tuple[int, int, bytes]]) -> tuple[tuple[str, ...], Any]:
        if row.problem:
            raise row.problem
        images = tuple(beside(table, image) for image in self.images_of(row.value))
        for image in images:
            if image not in files:
                raise Reject("unreadable", f"no such image file: {image[:200]}")
        if self.joined is None:
            return images, None
        match = other.get(row.value.get(self.on)) if isinstance(row.value, dict) else None
        if match is None:
            raise Reject("unreadable", f"no row in {self.joined} with this {self.on}")
        return images, match


def _fits(usable: Callable[[Any], Any], row: Row) -> Reject | None:
    try:
        usable(row.value)
    except Reject as reject:
        return reject
    return None


class _Entry:
    """An item as it is planned: its rows' places and a running digest of what they say."""

    def __init__(self, origin: str, images: tuple[str, ...], nbytes: int = 0, reject: Reject | None = None) -> None:
        self.origin, self.images, self.nbytes, self.reject = origin, images, nbytes, reject
        self.rows: list[list[int]] = []
        self.digest = sha256()
        self.joined = ""

    def add(self, row: Row, joined: Any, table: str) -> None:
        spot = [row.number, row.at, row.size]
        self.digest.update(_said(row.value))
        if joined is not None:
            spot += joined[:2]
            self.digest.update(joined[2])
            self.joined = table
        self.rows.append(spot)

    def spec(self) -> list[Any]:
        if self.reject is not None:
            return ["reject", self.origin, self.reject.reason, self.reject.detail]
        return [self.origin, list(self.images), self.rows]


def _cut(table: str, entries: list[_Entry], files: dict[str, Input], inside: dict[str, list[Any]]) -> Iterator[SourcePart]:
    run: list[_Entry] = []
    nbytes = rows = 0
    for entry in entries:
        nbytes, rows = nbytes + entry.nbytes, rows + len(entry.rows)
        if run and (nbytes > PART_BYTES or rows > PART_ROWS or len(run) >= PART_FILES):
            yield _part(table, run, files, inside)
            run, nbytes, rows = [], entry.nbytes, len(entry.rows)
        run.append(entry)
    if run:
        yield _part(table, run, files, inside)


def _part(table: str, run: list[_Entry], files: dict[str, Input], inside: dict[str, list[Any]]) -> SourcePart:
    digest = sha256(b"".join(e.digest.digest() for e in run)).hexdigest()
    spec: dict[str, Any] = {"table": table, "items": [e.spec() for e in run], "digest": digest}
    spec["joined"] = next((e.joined for e in run if e.joined), "")
    names = dict.fromkeys(image for e in run for image in e.images)
    held = {name: inside[name] for name in names if name in inside}
    if held:
        spec["inside"] = held
    return SourcePart(spec, [files[name].as_list() for name in names])


def _said(value: Any) -> bytes:
    return sha256(json.dumps(value, sort_keys=True, default=_printed).encode()).digest()


def _printed(value: Any) -> str:
    """What a Parquet cell can hold and JSON cannot."""
    return sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
