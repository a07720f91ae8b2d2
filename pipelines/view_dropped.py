"""What filters and whole-dataset stages dropped, a few examples for each reason: the part of a dataset's page that says whether a rule is right.

In: the path of a dataset that was made with `keep_dropped`. Out: for each reason its count and the cards that the caller draws
(`dropped.py` says which records). At most `SHARDS` indexes are read.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelines import dropped, look
from pipelines.format.dataset import Dataset
from pipelines.format.page import Html, tag

EACH = 4  # records shown for a reason
REASONS = 24  # commonest first
SHARDS = 64  # indexes read; evenly spaced where there are more


def blocks(path: str, card: Callable[[Dataset, look.Found], Html]) -> list[Html]:
    """Nothing where no record was kept of what was dropped; `card` draws one record."""
    dataset = dropped.beside(path)
    if dataset is None:
        return []
    shards = len(dataset.shards)
    read = [k * shards // min(SHARDS, shards) for k in range(min(SHARDS, shards))]
    reasons = dropped.by_reason(dataset, EACH, shards=read)
    some = "" if len(read) == shards else f" (counted in {len(read)} of {shards} shards)"
    out = [tag("h2", f"What was dropped, by reason{some}")] if reasons else []
    for reason, n, found in reasons[:REASONS]:
        out += [tag("h3", f"{reason}: {n}"), tag("div", *(card(dataset, f) for f in found), class_="grid")]
    return out
