"""Text documents from JSON Lines: what most corpora are shipped as (C4, Dolma, FineWeb exports).

A file, a folder or a list of `.jsonl` or `.json` files, plain or gzip or zstd. Plain files are cut into byte ranges of 256 MiB (a line belongs
where its first byte lies), so one huge file is read by many workers; a compressed file is one part, and so is one that has to be fetched. A line
that is no JSON, has no text or is longer than 16 MiB costs one record; an archive that is cut or unpacks beyond reason costs its rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, ClassVar

from pipelines.bounded import COMPRESSIONS, MAX_LINE, compression, lines, opened
from pipelines.file_source import FileSource
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record, Text
from pipelines.json_list import parse
from pipelines.listing import Input, byte_ranges
from pipelines.pictures import sound
from pipelines.stage import Rejected, SourcePart

SUFFIXES = tuple(kind + end for kind in (".jsonl", ".ndjson", ".json") for end in ("", *COMPRESSIONS))


class Jsonl(FileSource):
    """Fields are named by key, with dots into nested objects (`metadata.url`). `keep` copies keys into the record's `fields`; `id_field` is kept
    there as `source_id` (a record's own id comes from its place). `licence` holds for every document without one of its own."""

    data: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    text_field: str = "text"
    id_field: str | None = None
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        """Every byte range of a plain file, a compressed one whole."""
        whole = compression(item.path) is not None
        ranges = [(0, None)] if whole else byte_ranges(item)
        return [SourcePart({"file": item.path, "start": start, "stop": stop}, [item.as_list()]) for start, stop in ranges]

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        rel, packed = spec["file"], compression(where) is not None
        number = mark = 0
        try:
            with opened(where) as stream:
                for at, line in lines(stream, spec.get("start", 0), spec.get("stop")):
                    if line is not None and not line.strip():
                        continue
                    mark = number if packed else at
                    yield self._record(source, f"{rel}#{mark}", line)
                    number, mark = number + 1, number + 1 if packed else at + len(line or b"")
        except Reject as reject:
            yield Rejected(f"{rel}#{mark}", reject.reason, reject.detail)

    def expect(self, places: list[tuple[str, str]]) -> None:
        """A text field that none of the first lines has is an error of the recipe, told before anything runs."""
        found = None
        for rel, where in [places[i] for i in sorted({0, len(places) // 2, len(places) - 1})] if places else []:
            with suppress(Reject), opened(where) as stream:
                for _, line in islice(lines(stream), 20):
                    item = self._record("", rel, line)
                    if isinstance(item, Record) or item.reason == "empty":
                        return
                    found = found or f"{rel}: {item.detail}"
        if found:
            raise InputError("no line can be used as the recipe says", where=self.path, found=found, next="name the text with text_field")

    def _record(self, source: str, origin: str, line: bytes | None) -> Record | Rejected:
        if line is None:
            return Rejected(origin, "too_large", f"a line of more than {MAX_LINE} bytes")
        row = parse(line)
        if isinstance(row, Reject):
            return Rejected(origin, row.reason, row.detail)
        try:
            text = sound(field(row, self.text_field), MAX_LINE)
            if not text.strip():
                raise Reject("empty", "no text")
            kept = {key: field(row, key) for key in self.keep}
            if self.id_field:
                kept["source_id"] = field(row, self.id_field)
            url = self.url_field and optional(row, self.url_field)
            licence = self.licence_field and optional(row, self.licence_field)
        except Reject as reject:
            return Rejected(origin, reject.reason, reject.detail)
        return Record.make(source, origin, self.data, [Text(text)], url=url, licence=licence or self.licence, fields=kept)


def field(row: Any, name: str) -> Any:
    """A value by its dotted name. `Reject` when it is not there."""
    here = row
    for step in name.split("."):
        if not isinstance(here, dict) or step not in here:
            known = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise Reject("unreadable", f"no field {name!r}; found: {known[:200]}")
        here = here[step]
    return here


def optional(row: Any, name: str) -> str | None:
    """A text by its dotted name, or None."""
    try:
        value = field(row, name)
    except Reject:
        return None
    return str(value) if value is not None else None
