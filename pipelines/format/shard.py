"""The shard: one data file plus one Parquet index that says where every byte of every record is.

What comes in: records in source order. What goes out: files named by their content, and one row of the shard table. Curated media lie in a
plain ustar tar that any WebDataset reader opens; curated text lies in the index itself; encoded ids and latents lie in flat little-endian
files whose arrays start at multiples of 64, read by mmap or ranged GET. **Each distinct payload is stored once**: frames that serve a hundred
navigation samples, or an image that serves ten questions, cost index rows and no pixels. The index keeps what planners read in flat columns
(flat reads are an order of magnitude faster than nested ones) and everything else in one list of segments.

A writer holds 10,000 index rows, 16 MiB of recent payloads and a hash of each distinct one, whatever the size of the shard.
"""

from __future__ import annotations

import tarfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.document import canon
from pipelines.format.index import INDEX_SCHEMA, as_json, row_of
from pipelines.format.record import Record, Segment
from pipelines.format.rows import ROW_GROUP, ZSTD, RowFile
from pipelines.format.storage import Building

ALIGN = 64
TAR_END = 1024  # the two empty blocks that end a tar
RECENT_BYTES = 16 << 20  # payloads whose hash is remembered by object: some hundred frames of a trajectory


@dataclass(frozen=True, slots=True)
class Shard:
    """One row of the shard table. File names are relative to the dataset; absent = None. `first_row` counts within the part."""

    part: int
    tokens_file: str | None
    tokens_bytes: int | None
    tokens_sha256: str | None
    data: str | None
    data_bytes: int | None
    data_sha256: str | None
    index: str
    index_bytes: int
    index_sha256: str
    records: int
    text_tokens: int
    visual_tokens: int
    first_row: int

    @property
    def foreign(self) -> bool:
        """Whether `data` is a file of another dataset that this one points into; it is checked, and goes, with that one."""
        return self.data is not None and self.data_sha256 is None

    @property
    def borrowed(self) -> bool:
        """Whether `data` lies in another dataset's folder, whoever vouches for it: file names of a dataset's own hold no slash."""
        return self.data is not None and "/" in self.data

    def as_dict(self) -> dict[str, Any]:
        """For the commit record."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A data file of another dataset that segments point into; `name` is relative to the dataset that points. With size and hash the records'
    own sha256 cover its bytes and `verify` reads them (scores); without, that is left to the other dataset (`storage: none`, reused latents)."""

    name: str
    nbytes: int | None = None
    sha256: str | None = None


SHARD_SCHEMA = pa.schema(
    [
        (f.name, pa.string() if "str" in str(f.type) else pa.int32() if f.name == "part" else pa.int64())
        for f in fields(Shard)
    ]
)


def shard_table(shards: list[Shard]) -> bytes:
    """The shard table as Parquet bytes."""
    return parquet_bytes(pa.Table.from_pylist([s.as_dict() for s in shards], schema=SHARD_SCHEMA))


def read_shard_table(data: bytes) -> list[Shard]:
    """The inverse of `shard_table`."""
    return [Shard(**row) for row in pq.ParquetFile(pa.BufferReader(data)).read().to_pylist()]  # read_table imports pandas: 0.3 s


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet: zstd 3, row groups of 10,000, no pandas metadata."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, **ZSTD)
    return cast(bytes, sink.getvalue().to_pybytes())


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: ustar, mode 0644, owner 0, no owner names, mtime 0. `tarfile` makes the same ones in ten times the time."""
    raw = name.encode()
    if len(raw) > 100 or size >= 8**11:  # a prefix or a longer number: not with the names given here, but then by the book
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.USTAR_FORMAT)
    head = raw.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    sum_ = sum(head) + sum(_AFTER) + 8 * 32
    return head + b"%06o\0 " % sum_ + _AFTER


_ZEROS = bytes(512)
_AFTER = (b"0" + bytes(100) + b"ustar\x0000").ljust(512 - 156, b"\0")  # a plain file, no link, ustar


class ShardWriter:
    """Writes one shard of one part. `foreign_data` is a data file of another dataset that image segments already point into."""

    def __init__(self, root: str, part: int, first_row: int, encoded: bool, foreign_data: Foreign | None = None) -> None:
        self.root, self.part, self.first_row, self.encoded = root, part, first_row, encoded
        self._stack = ExitStack()
        self._index = RowFile(root, INDEX_SCHEMA)
        self._stack.callback(self._index.close)
        self._tokens = {"text_tokens": 0, "visual_tokens": 0}
        self._files: dict[str, Building] = {}
        self._seen: dict[tuple[str, bytes], tuple[str | None, int, int]] = {}
        self._digests: dict[int, tuple[bytes, bytes]] = {}
        self._recent = 0
        self._foreign = foreign_data or Foreign("")
        self.stored = 0  # bytes of the data files, or of the text where there is none, so far: what rolls a shard

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def records(self) -> int:
        """Records written so far."""
        return self._index.rows

    def add(self, record: Record, key: str | None = None) -> str:
        """Append one record: its new payloads to the data files, its row to the index, under the key that it has already or the next one. Returns
        the sha256 of its segments, as the index says it."""
        key = key or f"{self.part:05d}-{self.first_row + self.records:06d}"
        digest = sha256()
        for s in record.segments:
            digest.update(s.payload if s.payload is not None else (s.text or "").encode())
        if self.encoded:
            placed = [self._place_array(s) for s in record.segments]
        elif record.data == "text":
            placed = list(record.segments)
        else:
            placed = self._place_members(key, record)
        row = row_of(record, key, tuple(placed), digest.hexdigest())
        if record.data == "text" and not self.encoded:
            self.stored += row["nbytes"]
        self.keep(row)
        return str(row["sha256"])

    def keep(self, row: dict[str, Any]) -> None:
        """Append a row as it is. One of another dataset's index names by its key and members what lies in that dataset's data file."""
        for name in self._tokens:
            self._tokens[name] += row[name]
        self._index.add(row, sum(len(s["text"] or "") for s in row["segments"]) + len(row["fields"] or ""))

    def publish(self) -> tuple[Shard, list[dict[str, Any]]]:
        """Make the shard visible: data first, index last. Returns its table row and its files."""
        if "data" in self._files and not self.encoded:
            self._files["data"].write(b"\0" * TAR_END)
        names: dict[str, tuple[str, Building]] = {}
        for kind in ("tokens", "data"):
            if kind in self._files:
                b = self._files[kind]
                stem = "data" if not self.encoded else "tokens" if kind == "tokens" else "latents"
                name = f"{stem}-{self.part:05d}-{b.sha256[:16]}.{'bin' if self.encoded else 'tar'}"
                names[kind] = (name, b)
        index = self._index.finish()
        names["index"] = (f"index-{self.part:05d}-{index.sha256[:16]}.parquet", index)
        for name, b in names.values():
            b.publish(self.root, name)
        files = [{"path": name, "bytes": b.nbytes, "sha256": b.sha256} for name, b in names.values()]
        return self._shard(dict(zip(names, files, strict=True))), files

    def _shard(self, files: dict[str, dict[str, Any]]) -> Shard:
        def of(kind: str, key: str) -> Any:
            return files[kind][key] if kind in files else None

        return Shard(
            part=self.part,
            tokens_file=of("tokens", "path"),
            tokens_bytes=of("tokens", "bytes"),
            tokens_sha256=of("tokens", "sha256"),
            data=of("data", "path") or self._foreign.name or None,
            data_bytes=of("data", "bytes") or self._foreign.nbytes,
            data_sha256=of("data", "sha256") or self._foreign.sha256,
            index=of("index", "path"),
            index_bytes=of("index", "bytes"),
            index_sha256=of("index", "sha256"),
            records=self._index.rows,
            **self._tokens,
            first_row=self.first_row,
        )

    def _file(self, kind: str) -> Building:
        if kind not in self._files:
            self._files[kind] = self._stack.enter_context(storage.building(self.root))
        return self._files[kind]

    def _digest(self, payload: bytes) -> bytes:
        """sha256 of a payload, once per object: the samples of a trajectory hand in the same frames again and again."""
        known = self._digests.get(id(payload))
        if known is None or known[0] is not payload:
            known = self._digests[id(payload)] = (payload, sha256(payload).digest())
            self._recent += len(payload)
            while self._recent > RECENT_BYTES and len(self._digests) > 1:
                self._recent -= len(self._digests.pop(next(iter(self._digests)))[0])
        return known[1]

    def _place_array(self, s: Segment) -> Segment:
        """An encoded segment: its bytes at the next multiple of 64, unless the same bytes are there already."""
        if s.payload is None:
            assert s.offset is not None or not s.tokens, "an encoded segment has bytes, or points at bytes of another dataset"
            return s
        kind = "tokens" if s.kind == "tokens" else "data"
        seen = (kind, self._digest(s.payload))
        if seen not in self._seen:
            f = self._file(kind)
            gap = -f.tell() % ALIGN
            start = f.write(b"\0" * gap + s.payload if gap else s.payload) + gap
            self._seen[seen] = (None, start, len(s.payload))
            self.stored += gap + len(s.payload)
        _, offset, nbytes = self._seen[seen]
        return replace(s, payload=None, offset=offset, nbytes=nbytes)

    def _place_members(self, key: str, record: Record) -> list[Segment]:
        """A curated record with media: `<key>.json`, then a tar member per payload that no earlier record of the shard holds."""
        tar = self._file("data")
        new: list[tuple[str, Segment]] = []
        placed: list[Segment] = []
        for i, s in enumerate(record.segments):
            if s.payload is None:
                placed.append(s)
                continue
            seen = ("data", self._digest(s.payload))
            if seen not in self._seen:
                member = f"{key}.{i}.{'jpg' if s.dtype == 'jpeg' else s.dtype}"
                self._seen[seen] = (member, -1, len(s.payload))
                new.append((member, s))
            placed.append(replace(s, member=self._seen[seen][0]))
        self._member(tar, f"{key}.json", canon(as_json(record, placed)))
        for member, s in new:
            assert s.payload is not None
            offset = self._member(tar, member, s.payload)
            self._seen["data", self._digest(s.payload)] = (member, offset, len(s.payload))
        out = []
        for s in placed:
            if s.payload is not None:
                _, offset, nbytes = self._seen["data", self._digest(s.payload)]
                s = replace(s, payload=None, offset=offset, nbytes=nbytes)
            out.append(s)
        return out

    def _member(self, tar: Building, name: str, payload: bytes) -> int:
        tar.write(tar_header(name, len(payload)))
        offset = tar.write(payload)
        padding = -len(payload) % 512
        tar.write(_ZEROS[:padding])
        self.stored += 512 + len(payload) + padding
        return offset
