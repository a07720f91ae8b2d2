"""Images that a table only names: rows of (url, caption, …), fetched by the fetch room, in the order of the table.

Each row ends as a record or as a reject whose reason is the outcome of its URL: opt_out, fetch_permanent, fetch_transient, too_large, not_allowed,
timeout, hash_mismatch, or what the image itself is guilty of (invalid_image, truncated). An owner's no is no failure and is counted apart. A
part is 10,000 rows; its URLs are fetched together while the records before them are decoded and written. `fields.fetch` of a record says
where its bytes came from and what was said about their use; nothing in it is a clock.

    pipelines run image-text -c url_list source.url_table.path=urls.parquet
    pipelines run image-text -c url_list source.url_table.path=urls.parquet --retry transient          asks again for what failed in passing ways
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.fetch import Ask, Fetched, Fetcher, Policy
from pipelines.fetch.policy import PACE
from pipelines.fetch.urls import redact
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import captions, pair
from pipelines.row_groups import plain
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.url_rows import url_parts, url_rows


class UrlTable(Source):
    """`path` is a table (Parquet, CSV, TSV, JSON Lines, a JSON list under `key`) or a folder of them. `caption_fields` maps the captions' names to
    columns; a column may hold a list. `digest_field` holds md5, sha256 or sha512 in hex, which the bytes must then have. `size_fields` are
    width and height as the table says them: kept beside the record, since the web often disagrees. `fetch` is the policy
    (pipelines/fetch/policy.py): who we say we are, what may be taken, how patiently."""

    data: ClassVar[str] = "image-text"
    path: str
    key: str | None = None
    url_field: str = "url"
    caption_fields: dict[str, str] = {"original": "caption"}
    digest_field: str | None = None
    size_fields: tuple[str, str] | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()
    max_pixels: Size = MAX_PIXELS
    fetch: Policy = Policy()

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """How patiently URLs are asked for says nothing about what the records are: more patience may finish an old job."""
        return {**fields, "fetch": {k: v for k, v in fields["fetch"].items() if k not in PACE}}

    def _columns(self) -> list[str]:
        named = [self.url_field, *self.caption_fields.values(), self.digest_field, *(self.size_fields or ()), self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def parts(self) -> list[SourcePart]:
        return url_parts(self.path, self._columns(), self.key)

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any]:
        return {**spec, "only": sorted(int(o.rpartition("#")[2]) for o in origins)}

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        rows = url_rows(self.path, spec, self._columns())
        only = set(spec["only"]) if "only" in spec else None
        items = [(number, self._item(row)) for number, row in rows if only is None or number in only]
        with Fetcher(self.fetch) as fetcher:
            answers = fetcher.ordered([item.ask for _, item in items if isinstance(item, _Item)])
            for number, item in items:
                origin = f"{spec['file']}#{number}"
                if isinstance(item, Reject):
                    yield Rejected(origin, item.reason, item.detail)
                    continue
                try:
                    yield self._record(source, origin, item, next(answers))
                except Reject as reject:
                    shown = redact(item.ask.url)
                    yield Rejected(origin, reject.reason, reject.detail if shown in reject.detail else f"{reject.detail} [{shown}]")

    def _item(self, row: dict[str, Any] | Reject) -> _Item | Reject:
        """What is asked for a row, or why it is not: a row that could not become a record costs no request."""
        try:
            if isinstance(row, Reject):
                return row
            url, digest = row.get(self.url_field), row.get(self.digest_field or "")
            if not isinstance(url, str) or not url.strip():
                return Reject("unreadable", f"no URL in the column {self.url_field!r}")
            texts = captions({name: row.get(column) for name, column in self.caption_fields.items()})
            if not texts:
                return Reject("empty", "an image without a caption")
            return _Item(Ask(url.strip(), str(digest).strip() if digest else None), texts, row)
        except Reject as reject:
            return reject

    def _record(self, source: str, origin: str, item: _Item, found: Fetched) -> Record:
        if found.status != "ok":
            raise Reject(found.status, found.detail)
        row = item.row
        fields = {"fetch": found.evidence} | {key: plain(row[key]) for key in (*(self.size_fields or ()), *self.keep) if key in row}
        rest = {"url": item.ask.url, "licence": row.get(self.licence_field or "") or self.licence, "group": found.evidence["sha256"]}
        return pair(source, origin, found.body, item.texts, self.max_pixels, fields=fields, **rest)


class _Item:
    """A row that is worth asking for."""

    def __init__(self, ask: Ask, texts: list[tuple[str, str]], row: dict[str, Any]) -> None:
        self.ask, self.texts, self.row = ask, texts, row
