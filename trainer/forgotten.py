"""Records that must not be trained on although a plan, made earlier, names them.

`pipelines forget` adds tombstones to a dataset's card. A planner draws the next record instead; a plan that already stands is read as it is,
without what was forgotten: its place stays empty, which shows in the run's card as fewer tokens than the plan took.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.manifest import read_card

NAMED_BY = ("id", "url", "sha256", "phash")


def tombstones(dataset: Dataset) -> pa.Table | None:
    """What the newest card of a dataset, whatever snapshot is pinned, says must be forgotten; None when nothing."""
    entry = read_card(dataset.path).get("tombstones")
    if entry is None:
        return None
    return pq.read_table(pa.BufferReader(storage.read(storage.join(dataset.path, entry["file"]))))


def forgotten(index: pa.Table, stones: pa.Table) -> np.ndarray:
    """bool per row of an index with the columns NAMED_BY: named by a tombstone's id, url, sha256 or phash."""
    gone = np.zeros(index.num_rows, np.bool_)
    for name in NAMED_BY:
        if name in stones.column_names and stones[name].null_count < len(stones):
            named = stones[name].drop_null().cast(index[name].type).combine_chunks()
            gone |= np.asarray(pc.is_in(index[name], value_set=named))
    return gone
