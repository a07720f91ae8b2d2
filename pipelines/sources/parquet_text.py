"""Text documents from a column of Parquet files: FineWeb, RedPajama, most of the hubs' exports.

A part is a run of whole row groups to 256 MiB of that column, so many workers read one big file. Footers are read when the parts are made; a
row group whose stated size is beyond reason, or a file that is no Parquet, costs one reject and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.bounded import MAX_LINE
from pipelines.format.errors import Reject
from pipelines.format.record import Record, Text
from pipelines.listing import list_files
from pipelines.pictures import sound
from pipelines.row_groups import group_runs, numbered_rows, plain
from pipelines.stage import Rejected, Source, SourcePart


class ParquetText(Source):
    """`text_field`, `url_field`, `licence_field` and `keep` name columns; `licence` holds for rows without one of their own."""

    data: ClassVar[str] = "text"
    path: str
    text_field: str = "text"
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()

    def _columns(self) -> list[str]:
        named = [self.text_field, self.url_field, self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def parts(self) -> list[SourcePart]:
        return [part for item in list_files(self.path, (".parquet",)) for part in group_runs(self.path, item, self._columns())]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for origin, row in numbered_rows(self.path, spec, self._columns()):
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
