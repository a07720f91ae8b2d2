"""What stands in training that was to be held out: the same thing under another name, found across all sources of a plan.

In: a plan. Out: by each way of being the same, how many training records meet a held-out one, how many of those no surer way had found, between
which sources, and some pairs of ids. The ways, surest first:

    id      one record in two of the datasets                     never right: `verify` calls it a problem
    group   one image, video, scene or page                       never right either: the split goes by group
    sha256  equal payloads: the same tokens, the same latents     exact duplicates that no dedup took out
    url     one address: a page read twice, two captions of one picture under two names
    text    a text of 16 tokens or more that takes loss, letter for letter, in any segment; shorter ones repeat by chance ("a red cube")
    phash   pictures whose perceptual hashes differ in few bits   flat pictures are left out; the one way that is sometimes wrong

The split promises only that groups stand on one side. Whatever else is the same was the same in the datasets already, so it is told and is no
problem of the plan: `minhash`, `exact_text` and `image_hash` take it out where data are curated. Series of one template (a plain chart, a title
card) are near by hash and are different pictures: `image_hash` with `confirm` looks closer.

Only records that the plan uses are asked. Held-out ones are kept as rows of strings (about 400 bytes each); training ones pass by in pieces, five
flat columns of each index, and texts only where their length is that of a held-out text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mixtures.plan import Plan
from mixtures.used import marked, named_by_sources
from pipelines.format.dataset import Dataset
from pipelines.format.hamming import FLAT_BITS, Near

EXACT = ("id", "group", "sha256", "url")
WAYS = (*EXACT, "text", "phash")
DISTANCE = 4  # bits of 64, as `image_hash` has it
LEAST_TOKENS = 16
SHOWN = 5
_PIECE = 1 << 19  # training records compared at a time
_COLUMNS = [*EXACT, "phash"]
_LEAVES = [f"segments.list.element.{k}" for k in ("kind", "role", "tokens", "offset", "nbytes")]
Flags = list[NDArray[np.bool_]]


@dataclass(slots=True)
class _Way:
    """What one way found so far."""

    records: int = 0
    new: int = 0
    between: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    held: set[int] = field(default_factory=set)  # rows of held-out records that were met

    def told(self) -> dict[str, Any]:
        """As JSON."""
        pairs = [{"train": a, "held_out": b, "records": n} for (a, b), n in self.between.most_common()]
        return {"records": self.records, "new": self.new, "held_out": len(self.held), "between": pairs, "examples": self.examples}


def leaks(plan: Plan, distance: int | None = DISTANCE, texts: bool = True) -> dict[str, Any]:
    """{train, held_out: records compared, ways: {way: {records, new, held_out, between, examples}}}. `distance` None asks no hash."""
    names = named_by_sources(plan)
    train, held = marked(plan, "train"), marked(plan, "heldout")
    kept = pa.concat_tables([*_pieces(plan, held, _COLUMNS), _nothing()]).combine_chunks()
    found = {way: _Way() for way in WAYS if way in EXACT or (way == "text" and texts) or (way == "phash" and distance is not None)}
    asked = _texts_of(plan, held) if texts and len(kept) else {}
    near = _near(kept, distance) if distance is not None else None
    seen = 0
    for piece in _pieces(plan, train, _COLUMNS, _PIECE):
        seen += len(piece)
        known = np.zeros(len(piece), np.bool_)
        for way in EXACT:
            met = pc.index_in(piece[way], kept[way], skip_nulls=True)
            at = np.flatnonzero(np.asarray(pc.is_valid(met)))
            _note(found[way], names, piece, kept, at, np.asarray(met.combine_chunks().take(at), np.int64), known)
        if asked:
            _note(found["text"], names, piece, kept, *_same_texts(plan, piece, asked), known)
        if near is not None:
            _note(found["phash"], names, piece, kept, *_near_pictures(piece, near), known)
    return {"train": seen, "held_out": len(kept), "distance": distance, "ways": {way: found[way].told() for way in found}}


def _note(way: _Way, names: list[str], train: pa.Table, held: pa.Table, at: NDArray[Any], to: NDArray[Any], known: NDArray[np.bool_]) -> None:
    """Count that training rows `at` met held-out rows `to`. `known` says which of them an earlier way had found."""
    if not len(at):
        return
    fresh = ~known[at]
    way.records, way.new = way.records + len(at), way.new + int(fresh.sum())
    known[at] = True
    way.held.update(to.tolist())
    a, b = np.asarray(train["dataset"])[at], np.asarray(held["dataset"])[to]
    for (i, j), n in Counter(zip(a.tolist(), b.tolist(), strict=True)).items():
        way.between[names[i], names[j]] += n
    for k in [*np.flatnonzero(fresh), *np.flatnonzero(~fresh)][: SHOWN - len(way.examples)]:
        pair = {"train": train["id"][int(at[k])].as_py(), "held_out": held["id"][int(to[k])].as_py()}
        way.examples.append(pair | {"sources": [names[a[k]], names[b[k]]]})


def _nothing() -> pa.Table:
    types = {"phash": pa.uint64(), "dataset": pa.int32(), "shard": pa.int32(), "row": pa.int32()}
    return pa.table({c: pa.array([], types.get(c, pa.string())) for c in [*_COLUMNS, "dataset", "shard", "row"]})


def _pieces(plan: Plan, flags: Flags, columns: list[str], least: int = 1) -> Iterator[pa.Table]:
    """Flat columns of the marked records, with the numbers of dataset, shard and row; pieces of at least so many rows, but the last."""
    waiting: list[pa.Table] = []
    for i, dataset in enumerate(plan.datasets):
        for shard, rows in _marked_rows(dataset, flags[i]):
            table = dataset.index(shard, columns).take(rows)
            for name, values in (("dataset", np.full(len(rows), i)), ("shard", np.full(len(rows), shard)), ("row", rows)):
                table = table.append_column(name, pa.array(values, pa.int32()))
            waiting.append(table)
            dataset.release(shard)
            if sum(map(len, waiting)) >= least:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _marked_rows(dataset: Dataset, flags: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    start = 0
    for shard, entry in enumerate(dataset.shards):
        rows = np.flatnonzero(flags[start : start + entry.records])
        start += entry.records
        if len(rows):
            yield shard, rows


def _texts(dataset: Dataset, shard: int, rows: NDArray[Any], lengths: NDArray[Any] | None) -> Iterator[tuple[int, bytes]]:
    """(place in `rows`, digest) of each text that takes loss and is long enough and, with `lengths`, as long as one of those."""
    column = dataset.index(shard, _LEAVES)["segments"].combine_chunks().take(rows)
    owner = np.asarray(pc.list_parent_indices(column))
    flat = column.flatten()
    tokens = np.asarray(flat.field("tokens"))
    right = np.asarray(pc.and_(pc.equal(flat.field("kind"), "tokens"), pc.equal(flat.field("role"), "target"))) & (tokens >= LEAST_TOKENS)
    if lengths is not None:
        right &= np.isin(tokens, lengths)
    at = np.flatnonzero(right)
    spots = zip(owner[at].tolist(), *(flat.field(k).take(at).to_pylist() for k in ("offset", "nbytes")), strict=True)
    for i, offset, nbytes in spots:
        yield i, blake2b(dataset.slice(shard, "tokens", offset or 0, nbytes or 0), digest_size=16).digest()
    dataset.release(shard)


def _texts_of(plan: Plan, held: Flags) -> dict[Any, Any]:
    """Digest → row of the first held-out record with this text; under None the lengths that occur."""
    out: dict[Any, Any] = {}
    lengths, base = set(), 0
    for i, dataset in enumerate(plan.datasets):
        for shard, rows in _marked_rows(dataset, held[i]):
            for at, digest in _texts(dataset, shard, rows, None):
                out.setdefault(digest, base + at)
            flat = dataset.index(shard, [_LEAVES[2]])["segments"].combine_chunks().take(rows).flatten()
            lengths.update(np.unique(np.asarray(flat.field("tokens"))).tolist())
            base += len(rows)
    return out | {None: np.array(sorted(lengths))} if out else {}


def _same_texts(plan: Plan, piece: pa.Table, asked: dict[Any, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    places = np.stack([np.asarray(piece["dataset"]), np.asarray(piece["shard"])])
    edges = [0, *(np.flatnonzero((np.diff(places) != 0).any(axis=0)) + 1).tolist(), len(piece)] if len(piece) else [0]
    met: dict[int, int] = {}
    for a, b in pairwise(edges):
        dataset, rows = plan.datasets[int(places[0, a])], np.asarray(piece["row"])[a:b]
        for at, digest in _texts(dataset, int(places[1, a]), rows, asked[None]):
            if digest in asked:
                met.setdefault(a + at, asked[digest])
    return np.array(list(met), np.int64), np.array(list(met.values()), np.int64)


def _hashes(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """(rows with a hash that says something, their hashes)."""
    known = np.flatnonzero(np.asarray(pc.is_valid(table["phash"])))
    hashes = np.asarray(table["phash"].combine_chunks().take(known), np.uint64)
    telling = np.bitwise_count(hashes) > FLAT_BITS
    return known[telling], hashes[telling]


def _near(held: pa.Table, distance: int) -> tuple[Near, NDArray[np.int64]] | None:
    rows, hashes = _hashes(held)
    if not len(rows):
        return None
    _, first = np.unique(hashes, return_index=True)
    return Near(hashes, distance), rows[first]


def _near_pictures(piece: pa.Table, near: tuple[Near, NDArray[np.int64]]) -> tuple[NDArray[Any], NDArray[Any]]:
    rows, hashes = _hashes(piece)
    best, at = near[0].of_many(hashes)
    close = best <= near[0].distance
    return rows[close], near[1][at[close]]
