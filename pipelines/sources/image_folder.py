"""Images with captions from a folder: photos, and beside them either one table of captions or a text file each.

    captions: pairs.jsonl     each row names an image (relative to the table's folder) and holds its captions; CSV, TSV and JSON lists as well;
                              `*/pairs.jsonl` takes several tables. Rows keep their order; images without a row are not items.
    (no captions)             a.jpg has its caption in a.txt (or a.caption)

What cannot be read (missing, empty, cut, no image, no caption) is one reject each and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.format.document import Size
from pipelines.format.errors import HeadwaterError, Reject
from pipelines.format.record import Record
from pipelines.format.storage import join, read
from pipelines.image_rows import Item, Rows
from pipelines.listing import Input, list_files, runs
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import SUFFIXES, captions, pair
from pipelines.row_groups import plain
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.table import template

_BESIDE = (".txt", ".caption")
_MAX_TEXT = 1 << 20


class ImageFolder(Source):
    """`image_field` is a column or a template (`images/{id}.jpg`). `caption_fields` maps the captions' names to columns; a column may hold a list
    of captions, then named original, caption2, caption3 … `licence` holds for images without one of their own; `keep` copies columns into
    the record's `fields`."""

    data: ClassVar[str] = "image-text"
    path: str
    captions: str | None = None
    image_field: str = "image"
    caption_fields: dict[str, str] = {"original": "caption"}
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()
    max_pixels: Size = MAX_PIXELS

    def _rows(self) -> Rows:
        assert self.captions is not None
        return Rows(self.path, self.captions, lambda row: [template(self.image_field, row)], self._usable)

    def _usable(self, row: Any) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise Reject("unreadable", "a row of captions is a mapping of columns")
        missing = [c for c in self.caption_fields.values() if c not in row]
        if len(missing) == len(self.caption_fields):
            raise Reject("unreadable", f"no column {missing[0]!r}; there are: {', '.join(row)[:200]}")
        return row

    def parts(self) -> list[SourcePart]:
        if self.captions is not None:
            return self._rows().parts()
        listed = list_files(self.path, SUFFIXES + _BESIDE)
        texts = {stem(f.path): f for f in reversed(listed) if f.path.lower().endswith(_BESIDE)}
        out = []
        for run in runs([f for f in listed if f.path.lower().endswith(SUFFIXES)]):
            beside = [texts.get(stem(f.path)) for f in run]
            items = [[f.path, t.path if t else None] for f, t in zip(run, beside, strict=True)]
            out.append(SourcePart({"items": items}, [f.as_list() for pair in zip(run, beside, strict=True) for f in pair if isinstance(f, Input)]))
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for item in self._rows().items(spec) if self.captions is not None else self._beside(spec):
            if isinstance(item, Rejected):
                yield item
                continue
            try:
                yield self._pair(source, item)
            except Reject as reject:
                yield Rejected(item.origin, reject.reason, reject.detail)

    def _pair(self, source: str, item: Item) -> Record:
        row = self._usable(item.rows[0][1])
        texts = captions({name: row.get(column) for name, column in self.caption_fields.items()})
        rest = {"url": row.get(self.url_field or ""), "licence": row.get(self.licence_field or "") or self.licence}
        fields = {key: plain(row[key]) for key in self.keep if key in row}
        return pair(source, item.origin, item.images[0][1], texts, self.max_pixels, fields=fields, **rest)

    def _beside(self, spec: dict[str, Any]) -> Iterator[Item | Rejected]:
        column = next(iter(self.caption_fields.values()))
        for image, text in spec["items"]:
            try:
                caption = read(join(self.path, text), 0, _MAX_TEXT).decode("utf-8-sig") if text else None
                yield Item(image, [(image, read(join(self.path, image)))], [(0, {column: caption}, None)])
            except (HeadwaterError, UnicodeDecodeError) as error:
                yield Rejected(image, "unreadable", str(error).splitlines()[0])


def stem(path: str) -> str:
    """A path without its last suffix."""
    head, dot, tail = path.rpartition(".")
    return head if dot and "/" not in tail else path
