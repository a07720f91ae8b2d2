"""Rows of alike cost side by side, so that ranks wait little for one another.

Rows are equally long, but a row of one long text costs more attention than one of many short ones. Ranks work side by side on neighbouring rows
(rank r of W takes row r of every W), and wait for the slowest at every layer. So of every `n` consecutive rows (a training step, or several of
them) the order is by predicted cost: whatever W is, neighbours are then alike. Which rows the `n` hold is left as it was, so where `n` divides a
step, or a step `n`, no more changes than the order inside of steps or of runs of steps. Rows of two stages never change places.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

RANKS = 8  # of the figures that the card gives


class Balanced:
    """Tables of rows in order go in and come out; `before` and `after` are what `RANKS` ranks wait: mean of the largest cost over the mean cost."""

    def __init__(self, tables: Iterator[pa.Table], n: int) -> None:
        self._tables, self._n = tables, n
        self._sums = {"before": [0.0, 0], "after": [0.0, 0]}

    def __iter__(self) -> Iterator[pa.Table]:
        held: pa.Table | None = None
        for table in self._tables:
            held = table if held is None else pa.concat_tables([held, table])
            first = held["seq"][0].as_py()
            whole = (first + len(held)) // self._n * self._n - first
            if whole > 0:
                yield self._ordered(held.slice(0, whole))
                held = held.slice(whole) if whole < len(held) else None
        if held is not None and len(held):
            yield self._ordered(held)

    def facts(self) -> dict[str, float | int]:
        """For the card."""
        told = {name: round(total / rows, 6) if rows else 1.0 for name, (total, rows) in self._sums.items()}
        return {"rows": self._n, "ranks": RANKS, "wait_before": told["before"], "wait": told["after"]}

    def _ordered(self, rows: pa.Table) -> pa.Table:
        seq, cost = rows["seq"].to_numpy(), rows["cost"].to_numpy()
        order = np.lexsort((seq, cost, rows["stage"].to_numpy(), seq // self._n))
        self._count("before", cost)
        self._count("after", cost[order])
        return rows.take(pa.array(order)).set_column(0, rows.schema.field("seq"), rows["seq"])

    def _count(self, name: str, cost: NDArray[np.float32]) -> None:
        side_by_side = cost[: len(cost) // RANKS * RANKS].reshape(-1, RANKS).astype(np.float64)
        self._sums[name][0] += float((side_by_side.max(1) / side_by_side.mean(1)).sum())
        self._sums[name][1] += len(side_by_side)
