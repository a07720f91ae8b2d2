"""What filters and whole-dataset stages dropped, a few examples for each reason: the part of a dataset's page that says whether a rule is right.

In: the path of a dataset that was made with `keep_dropped`. Out: for each reason its count and the cards that the caller draws. Which records are
shown is by the smallest hashes, as good as drawn, and the same for any order, shard size and number of workers. Only two flat columns are
read of each index, and at most `SHARDS` of them.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable

from pipelines import look
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.page import Html, tag
from pipelines.format.part import dropped_path

EACH = 4  # records shown for a reason
REASONS = 24  # commonest first
SHARDS = 64  # indexes read; evenly spaced where there are more


def blocks(path: str, card: Callable[[Dataset, look.Found], Html]) -> list[Html]:
    """Nothing where no record was kept of what was dropped; `card` draws one record."""
    root = dropped_path(path)
    if not storage.exists(storage.join(root, "manifest.json")):
        return []
    dataset = Dataset.open(root)
    shards = len(dataset.shards)
    read = [k * shards // min(SHARDS, shards) for k in range(min(SHARDS, shards))]
    counts, shown = _drawn(dataset, read)
    some = "" if len(read) == shards else f" (counted in {len(read)} of {shards} shards)"
    out = [tag("h2", f"What was dropped, by reason{some}")] if counts else []
    for reason in sorted(counts, key=lambda r: (-counts[r], r))[:REASONS]:
        found = [look.Found(i, row, look.at(dataset, i, row)) for i, row in shown[reason]]
        out += [tag("h3", f"{reason}: {counts[reason]}"), tag("div", *(card(dataset, f) for f in found), class_="grid")]
    return out


def _drawn(dataset: Dataset, shards: list[int]) -> tuple[dict[str, int], dict[str, list[tuple[int, int]]]]:
    """Reason → how many, and reason → (shard, row) of those with the smallest hashes."""
    counts: dict[str, int] = {}
    heaps: dict[str, list[tuple[int, int, int]]] = {}
    for i in shards:
        columns = dataset.index(i, ["h", "fields"])
        for row, (h, fields) in enumerate(zip(columns["h"].to_pylist(), columns["fields"].to_pylist(), strict=True)):
            reason = str(json.loads(fields or "{}").get("dropped", ""))
            counts[reason] = counts.get(reason, 0) + 1
            heap = heaps.setdefault(reason, [])
            (heapq.heappush if len(heap) < EACH else heapq.heappushpop)(heap, (-h, i, row))
    return counts, {reason: [(i, row) for _, i, row in sorted(heap, reverse=True)] for reason, heap in heaps.items()}
