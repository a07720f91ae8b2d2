"""What all sources of questions about pictures share: where a row's images come from, and the limits that hold for its words.

    images_are: path      files beside the table; the table is scanned once and cut by the size of its images (`image_rows.py`)
    images_are: bytes     in the table's own cells: Parquet with bytes, {bytes, path} or lists of these
    images_are: base64    the same as text, with or without `data:image/…;base64,` before it
    images_are: url       fetched by the fetch room, under its policy; `--retry` asks again for what failed in passing

What goes out: items, each one record's images with its rows. Rows about the same images are one item where the source merges them: within a part,
by path, by URL or by the bytes themselves. Merging by bytes reads the table twice instead of holding its pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipelines.fetch import Policy
from pipelines.fetch.policy import PACE
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.image_rows import Item, Rows
from pipelines.listing import list_files
from pipelines.media.images import MAX_PIXELS
from pipelines.question_text import Limits
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.table import matching
from pipelines.url_rows import url_parts, url_rows
from pipelines.vqa_images import fetched_items, inside_items, path_of

Held = Literal["path", "bytes", "base64", "url"]


class VqaSource(Source):
    """`table` is the file of questions below `path` (`*` for several), with `key` the list's key where a JSON file holds an object (`*`: the object
    itself, by id). `archives` are plain tars that hold the images the table names. `without_image: keep` makes records of text where a row
    names no image. `repeats: keep` keeps what was asked before about the same images; else it is a reject (`duplicate`), told within a part. A
    text is at most `max_text` characters; `unescape` turns HTML's entities into what they mean."""

    data: ClassVar[str] = "vqa"
    version: ClassVar[int] = 3  # 2: marked pictures in place, rows of Parquet merge, answers must be among their choices; 3: votes are kept
    path: str
    table: str
    image: str | tuple[str, ...] = "image"
    images_are: Held | None = None
    key: str | None = None
    archives: str | None = None
    without_image: Literal["reject", "keep"] = "reject"
    repeats: Literal["reject", "keep"] = "reject"
    unescape: bool = True
    max_images: int = Field(64, ge=1, le=1_000)
    max_turns: int = Field(200, ge=1, le=10_000)
    max_text: Size = 100_000
    licence: str | None = None
    max_pixels: Size = MAX_PIXELS
    fetch: Policy = Policy()

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Where nothing is fetched, how to fetch says nothing; where something is, patience says nothing."""
        kept = {k: v for k, v in fields["fetch"].items() if k not in PACE} if self.held == "url" else {}
        return {**fields, "fetch": kept}

    @property
    def parquet(self) -> bool:
        """Whether the table is Parquet."""
        return self.table.lower().endswith(".parquet")

    @property
    def held(self) -> Held:
        """Where the images are."""
        return self.images_are or ("bytes" if self.parquet else "path")

    @property
    def limits(self) -> Limits:
        """What a text may be."""
        return Limits(self.max_turns, int(self.max_text), self.unescape)

    def columns(self) -> list[str]:
        """The columns that are read, the images' among them."""
        raise NotImplementedError

    def named(self, row: Any) -> list[Any]:
        """The images that a row names: paths, URLs or cells with bytes, in order."""
        raise NotImplementedError

    def usable(self, row: Any) -> None:
        """Raises `Reject` for a row that lacks what the recipe names."""
        raise NotImplementedError

    def merged(self) -> bool:
        """Whether rows about the same images are one item."""
        return False

    def rows(self, **more: Any) -> Rows:
        """Rows that name files."""
        columns = tuple(self.columns()) if self.parquet else ()
        paths = lambda row: [path_of(ref) for ref in self._images(row)]
        given = {"key": self.key, **{k: v for k, v in more.items() if v is not None}}
        return Rows(self.path, self.table, paths, self.usable, self.merged(), columns=columns, archives=self.archives, **given)

    def parts(self) -> list[SourcePart]:
        if self.held == "path":
            return self.rows().parts()
        if self.held == "url" or not self.parquet:
            return url_parts(self.path, self.columns(), self.key, self.table)
        files = list_files(self.path, (".parquet",))
        named = matching(self.table, [f.path for f in files])
        return [part for f in files if f.path in named for part in group_runs(self.path, f, self.columns())]

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any] | None:
        if self.held != "url":
            return None
        return {**spec, "only": sorted(int(o.rpartition("#")[2]) for o in origins)}

    def items(self, spec: dict[str, Any]) -> Iterator[Item | Rejected]:
        """The items of a part, in order."""
        if self.held == "path":
            yield from self.rows().items(spec)
        elif self.held == "url":
            yield from fetched_items(lambda: self._numbered(spec), self._images, self.merged(), self.fetch, spec["file"], spec.get("only"))
        else:
            yield from inside_items(lambda: self._numbered(spec), self._images, self.merged(), self.held == "base64", spec["file"])

    def _numbered(self, spec: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        if "rows" in spec or "groups" not in spec:
            yield from url_rows(self.path, spec, self.columns())
            return
        for origin, row in numbered_rows(self.path, spec, self.columns()):
            yield int(origin.rpartition("#")[2]) if "#" in origin else 0, row

    def _images(self, row: Any) -> list[Any]:
        found = self.named(row)
        if not found and self.without_image == "reject":
            raise Reject("no_image", "a row that names no image")
        if len(found) > self.max_images:
            raise Reject("too_large", f"{len(found)} images, allowed {self.max_images}")
        return found

    def told_once(self, found: Iterable[Record | Rejected]) -> Iterator[Record | Rejected]:
        """Records, and a reject in place of each that asks the same questions about the same images, with the same answers, as one before."""
        before: set[bytes] = set()
        for one in found:
            if isinstance(one, Record) and self.repeats == "reject":
                said = [[q["question"].casefold().split(), q.get("choices"), q["answers"][0]] for q in one.fields["questions"]]
                shown = one.group if any(s.kind == "image" for s in one.segments) else ""  # without images, a record's group is its own
                key = sha256(json.dumps([shown, said]).encode()).digest()
                if key in before:
                    yield Rejected(one.origin, "duplicate", "the same questions about the same images, answered the same, stand before")
                    continue
                before.add(key)
            yield one
