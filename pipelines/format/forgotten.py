"""Records that must not be used although they are there: what tombstones name.

`pipelines forget` adds tombstones to a dataset's card. A planner draws the next record instead; a plan that already stands is read with the next
unused records in their places (`mixtures/stand_ins.py`); a stage that makes a dataset of this one leaves them out and counts them as `tombstone`.
They are always read from the newest card, whatever snapshot is pinned. Tombstones are only ever added, at the end of their table, so the number of
the first one that names a record says when it was forgotten, for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.chance import hash64
from pipelines.format.dataset import Dataset
from pipelines.format.manifest import read_card
from pipelines.format.record import Record

NAMED_BY = ("id", "url", "sha256", "phash")
REASON = "tombstone"  # what such a record is counted as where a dataset is made of another
NEVER = 1 << 62  # the number of the tombstone that names what no tombstone names


def tombstone_entry(dataset: Dataset) -> dict[str, Any] | None:
    """The card's entry for what must be forgotten: {file, sha256, n}; None when nothing."""
    found: dict[str, Any] | None = read_card(dataset.path).get("tombstones")
    return found


def tombstones(dataset: Dataset) -> pa.Table | None:
    """What must be forgotten: rows (id, url, sha256, phash, reason), one of the first four set; None when nothing."""
    found = tombstone_entry(dataset)
    if found is None:
        return None
    return pq.ParquetFile(pa.BufferReader(storage.read(storage.join(dataset.path, found["file"])))).read()


def named_by(index: pa.Table, stones: pa.Table) -> np.ndarray:
    """int64 per row of an index with the columns NAMED_BY: the number of the first tombstone that names it, else NEVER."""
    first = np.full(index.num_rows, NEVER, np.int64)
    for name in NAMED_BY:
        if name in stones.column_names and stones[name].null_count < len(stones):
            numbers = np.flatnonzero(np.asarray(stones[name].is_valid()))
            named = stones[name].drop_null().cast(index[name].type).combine_chunks()
            found = np.asarray(pc.fill_null(pc.index_in(index[name], value_set=named), -1), dtype=np.int64)
            hit = (found >= 0) & np.asarray(index[name].is_valid())
            first[hit] = np.minimum(first[hit], numbers[found[hit]])
    return first


def forgotten(index: pa.Table, stones: pa.Table) -> np.ndarray:
    """bool per row of an index with the columns NAMED_BY: named by a tombstone's id, url, sha256 or phash."""
    return named_by(index, stones) < NEVER


def rows_named(dataset: Dataset, i: int, stones: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(rows of shard i that tombstones name, the number of the first that does). Ids are looked for by their hash: 8 bytes a row instead of 32."""
    asked = [n for n in NAMED_BY if n in stones.column_names and stones[n].null_count < len(stones)]
    others = [n for n in asked if n != "id"]
    maybe = np.zeros(dataset.shards[i].records, np.bool_)
    if others:
        maybe |= forgotten(dataset.index(i, others), stones.select(others))
    if "id" in asked:
        maybe |= np.isin(np.asarray(dataset.index(i, ["h"])["h"]), _hashes(stones["id"].drop_null().to_pylist()))
    rows = np.flatnonzero(maybe)
    if not len(rows):
        return rows, np.zeros(0, np.int64)
    first = named_by(dataset.index(i, asked).take(rows), stones)
    return rows[first < NEVER], first[first < NEVER]


def _hashes(ids: list[str]) -> np.ndarray:
    """`h` of ids; what is no id of ours names nothing."""
    found = []
    for id in ids:
        try:
            found.append(hash64(id))
        except ValueError:
            continue
    return np.array(found, np.uint64)


def forgotten_rows(dataset: Dataset) -> dict[int, list[int]]:
    """Shard → rows that tombstones name. Without tombstones no index is opened; with some, the columns that they speak of."""
    stones = tombstones(dataset)
    out: dict[int, list[int]] = {}
    for i in range(len(dataset.shards)) if stones is not None and len(stones) else ():
        rows, _ = rows_named(dataset, i, stones)
        dataset.release(i)
        if len(rows):
            out[i] = rows.tolist()
    return out


def living(dataset: Dataset, i: int) -> Iterator[Record]:
    """The records of shard i that no tombstone names, in written order, without payloads."""
    keep = kept(dataset, i)
    return (record for record, stays in zip(dataset.records(i), keep, strict=True) if stays)


def kept(dataset: Dataset, i: int) -> np.ndarray:
    """bool per row of shard i: named by no tombstone. Without tombstones no index is opened."""
    stones = tombstones(dataset)
    out = np.ones(dataset.shards[i].records, np.bool_)
    if stones is not None and len(stones):
        out[rows_named(dataset, i, stones)[0]] = False
    return out


def known_as(dataset: Dataset) -> str | list[str]:
    """What says which records of a dataset are used by whoever leaves forgotten ones out: its fingerprint, and its tombstones where there are any."""
    entry = tombstone_entry(dataset)
    return dataset.fingerprint if entry is None else [dataset.fingerprint, entry["sha256"]]


def living_rows(dataset: Dataset, i: int, columns: list[str]) -> pa.Table:
    """Columns of the index of shard i, without the rows that tombstones name."""
    table, keep = dataset.index(i, columns), kept(dataset, i)
    return table if keep.all() else table.filter(pa.array(keep))
