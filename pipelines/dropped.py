"""What filters dropped, by reason, for people: how many, and some of each to judge the filter by. Behind `inspect --dropped` and `view`.

In: a dataset made with `keep_dropped: true`, which has one of its dropped records below it. Out: per reason (most first) its count and examples
evenly spaced over the dropped records of that reason, so that they are not all of one file. One pass over one flat column; only the rows shown are
read whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.part import dropped_path
from pipelines.look import Found, pick

FIELD = "dropped"


class Reason(NamedTuple):
    """Why records were dropped, how many of those that were kept beside, and some of them."""

    reason: str
    dropped: int
    examples: list[Found]


def beside(dataset: Dataset) -> Dataset | None:
    """The dataset of what was dropped from this one, if it was kept."""
    path = dropped_path(dataset.path)
    return Dataset.open(path) if storage.exists(storage.join(path, "manifest.json")) else None


def by_reason(dropped: Dataset, n: int, wanted: str | None = None) -> list[Reason]:
    """Reasons with up to `n` examples each. `wanted` is a whole reason (`c4.curly_bracket`) or a filter's name, which takes all of its reasons."""
    counts = Counter(reason for _, _, reason in _reasons(dropped))
    shown = [r for r in counts if wanted is None or r == wanted or r.startswith(f"{wanted}.")]
    if wanted is not None and not shown:
        there = ", ".join(f"{r} {c}" for r, c in counts.most_common())
        raise InputError("nothing was dropped for this reason", where=dropped.path, found=wanted, allowed=there or "nothing was dropped at all")
    places = {r: {k * counts[r] // min(n, counts[r]) for k in range(min(n, counts[r]))} for r in shown}
    met: Counter[str] = Counter()
    rows: dict[int, list[int]] = {}
    of: dict[tuple[int, int], str] = {}
    for shard, row, reason in _reasons(dropped):
        if reason in places and met[reason] in places[reason]:
            rows.setdefault(shard, []).append(row)
            of[shard, row] = reason
        met[reason] += 1
    found: dict[str, list[Found]] = {r: [] for r in shown}
    for shard, some in rows.items():
        for one in pick(dropped, shard, some):
            found[of[shard, one.row]].append(one)
    return [Reason(r, counts[r], found[r]) for r in sorted(shown, key=lambda r: (-counts[r], r))]


def _reasons(dropped: Dataset) -> Iterator[tuple[int, int, str]]:
    """(shard, row, reason) of every dropped record."""
    for shard in range(len(dropped.shards)):
        for row, values in enumerate(dropped.rows(shard, ["fields"])):
            yield shard, row, str(json.loads(values["fields"] or "{}").get(FIELD, "?"))
