"""Single records, for people: found by id, and told as plain values. Behind `inspect`, `view` and `trace`.

In: a dataset. Out: dictionaries that JSON takes: the text of a text, the size of a picture, the ids of tokens with the words they stand
for (where the dataset carries its tokenizer). Payload bytes never leave here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipelines.format import storage
from pipelines.format.chance import hash64
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.record import Record, Segment
from pipelines.format.storage import join

IDS = 24  # token ids shown of a segment


class Found(NamedTuple):
    """Where a record lies: shard and row count from 0 in the shard table and in the shard's index."""

    shard: int
    row: int
    record: Record


def find(dataset: Dataset, id: str) -> Found | None:
    """The record with this id. Reads one flat column of whole numbers per shard until it is found: a quarter of the ids' bytes."""
    import numpy as np

    if not re.fullmatch(r"[0-9a-f]{32}", id):
        return None
    h = np.uint64(hash64(id))
    for i in range(len(dataset.shards)):
        for row in np.flatnonzero(np.asarray(dataset.index(i, ["h"])["h"]) == h).tolist():
            record = at(dataset, i, row)
            if record.id == id:
                return Found(i, row, record)
    return None


def at(dataset: Dataset, shard: int, row: int) -> Record:
    """The record of one index row."""
    return next(pick(dataset, shard, [row])).record


def pick(dataset: Dataset, shard: int, rows: Iterable[int]) -> Iterator[Found]:
    """The records of some index rows of a shard, in order."""
    from pipelines.format.index import record_of

    yield from (Found(shard, row, record_of(values)) for row, values in dataset.take(shard, rows))


def first(dataset: Dataset, n: int, skip: int = 0) -> Iterator[Found]:
    """The n records after the first `skip`, in written order; shards that are skipped whole are not opened."""
    for i, shard in enumerate(dataset.shards):
        if skip >= shard.records:
            skip -= shard.records
            continue
        for row, record in enumerate(dataset.records(i)):
            if n <= 0:
                return
            if row >= skip:
                yield Found(i, row, record)
                n -= 1
        skip = 0


def spread(dataset: Dataset, n: int) -> Iterator[Found]:
    """About n records from all over the dataset: evenly spaced rows, so that a contact sheet is not all of one file."""
    total = sum(shard.records for shard in dataset.shards)
    n = min(n, total)
    wanted = [k * total // n for k in range(n)]
    start = 0
    for i, shard in enumerate(dataset.shards):
        yield from pick(dataset, i, [k - start for k in wanted if start <= k < start + shard.records])
        start += shard.records


def plain(dataset: Dataset, found: Found, words: Any = None) -> dict[str, Any]:
    """A record as JSON values; keys without a value are absent. `words` is `tokenizer(dataset)`, when it is wanted."""
    r = found.record
    whole = {key: getattr(r, key) for key in ("id", "source", "origin", "data", "group", "licence", "url", "phash", "scores", "fields")}
    told = {key: value for key, value in whole.items() if value not in (None, {}, "")}
    segments = [_segment(dataset, found.shard, s, words) for s in r.segments]
    return {**told, "shard": found.shard, "row": found.row, "segments": segments}


def per_frame(fields: dict[str, Any], n: int) -> list[str]:
    """What a clip's source measured of each frame (`fields.frames`), as words for n segments, frames first; empty where nothing was."""
    told = fields.get("frames")
    lists = {k: v for k, v in told.items() if isinstance(v, list) and len(v) <= n} if isinstance(told, dict) else {}
    return [" ".join(f"{k} {v[i]:.3g}" for k, v in sorted(lists.items()) if i < len(v) and isinstance(v[i], int | float)) for i in range(n)]


def _segment(dataset: Dataset, shard: int, s: Segment, words: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": s.kind, "role": s.role}
    told |= {key: value for key, value in (("atom", s.atom), ("turn", s.turn)) if value >= 0}
    for key in ("member", "dtype", "shape", "time_s", "nbytes", "text"):
        value = getattr(s, key)
        if value not in (None, ()):
            told[key] = list(value) if isinstance(value, tuple) else value
    if s.tokens:
        told["tokens"] = s.tokens
    if s.kind == "tokens" and s.nbytes:
        ids = dataset.array(shard, s)
        told["ids"] = ids[:IDS].tolist()
        if words is not None:
            told["text"] = words.decode(ids.tolist(), skip_special_tokens=False)
    return told


def tokenizer(dataset: Dataset) -> Any:
    """The tokenizer that an encoded dataset carries, or None."""
    where = join(dataset.path, "tokenizer.json")
    if not storage.exists(where):
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(storage.read(where).decode())
    except Exception as error:  # the Rust side raises bare Exception
        raise InputError("the dataset's tokenizer cannot be read", where=where, found=error) from error
