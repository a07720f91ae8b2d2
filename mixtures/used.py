"""Which records a plan uses: its row files one after another, and the place of each span among all records of its dataset.

In: a plan. Out: numpy columns, a file at a time, so that who only counts needs one file and one number for each record, however long the plan is.
Behind `stats`, `view`, `verify --deep` and `run mix --diff`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, RowFile, row_path
from pipelines.format.dataset import Dataset

I64: TypeAlias = NDArray[np.int64]


def row_files(plan: Plan, split: str = "train") -> Iterator[tuple[str, RowFile]]:
    """(file name, its rows) of a split in order. Nothing is kept: a cache of files would only fill with what is not asked for again."""
    for start in range(0, plan.sequences(split), ROWS_PER_FILE):
        path = row_path(plan.path, split, start)
        yield path.rsplit("/", 1)[-1], RowFile.read(path)


def shard_starts(dataset: Dataset) -> I64:
    """[shards + 1]: the number, over the whole dataset, of each shard's first record."""
    return np.cumsum([0, *(s.records for s in dataset.shards)], dtype=np.int64)


def record_numbers(starts: list[I64], spans: dict[str, NDArray[Any]], dataset: int) -> tuple[NDArray[np.int64], I64]:
    """(indexes of the spans that lie in a dataset, the numbers of their records there)."""
    mine = np.flatnonzero(spans["dataset"] == dataset)
    return mine, starts[dataset][spans["shard"][mine]] + spans["row"][mine]


def marked(plan: Plan, split: str) -> list[NDArray[np.bool_]]:
    """Per dataset of the plan a flag for each record: whether a span of the split lies in it. One byte a record."""
    starts = [shard_starts(d) for d in plan.datasets]
    flags = [np.zeros(int(s[-1]), np.bool_) for s in starts]
    for _, file in row_files(plan, split):
        for i, flag in enumerate(flags):
            flag[record_numbers(starts, file.spans, i)[1]] = True
    return flags


def named_by_sources(plan: Plan) -> list[str]:
    """Per dataset of the plan the sources that draw from it, as one name."""
    users: list[list[str]] = [[] for _ in plan.datasets]
    for name in plan.sources:
        users[plan.card["sources"][name]["dataset"]].append(name)
    return ["+".join(names) for names in users]
