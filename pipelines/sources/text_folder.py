"""Plain text files as documents: books, transcripts, notes, corpora of the kind that come as a folder or a zip of .txt.

A file is a document, or with `split: blank_lines` every run of lines between empty ones is. Files are read recursively, plain, gzip or zstd; members
of zip files are streamed, never extracted. A part is a run of neighbouring files to 256 MiB or 1,000 files; a zip is a part of its own.

Text is UTF-8. What is not, or holds a NUL, is read as `encoding` if the recipe names one, and is a reject (`unreadable`) otherwise: a guess would
be wrong unnoticed, and wrong letters are learnt like right ones. A byte order mark is taken off, and lines end in a newline whatever they ended in;
nothing else is changed.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import groupby
from typing import IO, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from pipelines.bounded import COMPRESSIONS, lines, opened
from pipelines.format.document import Size
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record, Text
from pipelines.format.storage import open_read
from pipelines.listing import list_files, place, runs
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.zip_stream import members

_ZIP = ".zip"
_NO_TEXT = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf_7")  # codecs that carry out what bytes say
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


class TextFolder(Source):
    """`names` are patterns of file names, without `.gz` and `.zst`; `["*"]` reads every file. `encoding` is Python's name for the encoding of
    what is not UTF-8. `max_bytes` is of a document. With `split`, documents of one file are taken to be independent: each is a group of its own."""

    version: ClassVar[int] = 2  # 2: line ends of Windows and of old Macs become newlines
    data: ClassVar[str] = "text"
    path: str
    names: tuple[str, ...] = ("*.txt", "*.md")
    encoding: str | None = None
    split: Literal["none", "blank_lines"] = "none"
    max_bytes: Size = 16_000_000  # as a line of JSON and a page of an archive: twice the longest novel
    licence: str | None = None

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            found = codecs.lookup(name) if name is not None else None
        except LookupError:
            raise ValueError("no such encoding; Python's names are meant: cp1252, latin-1, koi8-r, shift_jis, utf-16") from None
        if found is not None and (found.name.replace("-", "_") in _NO_TEXT or not found._is_text_encoding):
            raise ValueError("not an encoding of text")
        return name

    @model_validator(mode="after")
    def _lines_are_bytes(self) -> TextFolder:
        if self.split != "none" and self.encoding is not None and "\n".encode(self.encoding) != b"\n":
            raise ValueError("blank lines are found in bytes: `split` needs an encoding in which a newline is one")
        return self

    def parts(self) -> list[SourcePart]:
        found = [f for f in list_files(self.path) if f.path.lower().endswith(_ZIP) or self._wanted(f.path)]
        if not found:
            raise InputError("nothing to read here", where=self.path, allowed=f"{', '.join(self.names)}, plain, .gz or .zst, or in a .zip")
        out = []
        for packed, files in groupby(found, lambda f: f.path.lower().endswith(_ZIP)):
            neighbours = list(files)
            for run in [[f] for f in neighbours] if packed else runs(neighbours):
                out.append(SourcePart({"files": [f.path for f in run]}, [f.as_list() for f in run]))
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for rel in spec["files"]:
            if rel.lower().endswith(_ZIP):
                yield from self._archive(rel, source)
            else:
                with opened(place(self.path, rel)) as stream:
                    yield from self._file(stream, rel, source)

    def _archive(self, rel: str, source: str) -> Iterator[Record | Rejected]:
        try:
            with open_read(place(self.path, rel)) as raw:
                for name, stream in members(raw, self._wanted):
                    if isinstance(stream, Reject):
                        yield Rejected(f"{rel}!{name}", stream.reason, stream.detail)
                    else:
                        yield from self._file(stream, f"{rel}!{name}", source)
        except Reject as reject:
            yield Rejected(rel, reject.reason, reject.detail)

    def _file(self, stream: IO[bytes], origin: str, source: str) -> Iterator[Record | Rejected]:
        """The documents of one file. Damage costs the one it is in, and what would have come after it."""
        here = origin
        try:
            for at, data in self._whole(stream) if self.split == "none" else self._pieces(stream):
                here = origin if at is None else f"{origin}#{at}"
                try:
                    text = self._text(data)
                except Reject as reject:
                    yield Rejected(here, reject.reason, reject.detail)
                    continue
                yield Record.make(source, here, self.data, [Text(text)], licence=self.licence)
                here = origin if at is None else f"{origin}#{at + len(data or b'')}"
        except Reject as reject:
            yield Rejected(here, reject.reason, reject.detail)

    def _whole(self, stream: IO[bytes]) -> Iterator[tuple[None, bytes | None]]:
        data = stream.read(self.max_bytes + 1)
        yield None, data if len(data) <= self.max_bytes else None

    def _pieces(self, stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
        """(offset of its first byte, bytes) of each run of lines between blank ones; None for one that is too large."""
        start, held, size = 0, list[bytes](), 0
        for at, line in lines(stream, max_line=self.max_bytes):
            if line is not None and not line.strip():
                if size:
                    yield start, b"".join(held) if size <= self.max_bytes else None
                held, size = [], 0
                continue
            start = start if size else at
            size += len(line) if line is not None else self.max_bytes + 1
            if size > self.max_bytes:
                held = []
            elif line is not None:
                held.append(line)
        if size:
            yield start, b"".join(held) if size <= self.max_bytes else None

    def _text(self, data: bytes | None) -> str:
        if data is None:
            raise Reject("too_large", f"a document of more than {self.max_bytes:,} bytes")
        text = self._decoded(data)
        if "\r" in text:  # rules about lines know one line end, and would take "end.\r" for a line without a full stop
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self.split != "none":
            text = text.strip("\n")
        if not text.strip():
            raise Reject("empty", "no text")
        return text

    def _decoded(self, data: bytes) -> str:
        try:
            text = data.decode("utf-8-sig")
            if "\0" not in text:
                return text
        except UnicodeDecodeError:
            pass
        marked = next((name for bom, name in _BOMS.items() if data.startswith(bom)), None)
        if self.encoding is None:
            hint = f"begins like {marked}: name it with encoding" if marked else "name its encoding, if all such files have one"
            raise Reject("unreadable", f"not UTF-8; {hint}")
        try:
            text = data.decode(self.encoding)
        except (UnicodeError, LookupError) as error:
            raise Reject("unreadable", f"neither UTF-8 nor {self.encoding}: {error}"[:200]) from None
        if "\0" in text:
            raise Reject("unreadable", "a NUL: this is no text")
        return text.removeprefix("\ufeff")

    def _wanted(self, path: str) -> bool:
        name = path.rsplit("/", 1)[-1].lower()
        for end in COMPRESSIONS:
            name = name.removesuffix(end)
        return not name.startswith(".") and any(fnmatchcase(name, pattern.lower()) for pattern in self.names)
