"""Web pages from WARC, WET and ARC archives: what crawlers write and Common Crawl publishes.

A file, of a folder or a list, is a part (`.warc`, `.arc`, `.wet`, each plain or `.gz`). Responses of status 200 that hold HTML become their main
text (trafilatura), conversion records (WET) are text already; other record types are no documents and are passed over, other responses are
counted as rejects by reason. A record's origin is `file#byte` of the unpacked file, its group the page's URL, so that two captures of a
page stand on one side of every split.

Nothing in an archive is trusted: a record is read to `max_record` bytes on disk and the same after its transfer and content encodings are
undone, a garbled one costs itself (`warc_records.py`), HTML is parsed in the guarded child.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.bounded import opened
from pipelines.extra import need
from pipelines.file_source import FileSource
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record, Text
from pipelines.html_text import page_text
from pipelines.listing import Input
from pipelines.stage import Rejected, SourcePart
from pipelines.warc_records import records

SUFFIXES = tuple(kind + end for kind in (".warc", ".arc", ".wet") for end in ("", ".gz"))
_HTML = ("text/html", "application/xhtml+xml")
_OPENINGS = (b"<!doctype html", b"<html", b"<head", b"<body")


class Warc(FileSource):
    """`favour_precision` and `deduplicate` are trafilatura's (within a page). `statuses` are the HTTP statuses that count as a page.
    Rejects: `not_html`, `http_status`, `empty`, `unreadable`, `truncated`, `too_large`, `timeout`."""

    data: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    favour_precision: bool = True
    deduplicate: bool = True
    statuses: tuple[int, ...] = (200,)
    max_record: Size = 16_000_000
    licence: str | None = None

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        return [SourcePart({"file": item.path}, [item.as_list()])]

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        rel, after = spec["file"], 0
        try:
            with opened(where) as stream:
                for at, found in records(stream, self.max_record):
                    origin, after = f"{rel}#{at}", at + 1
                    try:
                        if isinstance(found, Reject):
                            raise found
                        record = self._record(source, origin, found)
                    except Reject as reject:
                        yield Rejected(origin, reject.reason, reject.detail)
                        continue
                    if record is not None:
                        yield record
        except Reject as reject:  # the archive itself is cut or goes on unpacking beyond reason
            yield Rejected(f"{rel}#{after}", reject.reason, reject.detail)

    def _record(self, source: str, origin: str, raw: bytes) -> Record | None:
        """The document in a record; None where there is none to be had."""
        warc = _parsed(raw)
        if warc.rec_type not in ("response", "conversion"):
            return None
        text = _decoded(self._payload(warc))
        if warc.rec_type == "response":
            text = page_text(text, self.favour_precision, self.deduplicate)
        if not text.strip():
            raise Reject("empty", "no text")
        url = warc.rec_headers.get_header("WARC-Target-URI") or warc.rec_headers.get_header("uri")
        date = warc.rec_headers.get_header("WARC-Date") or warc.rec_headers.get_header("archive-date")
        url = url.strip("<>") if url else None
        return Record.make(source, origin, self.data, [Text(text)], group=url, url=url, licence=self.licence, fields={"date": date} if date else {})

    def _payload(self, warc: Any) -> bytes:
        """The bytes of the page with its encodings undone. `Reject` for what is no page."""
        http = warc.http_headers
        status = str(http.get_statuscode()) if http is not None else "200"
        if not (status.isdigit() and int(status) in self.statuses):
            raise Reject("http_status", status[:20])
        try:
            data: bytes = warc.content_stream().read(self.max_record + 1)
        except Exception as error:
            raise Reject("unreadable", f"{type(error).__name__}: {error}"[:200]) from None
        if len(data) > self.max_record:
            raise Reject("too_large", f"more than {self.max_record} bytes, unpacked")
        stated = warc.rec_headers.get_header("WARC-Identified-Payload-Type") or (http.get_header("Content-Type") if http is not None else None) or ""
        kind = stated.partition(";")[0].strip().lower()
        if warc.rec_type == "response" and kind not in _HTML and (kind or not _looks_like_html(data)):
            raise Reject("not_html", kind or "no type stated")
        return data


def _parsed(raw: bytes) -> Any:
    """warcio's reading of one record. `Reject` when it cannot make sense of it."""
    try:
        return next(iter(need("warcio.archiveiterator", "warc").ArchiveIterator(io.BytesIO(raw))))
    except Exception as error:
        raise Reject("unreadable", f"{type(error).__name__}: {error}"[:200]) from None


def _looks_like_html(data: bytes) -> bool:
    head = data[:1024].lstrip().lower()
    return any(opening in head for opening in _OPENINGS)


def _decoded(data: bytes) -> str:
    """UTF-8, or what the bytes look like; datatrove decides by the same two steps."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        guess = need("cchardet", "warc").detect(data)["encoding"]
    try:
        return data.decode(guess or "utf-8")
    except (UnicodeDecodeError, LookupError):
        raise Reject("unreadable", f"not UTF-8, nor {guess or 'anything known'}") from None
