"""What a metric is the mean of, item by item, so that two arms can be compared on the same items.

    <run>/items/<metric>.parquet    item string, split string, value double, weight double

An item is a held-out thing that every arm is asked about (a question, an image, a document, a trajectory), named by its record so that items of two
runs can be joined. The row of the metric is the mean of `value` weighted by `weight`, over a split (`held_out` means all items). Perplexity is
written as nats: metric `text_nats`, weight the counted ids.

Splits nest by colons: an item of `held_out:colour` belongs to `held_out` too, and one of `set:notes` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.format import storage


def item_path(run_dir: str, metric: str) -> str:
    """Where the items of a metric of a run lie."""
    return storage.join(run_dir, "items", f"{metric}.parquet")


def write_items(run_dir: str, metric: str, items: Sequence[str], values: Sequence[float], weights: Sequence[float] | None = None,
                splits: Sequence[str] | str = "held_out") -> None:  # fmt: skip
    """Write one metric's items, in the order of their names, in place of what an earlier evaluation left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(items)
    split = [splits] * n if isinstance(splits, str) else list(splits)
    table = pa.table({
        "item": pa.array(list(map(str, items)), pa.string()),
        "split": pa.array(split, pa.string()),
        "value": pa.array(list(map(float, values)), pa.float64()),
        "weight": pa.array([1.0] * n if weights is None else list(map(float, weights)), pa.float64()),
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table.sort_by([("split", "ascending"), ("item", "ascending")]), sink, compression="zstd")
    storage.replace(item_path(run_dir, metric), sink.getvalue().to_pybytes(), scratch=run_dir)


def read_items(run_dir: str, metric: str) -> Any:
    """The table that `write_items` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(storage.read(item_path(run_dir, metric))))
