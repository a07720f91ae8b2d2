"""The output folder of img2dataset, in any of its forms: `00000.parquet` beside `00000.tar`, beside a folder `00000/`, or with the bytes inside.

The Parquet file of a shard has a row for every URL, the failed ones too, so nothing gets lost on the way: a failure becomes a reject with the
word that our own fetching has for it, an opt-out included, which img2dataset counts among the failures. The sha256 it noted is that of the
bytes before resizing, so it is the record's group: the same photo fetched by us falls on the same side of every split. Rows stand in the
order in which img2dataset happened to finish them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format.document import Size
from pipelines.format.errors import HeadwaterError, InputError, Reject
from pipelines.format.record import Record
from pipelines.format.storage import exists, join, open_read, read
from pipelines.listing import Input, list_files, place
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import captions, pair
from pipelines.row_groups import group_runs, numbered_rows, plain
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.tar_stream import members

_FORMS = ("jpg", "png", "webp")
_ROW = ("key", "status", "error_message", "sha256")
# What its error messages say, first match wins; what none of these is may well have passed by now.
_WORDS = (
    ("opt_out", re.compile(r"X-Robots-Tag")),
    ("hash_mismatch", re.compile(r"hash mismatch")),
    ("too_large", re.compile(r"area too large")),
    ("not_allowed", re.compile(r"too small|aspect ratio")),
    ("invalid_image", re.compile(r"decod|imgauthor|resiz")),
    ("fetch_permanent", re.compile(r"HTTP Error (?!408|425|429)[34]\d\d|not known|No address|CERTIFICATE|unknown url type|no host")),
    ("timeout", re.compile(r"timed? ?out")),
)


class Img2dataset(Source):
    """`path` is its output folder. `caption_fields` maps the captions' names to columns of its Parquet files; `keep` copies columns into the
    record's `fields` (`original_width`, `exif` …)."""

    data: ClassVar[str] = "image-text"
    path: str
    caption_fields: dict[str, str] = {"original": "caption"}
    url_field: str = "url"
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()
    max_pixels: Size = MAX_PIXELS

    def parts(self) -> list[SourcePart]:
        listed = list_files(self.path)
        beside: dict[str, list[Input]] = {}  # what lies beside each shard's Parquet file: its tar, or the files of its folder
        for f in listed:
            stem = f.path.removesuffix(".tar") if f.path.endswith(".tar") else f.path.rpartition("/")[0]
            beside.setdefault(stem, []).append(f)
        shards = [f for f in listed if re.fullmatch(r"(?:.*/)?\d+\.parquet", f.path)]
        if not shards:
            raise InputError("no output of img2dataset here", where=self.path, allowed="a folder with 00000.parquet, 00001.parquet …")
        return [part for shard in shards for part in self._shard(shard, beside.get(shard.path.removesuffix(".parquet"), []))]

    def _shard(self, shard: Input, beside: list[Input]) -> Iterator[SourcePart]:
        stem = shard.path.removesuffix(".parquet")
        image = None if beside else self._inside(shard)
        if image:
            for p in group_runs(self.path, shard, [*self._columns(), image]):
                yield SourcePart({**p.spec, "form": "inside", "image": image}, p.inputs)
            return
        runs = group_runs(self.path, shard, self._columns())
        form = "tar" if beside and beside[0].path == f"{stem}.tar" else "files"  # a shard whose rows all failed has no folder
        if not runs:  # a table without rows
            return
        groups = [0, max(p.spec["groups"][1] for p in runs)]
        spec = {**runs[0].spec, "groups": groups, "form": form, "beside": f"{stem}.tar" if form == "tar" else stem}
        yield SourcePart(spec, [shard.as_list(), *(f.as_list() for f in beside)])

    def _columns(self) -> list[str]:
        named = [*_ROW, *self.caption_fields.values(), self.url_field, self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def _inside(self, shard: Input) -> str | None:
        try:
            with open_read(place(self.path, shard.path)) as f:
                names = pq.ParquetFile(f).schema_arrow.names
        except (pa.ArrowException, OSError, ValueError):  # what is wrong with it is said when it is read
            return None
        return next((name for name in _FORMS if name in names), None)

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        columns = self._columns() + ([spec["image"]] if spec["form"] == "inside" else [])
        rows = numbered_rows(self.path, spec, columns)
        yield from self._tar(spec, source, rows) if spec["form"] == "tar" else self._rows(spec, source, rows)

    def _rows(self, spec: dict[str, Any], source: str, rows: Iterator[tuple[str, Any]]) -> Iterator[Record | Rejected]:
        for origin, row in rows:
            try:
                _check(row)
                if spec["form"] == "inside":
                    yield self._record(source, origin, row, row[spec["image"]])
                else:
                    name = next((n for n in (f"{spec['beside']}/{row['key']}.{end}" for end in _FORMS) if exists(join(self.path, n))), None)
                    if name is None:
                        raise Reject("unreadable", f"no image of the key {row['key']}")
                    yield self._record(source, name, row, read(join(self.path, name)))
            except Reject as reject:
                yield Rejected(origin, reject.reason, reject.detail)
            except HeadwaterError as error:
                yield Rejected(origin, "unreadable", error.what)

    def _tar(self, spec: dict[str, Any], source: str, rows: Iterator[tuple[str, Any]]) -> Iterator[Record | Rejected]:
        """The images in the order of the archive; then the rows that have none, each with its reason."""
        waiting, bad = dict[str, tuple[str, Any]](), list[Rejected]()
        for origin, row in rows:
            try:
                _check(row)
                waiting[row["key"]] = (origin, row)
            except Reject as reject:
                bad.append(Rejected(origin, reject.reason, reject.detail))
        missing = "its image is not in the archive"
        try:
            with open_read(place(self.path, spec["beside"])) as stream:
                for name, content in members(stream, tuple(f".{end}" for end in _FORMS)):
                    key, origin = name.rpartition("/")[2].rpartition(".")[0], f"{spec['beside']}!{name}"
                    _, row = waiting.pop(key, (None, None))
                    try:
                        if isinstance(content, Reject):
                            raise content
                        if row is None:
                            raise Reject("unreadable", "a member that the shard's Parquet file does not know")
                        yield self._record(source, origin, row, content)
                    except Reject as reject:
                        yield Rejected(origin, reject.reason, reject.detail)
        except Reject as reject:
            missing = f"the archive: {reject.detail}"
        bad += [Rejected(origin, "truncated", missing) for origin, _ in waiting.values()]
        yield from sorted(bad, key=lambda r: int(r.origin.rpartition("#")[2] or 0))

    def _record(self, source: str, origin: str, row: dict[str, Any], data: Any) -> Record:
        if not isinstance(data, bytes):
            raise Reject("unreadable", "no image bytes")
        texts = captions({name: row.get(column) for name, column in self.caption_fields.items()})
        rest = {"url": row.get(self.url_field), "licence": row.get(self.licence_field or "") or self.licence}
        original = str(row.get("sha256") or "")
        group = original if re.fullmatch(r"[0-9a-f]{64}", original) else None
        return pair(source, origin, data, texts, self.max_pixels, group, fields={key: plain(row[key]) for key in self.keep}, **rest)


def _check(row: dict[str, Any] | Reject) -> None:
    """Raises the reason why a row has no image."""
    if isinstance(row, Reject):
        raise row
    if row["status"] != "success":
        said = str(row["error_message"])[:300]
        raise Reject(next((word for word, pattern in _WORDS if pattern.search(said)), "fetch_transient"), f"img2dataset: {said}")
