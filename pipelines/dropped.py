"""What filters and whole-dataset stages dropped, by reason: how many, and some of each to judge the rule by. Behind `inspect --dropped` and `view`.

In: a dataset made with `keep_dropped`, which has one of its dropped records below it. Out: per reason, commonest first, its count and examples: those
with the smallest hashes, as good as drawn, and the same for any order, shard size and number of workers. Only two flat columns are read of each
index, and of the rows shown the row groups that hold them.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from typing import NamedTuple

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.part import dropped_path
from pipelines.look import Found, pick


class Reason(NamedTuple):
    """Why records were dropped, how many of those that were kept beside, and some of them."""

    reason: str
    dropped: int
    examples: list[Found]


def beside(path: str) -> Dataset | None:
    """The dataset of what was dropped from the one at `path`, if it was kept."""
    root = dropped_path(path)
    return Dataset.open(root) if storage.exists(storage.join(root, "manifest.json")) else None


def by_reason(dropped: Dataset, n: int, wanted: str | None = None, shards: list[int] | None = None) -> list[Reason]:
    """Reasons with up to `n` examples each, found in these shards (default: all). `wanted` is a whole reason (`c4.curly_bracket`) or a filter's
    name, which takes all of its reasons; `InputError` where there are none."""
    counts: Counter[str] = Counter()
    heaps: dict[str, list[tuple[int, int, int]]] = {}
    for i in range(len(dropped.shards)) if shards is None else shards:
        for row, values in enumerate(dropped.rows(i, ["h", "fields"])):
            reason = str(json.loads(values["fields"] or "{}").get("dropped", ""))
            counts[reason] += 1
            heap = heaps.setdefault(reason, [])
            (heapq.heappush if len(heap) < n else heapq.heappushpop)(heap, (-values["h"], i, row))
    shown = [r for r in counts if wanted is None or r == wanted or r.startswith(f"{wanted}.")]
    if wanted is not None and not shown:
        there = ", ".join(f"{r} {c}" for r, c in counts.most_common())
        raise InputError("nothing was dropped for this reason", where=dropped.path, found=wanted, allowed=there or "nothing was dropped at all")
    at: dict[int, dict[int, tuple[str, int]]] = {}
    for reason in shown:
        for h, i, row in heaps[reason]:
            at.setdefault(i, {})[row] = reason, -h
    found: dict[str, list[tuple[int, Found]]] = {reason: [] for reason in shown}
    for i, rows in at.items():
        for one in pick(dropped, i, rows):
            reason, h = rows[one.row]
            found[reason].append((h, one))
    ordered = sorted(shown, key=lambda r: (-counts[r], r))
    return [Reason(r, counts[r], [one for _, one in sorted(found[r], key=lambda x: (x[0], x[1].record.id))]) for r in ordered]
