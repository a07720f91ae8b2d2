"""Reading a dataset: card → shard table → index rows → the bytes they point at. Nothing is listed and nothing is guessed.

What comes in: the path of a dataset and, to pin a snapshot, its fingerprint. What goes out: index tables for planners, records for people and
stages, arrays for the trainer. Local files are mapped once and shared; remote ones are read by range. Who goes through a dataset record by
record holds 1,024 rows at a time and, with `release`, the files of one shard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.format import codec, moments, storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.index import record_of
from pipelines.format.manifest import read_card
from pipelines.format.moments import By
from pipelines.format.ranges import Ranges
from pipelines.format.record import Record, Segment
from pipelines.format.shard import RECENT_BYTES, Shard, read_shard_table
from pipelines.format.storage import join

BATCH_ROWS, BATCH_BYTES = 1024, 4 << 20  # of a packed index: what is in memory as Python values at a time


class Dataset:
    """A curated or encoded dataset, as its card tells it."""

    def __init__(self, path: str, card: dict[str, Any]) -> None:
        self.path, self.card = path, card
        self._maps: dict[str, memoryview] = {}
        self._ranges = Ranges()
        self._opened: dict[tuple[int, str], tuple[str, memoryview | None]] = {}
        self._recent: dict[tuple[int, str, int, int], bytes] = {}
        self._recent_bytes = 0

    @classmethod
    def open(cls, path: str, fingerprint: str | None = None) -> Dataset:
        """The dataset at `path`; with a fingerprint, that snapshot of it."""
        card = cls.of_card(path).card
        if fingerprint is not None and card["fingerprint"] != fingerprint:
            older = join(card["path"], f"manifest-{fingerprint[:16]}.json")
            erased = fingerprint in (card.get("erased") or [])
            if erased or not storage.exists(older):
                raise InputError(
                    "this snapshot was erased with records that had to be forgotten" if erased else "the dataset has changed",
                    where=path,
                    found=card["fingerprint"],
                    allowed=fingerprint,
                    next="plan again: pipelines run mix with the same mixture and another output takes the newest snapshot",
                )
            card = {**storage.read_json(older), "path": card["path"]}
        found = cls(card["path"], card)
        assert found.shards is not None  # read and checked at once
        return found

    @classmethod
    def of_card(cls, path: str) -> Dataset:
        """The dataset at `path` by its card alone. The shard table, hundreds of megabytes for a petabyte, is read only when it is asked for."""
        card = read_card(path)
        if card["kind"] != "dataset":
            raise InputError("this is not a dataset", where=path, found=card["kind"])
        return cls(card["path"], card)

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """The shard table. VerifyError where it differs from its card."""
        file = join(self.path, self.card["shards"]["file"])
        table = storage.read(file)
        if sha256_hex(table) != self.card["shards"]["sha256"]:
            raise VerifyError("the shard table differs from its card", where=file)
        return read_shard_table(table)

    @property
    def fingerprint(self) -> str:
        """What says which data this is."""
        return str(self.card["fingerprint"])

    @property
    def data(self) -> str:
        """text, image-text, video, action-video or vqa."""
        return str(self.card["data"])

    @property
    def encoding(self) -> dict[str, Any] | None:
        """How it was encoded (text, image, stats); None for a curated dataset."""
        return self.card.get("encoding")

    def index(self, i: int, columns: list[str] | None = None) -> pa.Table:
        """The index of shard i, or some of its columns; a leaf such as "segments.list.element.turn" can be asked for alone."""
        try:
            return self._parquet(i).read(columns=columns, use_threads=False)  # an index is small: threads cost more than they bring
        except (pa.ArrowInvalid, OSError) as e:
            raise self._unreadable(i, e) from e

    def rows(self, i: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of shard i's index as plain values, in written order, some megabytes of them in memory at a time."""
        shard = self.shards[i]  # its bytes are packed; text unpacks to two to five times as many
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * shard.records // max(1, shard.index_bytes)))
        try:
            for batch in self._parquet(i).iter_batches(rows, columns=columns, use_threads=False):
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as e:
            raise self._unreadable(i, e) from e

    def take(self, i: int, rows: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row, its values) of some rows of shard i's index, in order; only the row groups that hold them are read."""
        wanted, start = sorted(rows), 0
        try:
            file = self._parquet(i)
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if here := [row for row in wanted if start <= row < stop]:
                    table = file.read_row_group(group, use_threads=False)
                    yield from ((row, table.slice(row - start, 1).to_pylist()[0]) for row in here)
                start = stop
        except (pa.ArrowInvalid, OSError) as e:
            raise self._unreadable(i, e) from e

    def _parquet(self, i: int) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._map(join(self.path, self.shards[i].index)))))

    def _unreadable(self, i: int, error: Exception) -> VerifyError:
        where = join(self.path, self.shards[i].index)
        return VerifyError("the index cannot be read", where=where, found=error, next=f"pipelines verify {self.path} --deep")

    def records(self, i: int, payloads: bool = False) -> Iterator[Record]:
        """The records of shard i in written order; with `payloads`, their bytes too."""
        for row in self.rows(i):
            record = record_of(row)
            yield self.with_payloads(i, record) if payloads else record

    def with_payloads(self, i: int, record: Record) -> Record:
        """The record with the bytes of its segments in memory, apart from those that lie in another dataset's file. Records that share a
        payload get one object, so that a trajectory's frames are read and hashed once and not for every sample."""
        foreign = self.shards[i].foreign
        own = (s.offset is not None and not (foreign and s.kind != "tokens") for s in record.segments)
        filled = (replace(s, payload=self._shared(i, s)) if mine else s for mine, s in zip(own, record.segments, strict=True))
        return replace(record, segments=tuple(filled))

    def _shared(self, i: int, s: Segment) -> bytes:
        key = (i, "tokens" if s.kind == "tokens" else "data", s.offset or 0, s.nbytes or 0)
        found = self._recent.get(key)
        if found is None:
            found = self._recent[key] = bytes(self.payload(i, s))
            self._recent_bytes += len(found)
            while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
                self._recent_bytes -= len(self._recent.pop(next(iter(self._recent))))
        return found

    def release(self, i: int) -> None:
        """Let go of what is held of shard i's files: for who goes through thousands of shards and comes back to none."""
        names = [join(self.path, self.shards[i].index)]
        names += [self._opened.pop(key)[0] for key in [k for k in self._opened if k[0] == i]]
        for name in names:
            self._maps.pop(name, None)

    def payload(self, i: int, segment: Segment) -> memoryview:
        """The stored bytes of a segment of shard i."""
        return self.slice(i, segment.kind, segment.offset or 0, segment.nbytes or 0)

    def slice(self, i: int, kind: str, offset: int, nbytes: int) -> memoryview:
        """Bytes [offset, offset + nbytes) of shard i's tokens file (kind "tokens") or data file."""
        path, view = self._opened.get((i, kind)) or self._open(i, kind)
        view = self._ranges.read(path, offset, offset + nbytes) if view is None else view[offset : offset + nbytes]
        if len(view) != nbytes:
            raise VerifyError("the data file is shorter than its index says", where=path, next=f"pipelines verify {self.path}")
        return view

    def _open(self, i: int, kind: str) -> tuple[str, memoryview | None]:
        """Where a shard's file lies, and its map when it is local; remembered, since millions of slices follow."""
        shard = self.shards[i]
        name = shard.tokens_file if kind == "tokens" else shard.data
        assert name is not None, f"shard {i} of {self.path} has no file for {kind}"
        path = storage.resolve(name, storage.absolute(self.path))
        found = self._opened[i, kind] = (path, self._map(path) if storage.is_local(path) else None)
        return found

    def array(self, i: int, segment: Segment) -> NDArray[Any]:
        """Token ids (integer [n]) or latents (float32 [n, width], not normalised) of a segment of shard i."""
        view = self.payload(i, segment)
        if segment.kind == "tokens":
            return np.frombuffer(view, dtype=np.dtype(segment.dtype).newbyteorder("<"))
        n, width = segment.shape
        return codec.decode_latents(view, str(segment.dtype), n, width)

    def latent_stats(self, by: By = "channel") -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """(number counted, mean, variance), exact over the dataset, in float64. By channel: of all latent vectors, [C] each. By position: of
        images, [tokens, C] each, token t = row * columns + column."""
        n, mean, m2 = self.latent_moments(by)
        return n, mean, m2 / max(n, 1)

    def latent_moments(self, by: By = "channel") -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """(n, mean, sum of squared deviations) as `latent_stats` counts them: what merges exactly with another dataset's."""
        found = moments.read(self.path, (self.encoding or {}).get("stats"), by)
        return found.n, found.mean, found.m2

    def _map(self, path: str) -> memoryview:
        if path not in self._maps:
            self._maps[path] = storage.map_file(path)
        return self._maps[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_opened": {}, "_recent": {}, "_recent_bytes": 0}  # maps do not travel between processes


@functools.lru_cache(maxsize=16)
def open_cached(path: str, fingerprint: str) -> Dataset:
    """The same dataset object for repeated use inside one worker process."""
    return Dataset.open(path, fingerprint)
