"""Images with captions from Parquet files that hold the image bytes: the hubs' usual form.

The image column may be bytes, a struct {bytes, path} (as the `datasets` library writes), or a list of either, of which the first is taken. A part
is a run of whole row groups to 256 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listing import list_files
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import captions, pair
from pipelines.row_groups import group_runs, numbered_rows, plain
from pipelines.stage import Rejected, Source, SourcePart


class ImageParquet(Source):
    """`image_field` holds the bytes; `caption_fields` maps the captions' names to columns (a text, or a list of texts)."""

    data: ClassVar[str] = "image-text"
    path: str
    image_field: str = "image"
    caption_fields: dict[str, str] = {"original": "caption"}
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()
    max_pixels: Size = MAX_PIXELS

    def _columns(self) -> list[str]:
        named = [self.image_field, *self.caption_fields.values(), self.url_field, self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def parts(self) -> list[SourcePart]:
        return [part for item in list_files(self.path, (".parquet",)) for part in group_runs(self.path, item, self._columns())]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for origin, row in numbered_rows(self.path, spec, self._columns()):
            try:
                if isinstance(row, Reject):
                    raise row
                texts = captions({name: row[column] for name, column in self.caption_fields.items()})
                rest = {"url": self.url_field and row[self.url_field], "licence": (self.licence_field and row[self.licence_field]) or self.licence}
                fields = {key: plain(row[key]) for key in self.keep}
                yield pair(source, origin, image_bytes(row[self.image_field]), texts, self.max_pixels, fields=fields, **rest)
            except Reject as reject:
                yield Rejected(origin, reject.reason, reject.detail)


def image_bytes(cell: Any) -> bytes:
    """The bytes in an image cell. `Reject` when it holds none."""
    if isinstance(cell, list) and cell:
        cell = cell[0]
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise Reject("unreadable", f"no image bytes in the cell: {type(cell).__name__}")
    return cell
