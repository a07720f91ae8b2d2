"""Shards in object stores: what a batch needs is fetched in long runs, checked, and kept in the cache, from where it is read.

    rows of a shard ─▶ byte ranges ─▶ what the cache lacks ─▶ runs (gaps up to 256 KiB closed) ─▶ GETs up to 16 MiB ─▶ check ─▶ hauls

**Every record is checked end to end as it arrives.** The shard table has the hash of each whole data file, but a run of 4 MB says nothing of a file
of 256 MiB; the index, however, has the sha256 of every record's payloads, and the index itself is checked as a whole. So all segments of a record
are fetched together and hashed before anything of it is published. Bytes of another dataset's file (reused latents) are under no hash of this
index: these alone are trusted as they come. From then on the cache's own checksums guard them. What is wrong, here or there, is fetched again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from threading import Lock

import numpy as np

from pipelines.format import storage
from pipelines.format.again import TRIES
from pipelines.format.cache import Cache, key_of
from pipelines.format.errors import TemporaryError, VerifyError
from trainer.shard import Shard, hashes_agree

THREADS = 8  # fetches at a time: 8 x 16 MiB a round trip fill 10 Gbit/s at 100 ms
GAP = 256 << 10  # bytes between two wanted runs that cost less to fetch than another round trip (2.5 ms at 100 MB/s)
GET = 16 << 20
PASS = 64 << 20  # bytes of one shard in memory at a time
FETCHES = 3  # of bytes that do not have their hash, before giving up

Runs = dict[str, list[tuple[int, memoryview]]]  # by kind of file: (start, bytes) in ascending order


class Remote:
    """Fetches and reads by way of one cache. `gets` and `got` count ranged reads and their bytes, `kept` those of records that went into the cache:
    gaps were read along, and which there are depends on what came first."""

    def __init__(self, cache: Cache | None = None, threads: int = THREADS) -> None:
        self.cache = cache or Cache()
        self.gets = self.got = self.kept = self.refetched = 0
        self._count = Lock()
        self._threads = threads
        self._made: ThreadPoolExecutor | None = None

    @property
    def _pool(self) -> ThreadPoolExecutor:
        with self._count:
            if self._made is None:
                self._made = ThreadPoolExecutor(self._threads, thread_name_prefix="fetch")
            return self._made

    def close(self) -> None:
        """Let go of the threads; what waits is not begun."""
        if self._made is not None:
            self._made.shutdown(wait=False, cancel_futures=True)
            self._made = None

    def soon(self, shard: Shard, rows: np.ndarray) -> Future[None]:
        """Bring these rows of a shard into the cache, in a thread."""
        return self._pool.submit(self.bring, shard, rows)

    def bring_all(self, wanted: Sequence[tuple[Shard, np.ndarray]]) -> None:
        """Have these rows of shards in the cache when this returns; what is missing is fetched side by side."""
        lacking = [(shard, rows) for shard, rows in wanted if self._missing(shard, rows)]
        for future in [self.soon(shard, rows) for shard, rows in lacking]:
            future.result()

    def bring(self, shard: Shard, rows: np.ndarray) -> None:
        """Have these rows of a shard in the cache when this returns. Raises VerifyError when the store holds other bytes than the index says."""
        for some in _passes(shard, rows):
            if not self._missing(shard, some):
                continue
            with self.cache.fetching(key_of(f"{shard.dataset.path}/{shard.entry.index}")):
                for kind, pieces in self._fetched(shard, some).items():
                    self.cache.put(self._key(shard, kind), pieces)

    def _fetched(self, shard: Shard, rows: np.ndarray) -> Runs:
        """What the cache lacks of these rows, checked."""
        for _ in range(FETCHES):
            missing = self._missing(shard, rows)
            runs = {kind: list(self._fetch(shard, kind, ranges)) for kind, ranges in missing.items()}
            wrong = self._wrong(shard, _touched(shard, rows, missing), runs)
            if not len(wrong):
                with self._count:
                    self.kept += sum(b - a for ranges in missing.values() for a, b in ranges)
                return runs
            self.refetched += 1
            self._distrust(shard, wrong)
        raise VerifyError("a record's bytes differ from what its index says", where=f"{shard.dataset.path}, shard {shard.shard}",
                          found=", ".join(shard.ids[row] for row in wrong[:3].tolist()), next="pipelines verify --deep")  # fmt: skip

    def slice(self, shard: Shard, kind: str, offset: int, nbytes: int) -> memoryview:
        """Checked bytes of a shard's file, fetched now if need be."""
        key = self._key(shard, kind)
        for _ in range(FETCHES):
            view = self.cache.view(key, offset, offset + nbytes)
            if view is not None:
                return view
            at = np.flatnonzero((shard.offset == offset) & (shard.nbytes == nbytes) & (shard.is_tokens == (kind == "tokens")))
            self.bring(shard, np.searchsorted(shard.offsets, at[:1], "right") - 1)
        raise TemporaryError("the cache loses what is read before it is used", where=self.cache.folder, found=f"{self.cache.limit:,} bytes",
                             next="give it more: cache: {bytes: …}")  # fmt: skip

    def whole(self, path: str, nbytes: int, digest: str) -> memoryview:
        """A small file as a whole, checked by its hash."""
        key = key_of(path, digest)
        for _ in range(FETCHES):
            found = self.cache.view(key, 0, nbytes)
            if found is not None:
                return found
            with self.cache.fetching(key):
                if not self.cache.missing(key, np.zeros(1, np.int64), np.array([nbytes])).any():
                    continue
                data = memoryview(b"".join(self._get(path, at, min(at + GET, nbytes)) for at in range(0, nbytes, GET)))
                if hashes_agree(data, digest):
                    self.cache.put(key, [(0, data)])
                    return data
                self.refetched += 1
        raise VerifyError("a file differs from what its dataset says of it", where=path, allowed=digest[:16], next="pipelines verify --deep")

    # ---- one shard --------------------------------------------------------------------------------------------------------------------

    def _key(self, shard: Shard, kind: str) -> str:
        found = shard.keys.get(kind)
        if found is None:
            path, _, digest = shard.place(kind)
            found = shard.keys[kind] = key_of(path, digest)
        return found

    def _missing(self, shard: Shard, rows: np.ndarray) -> dict[str, list[tuple[int, int]]]:
        """By kind of file, the ranges of these rows that the cache lacks."""
        at = segments_of(shard, rows)
        out = {}
        for kind, mine in (("tokens", at[shard.is_tokens[at]]), ("data", at[~shard.is_tokens[at]])):
            ranges = np.unique(np.stack([shard.offset[mine], shard.offset[mine] + shard.nbytes[mine]], axis=1), axis=0).astype(np.int64)
            ranges = ranges[ranges[:, 1] > ranges[:, 0]]
            if len(ranges):
                left = ranges[self.cache.missing(self._key(shard, kind), ranges[:, 0], ranges[:, 1])]
                if len(left):
                    out[kind] = [(a, b) for a, b in left.tolist()]
        return out

    def _fetch(self, shard: Shard, kind: str, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """(start, bytes) of wanted runs. Gaps that were fetched along with them are dropped again: nothing has checked them."""
        path = shard.place(kind)[0]
        runs = merged(ranges, 64)  # arrays lie at multiples of 64; the zeros between them belong to nobody
        for trip in trips(runs):
            start, stop = trip[0][0], trip[-1][1]
            pieces = [self._get(path, at, min(at + GET, stop)) for at in range(start, stop, GET)]
            data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            yield from ((a, data[a - start : b - start]) for a, b in trip)

    def _get(self, path: str, start: int, stop: int) -> bytes:
        data = storage.read(path, start, stop)
        for _ in range(TRIES):  # a body that was cut off without an error
            if len(data) == stop - start:
                break
            data = storage.read(path, start, stop)
        else:
            raise VerifyError("the data file is shorter than its index says", where=path, found=start + len(data), allowed=f"at least {stop}")
        with self._count:
            self.gets, self.got = self.gets + 1, self.got + len(data)
        return data

    def _wrong(self, shard: Shard, rows: np.ndarray, runs: Runs) -> np.ndarray:
        """Rows whose payloads do not have the index's hash."""
        out = []
        for row in rows.tolist():
            digest = sha256()
            for i in range(int(shard.offsets[row]), int(shard.offsets[row + 1])):
                kind = "tokens" if shard.is_tokens[i] else "data"
                if kind == "data" and shard.entry.foreign:
                    continue
                view = self._piece(shard, kind, int(shard.offset[i]), int(shard.nbytes[i]), runs)
                if view is None:
                    break
                digest.update(view)
            else:
                if digest.hexdigest() == shard.sha256[row].as_py():
                    continue
            out.append(row)
        return np.array(out, np.int64)

    def _piece(self, shard: Shard, kind: str, start: int, nbytes: int, runs: Runs) -> memoryview | None:
        mine = runs.get(kind, [])
        k = bisect_right(mine, start, key=lambda run: run[0]) - 1
        if k >= 0 and start + nbytes <= mine[k][0] + len(mine[k][1]):
            return mine[k][1][start - mine[k][0] : start - mine[k][0] + nbytes]
        return self.cache.view(self._key(shard, kind), start, start + nbytes)

    def _distrust(self, shard: Shard, rows: np.ndarray) -> None:
        """Whatever the cache holds of these rows goes."""
        for i in segments_of(shard, rows).tolist():
            if shard.nbytes[i]:
                start = int(shard.offset[i])
                self.cache.drop(self._key(shard, "tokens" if shard.is_tokens[i] else "data"), start, start + int(shard.nbytes[i]))


def segments_of(shard: Shard, rows: np.ndarray) -> np.ndarray:
    """Numbers of all segments of these rows."""
    first, last = shard.offsets[rows].astype(np.int64), shard.offsets[rows + 1].astype(np.int64)
    counts = last - first
    return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))


def _touched(shard: Shard, rows: np.ndarray, missing: dict[str, list[tuple[int, int]]]) -> np.ndarray:
    """Those of the rows of which bytes are missing; the others were checked when they came."""
    lacking = {kind: {a for a, _ in ranges} for kind, ranges in missing.items()}
    at = segments_of(shard, rows)
    new = [int(shard.offset[i]) in lacking.get("tokens" if shard.is_tokens[i] else "data", ()) for i in at.tolist()]
    return np.unique(np.searchsorted(shard.offsets, at[np.array(new, np.bool_)], "right") - 1)


def merged(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Sorted ranges with those joined that overlap or lie less than `gap` apart."""
    out: list[tuple[int, int]] = []
    for a, b in ranges:
        if out and a - out[-1][1] < gap:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def trips(runs: Sequence[tuple[int, int]], gap: int = GAP) -> list[list[tuple[int, int]]]:
    """Runs that are worth one ranged read together: those less than `gap` apart."""
    out: list[list[tuple[int, int]]] = []
    for a, b in runs:
        if out and a - out[-1][-1][1] < gap:
            out[-1].append((a, b))
        else:
            out.append([(a, b)])
    return out


def _passes(shard: Shard, rows: np.ndarray) -> list[np.ndarray]:
    """Rows in ascending order, cut so that the payloads of one pass are about PASS bytes."""
    rows = np.unique(rows)
    before = np.concatenate([[0], np.cumsum(shard.nbytes)])
    size = before[shard.offsets[rows + 1]] - before[shard.offsets[rows]]
    cut = np.flatnonzero(np.diff(np.cumsum(size) // PASS)) + 1
    return np.split(rows, cut)
