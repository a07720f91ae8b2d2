"""Text documents from a column of Parquet files: FineWeb, RedPajama, most of the hubs' exports.

A part is a run of whole row groups to 256 MiB of that column, so many workers read one big file. Footers are read when the parts are made; a
row group whose stated size is beyond reason, or a file that is no Parquet, costs one reject and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.bounded import MAX_LINE
from pipelines.file_source import FileSource
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record, Text
from pipelines.listing import Input
from pipelines.pictures import sound
from pipelines.row_groups import group_runs, numbered_rows, plain
from pipelines.stage import Rejected, SourcePart


class ParquetText(FileSource):
    """`text_field`, `url_field`, `licence_field` and `keep` name columns; `licence` holds for rows without one of their own."""

    data: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    text_field: str = "text"
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()

    def _columns(self) -> list[str]:
        named = [self.text_field, self.url_field, self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        return group_runs(self.path, item, self._columns(), where)

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for origin, row in self._rows(where, spec):
            try:
                if isinstance(row, Reject):
                    raise row
                text = sound(row[self.text_field], MAX_LINE)
                if not text.strip():
                    raise Reject("empty", "no text")
            except Reject as reject:
                yield Rejected(origin, reject.reason, reject.detail)
                continue
            licence = row[self.licence_field] if self.licence_field else None
            url = row[self.url_field] if self.url_field else None
            fields = {key: plain(row[key]) for key in self.keep}
            yield Record.make(source, origin, self.data, [Text(text)], url=url, licence=licence or self.licence, fields=fields)

    def _rows(self, where: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
        """(origin, row) of a part; of every row group where the part is a file whose footer nobody has seen yet."""
        if "groups" in spec:
            runs = [spec]
        else:
            try:
                runs = [part.spec for part in group_runs(self.path, Input(spec["file"], 0, ""), self._columns(), where)]
            except InputError as error:  # one file of a list without the column is no reason to stop them all
                raise Reject("unreadable", f"{error.what}: {error.found}; found: {error.allowed}") from None
        for run in runs:
            yield from numbered_rows(self.path, run, self._columns(), where)
