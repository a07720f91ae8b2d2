"""Records that must not be used although they are there: what tombstones name.

`pipelines forget` adds tombstones to a dataset's card. A planner draws the next record instead; a plan that already stands is read without them
(their places stay empty); a stage that makes a dataset of this one leaves them out and counts them as `tombstone`. They are always read from
the newest card, whatever snapshot is pinned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.flat import flat
from pipelines.format.manifest import read_card

NAMED_BY = ("id", "url", "sha256", "phash")
REASON = "tombstone"  # what such a record is counted as where a dataset is made of another


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


def forgotten(index: pa.Table, stones: pa.Table) -> np.ndarray:
    """bool per row of an index with the columns NAMED_BY: named by a tombstone's id, url, sha256 or phash."""
    gone = np.zeros(index.num_rows, np.bool_)
    for name in NAMED_BY:
        if name in stones.column_names and stones[name].null_count < len(stones):
            named = stones[name].drop_null().cast(index[name].type).combine_chunks()
            gone |= flat(pc.is_in(index[name], value_set=named).combine_chunks())
    return gone


def forgotten_rows(dataset: Dataset) -> dict[int, list[int]]:
    """Shard → rows that tombstones name. Without tombstones no index is opened; with some, four flat columns of each are read."""
    stones = tombstones(dataset)
    out: dict[int, list[int]] = {}
    for i in range(len(dataset.shards)) if stones is not None and len(stones) else ():
        rows = np.flatnonzero(forgotten(dataset.index(i, list(NAMED_BY)), stones)).tolist()
        dataset.release(i)
        if rows:
            out[i] = rows
    return out
