"""Which shards become one, and which one becomes several: what each weighs, and greedy runs of neighbours.

In: a shard table (and, where a shard has no data file of its own, the column `nbytes` of its index). Out: runs that cover the table in order, a pure
function of these and of `shard_bytes`. Weights add up exactly, as the writer counts them, so a compacted dataset has nothing left to join.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import VerifyError
from pipelines.format.ranges import RangedFile
from pipelines.format.shard import ALIGN, TAR_END, Shard

OPEN = 16  # indexes asked for at a time: latency is what an object store charges


@dataclass(frozen=True, slots=True)
class Run:
    """Shards [first, stop) become `pieces` shards, usually one; a new one begins when `roll` bytes are full."""

    first: int
    stop: int
    pieces: int
    roll: int


def weights(dataset: Dataset) -> list[int]:
    """Bytes of every shard as its writer counted them when it looked for the end of it: its own data files, or else what its rows hold."""
    sizes: list[int | None] = [None] * len(dataset.shards)
    for i, s in enumerate(dataset.shards):
        if dataset.encoding is not None and (s.tokens_bytes is not None or s.data_bytes is not None):
            sizes[i] = sum(-(-(n or 0) // ALIGN) * ALIGN for n in (s.tokens_bytes, s.data_bytes))  # the next array begins at a multiple
        elif s.data_bytes is not None and not s.borrowed:
            sizes[i] = s.data_bytes - TAR_END
    asked = [i for i, size in enumerate(sizes) if size is None]
    with ThreadPoolExecutor(OPEN) as pool:
        held = dict(zip(asked, pool.map(lambda i: _held(dataset, i), asked), strict=True))
    return [held[i] if size is None else size for i, size in enumerate(sizes)]


def _held(dataset: Dataset, i: int) -> int:
    """What the rows of a shard without a data file of its own hold. Of the index, its footer and the columns asked for are fetched, no text."""
    where = storage.join(dataset.path, dataset.shards[i].index)
    try:
        file = pq.ParquetFile(RangedFile(where, dataset.shards[i].index_bytes))
        if dataset.encoding is None and dataset.shards[i].borrowed:
            leaves = [f"segments.list.element.{name}" for name in ("offset", "nbytes")]
            flat = pc.list_flatten(file.read(leaves, use_threads=False)["segments"].combine_chunks())
            places = set(zip(flat.field("offset").to_pylist(), flat.field("nbytes").to_pylist(), strict=True))
            members = [n for offset, n in places if offset is not None] + [512] * dataset.shards[i].records  # each record's JSON as it mostly is
            return sum(512 + n + -n % 512 for n in members)
        column = file.read(["nbytes"], use_threads=False)["nbytes"]
    except (pa.ArrowInvalid, OSError) as e:
        raise VerifyError("the index cannot be read", where=where, found=e, next=f"pipelines verify {dataset.path} --deep") from e
    return int(pc.sum(column).as_py() or 0)


def find_runs(shards: list[Shard], sizes: list[int], shard_bytes: int) -> list[Run]:
    """Neighbours are joined while that saves a shard and none grows beyond `shard_bytes` by it, and while they point into the same file of another
    dataset if they do. What rounds to n ≥ 2 times `shard_bytes` is split into n even pieces: cut at `shard_bytes` itself, it would leave a crumb."""

    def pieces(size: int) -> int:
        return max(1, (2 * size + shard_bytes) // (2 * shard_bytes))

    spans: list[tuple[int, int, int]] = []  # first, stop, bytes
    for i, size in enumerate(sizes):
        if spans:
            first, stop, total = spans[-1]
            n = pieces(total + size)
            fits = total + size <= n * shard_bytes and n < pieces(total) + pieces(size)
            if fits and _elsewhere(shards[first]) == _elsewhere(shards[i]):
                spans[-1] = (first, i + 1, total + size)
                continue
        spans.append((i, i + 1, size))
    out = []
    for first, stop, total in spans:
        n = min(pieces(total), sum(s.records for s in shards[first:stop]))
        out.append(Run(first, stop, n, -(-total // n) if n > 1 else 2 * shard_bytes))
    return out


def _elsewhere(shard: Shard) -> str | None:
    return shard.data if shard.foreign else None
