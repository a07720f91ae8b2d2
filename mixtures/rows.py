"""Units of all sources → rows of spans, in the order of consumption.

Within a stage every source is spread evenly over the whole length by its payload (mixed in the batch, not one after another), the merged
order is packed window by window, and the rows of a window are shuffled by a draw. What comes out is columns, ready to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.budget import Draft, Drafted
from mixtures.draws import consumption
from mixtures.packing import Pieces, pack
from mixtures.span import Spans
from mixtures.table import I64, Bool, Table
from mixtures.units import Units, expand, join_units, loss_bits
from pipelines.format.chance import draw


@dataclass(frozen=True, slots=True, eq=False)
class _Merged:
    """Units of several sources in one order."""

    units: Units
    source: NDArray[np.int16]
    epoch: NDArray[np.int16]


def train_rows(draft: Draft) -> Iterator[tuple[int, Spans]]:
    """(stage, spans) of successive windows of the training split; rows are numbered from 0 across all of them."""
    rows = 0
    for stage in range(len(draft.mixture.stages or [1])):
        merged = _merge(draft, stage)
        for spans in _packed(draft, merged, rows, draft.mixture.seed):
            rows = int(spans.row_in_plan[-1]) + 1
            yield stage, spans


def held_out_rows(draft: Draft) -> Iterator[tuple[int, Spans]]:
    """(source, spans) of the held-out split. A row holds one source, sources follow one another; the order is that of the draws."""
    rows = 0
    seed = draft.mixture.held_out.seed if draft.mixture.held_out is not None else 0
    for i, d in enumerate(draft.sources):
        n = len(d.held)
        merged = _Merged(d.held, np.full(n, i, np.int16), np.zeros(n, np.int16))
        for spans in _packed(draft, merged, rows, seed):
            rows = int(spans.row_in_plan[-1]) + 1
            yield i, spans


def _merge(draft: Draft, stage: int) -> _Merged:
    """All sources' units of one stage, each source spread evenly by its payload."""
    parts, sources, epochs, times = [], [], [], []
    for i, d in enumerate(draft.sources):
        at = _consumed(d, stage, draft.mixture.seed)
        u = d.taken[at]
        payload = u.payload.astype(np.float64)
        parts.append(u)
        sources.append(np.full(len(u), i, np.int16))
        epochs.append(d.epoch[at])
        times.append((np.cumsum(payload) - payload / 2) / max(payload.sum(), 1))
    order = np.argsort(np.concatenate(times), kind="stable")
    return _Merged(join_units(parts)[order], np.concatenate(sources)[order], np.concatenate(epochs)[order])


def _consumed(d: Drafted, stage: int, seed: int) -> I64:
    """Indexes into `d.taken` of one stage's units: pass after pass, each in its block-local order."""
    out = []
    for epoch in range(d.passes):
        at = np.flatnonzero((d.stage == stage) & (d.epoch == epoch))
        out.append(at[consumption(d.table, d.taken[at], seed, epoch)])
    return np.concatenate([np.zeros(0, np.int64), *out])


def _packed(draft: Draft, merged: _Merged, rows: int, seed: int) -> Iterator[Spans]:
    u, capacity = merged.units, draft.mixture.sequence_length
    for window in pack(u.length, u.cut, capacity):
        key = draw(np.arange(rows, rows + window.rows).astype(np.uint64), seed, "rows")
        place = np.empty(window.rows, np.int64)
        place[np.argsort(key, kind="stable")] = np.arange(window.rows)
        row = place[window.row]
        order = np.lexsort((window.start, window.unit, row))
        pieces = Pieces(window.unit[order], window.start[order], window.stop[order], row[order] + rows)
        yield _spans(draft, merged, pieces)
        rows += window.rows


def _spans(draft: Draft, merged: _Merged, pieces: Pieces) -> Spans:
    """Positions of units become payload ranges of records; structure is what is left."""
    at = pieces.unit
    u, source = merged.units[at], merged.source[at]
    head = ((u.first == 0) & (u.start == 0)).astype(np.int64)  # a text's BOS
    start = np.where(u.cut, u.start + np.maximum(pieces.start - head, 0), u.start)
    stop = np.where(u.cut, u.start + np.minimum(pieces.stop - head, u.payload), u.stop)
    payload = stop - start
    columns: dict[str, NDArray[Any]] = {"row_in_plan": pieces.row, "source": source, "start": start, "stop": stop}
    columns["structure"] = pieces.stop - pieces.start - payload
    columns["text"] = np.where(u.cut, payload, u.text)
    columns["loss_tokens"] = np.where(u.cut, np.where(u.loss > 0, payload, 0), u.loss)
    columns |= {k: getattr(u, k) for k in ("first", "count", "caption", "image_first")}
    columns["epoch"] = merged.epoch[at]
    shard, row, dataset = (np.zeros(len(at), np.int32) for _ in range(3))
    bits: list[tuple[NDArray[Any], I64, Bool]] = []
    for i, d in enumerate(draft.sources):
        mine = np.flatnonzero(source == i)
        if len(mine):
            shard[mine], row[mine] = d.table.shard[u.record[mine]], d.table.row[u.record[mine]]
            dataset[mine] = d.dataset
            bits.append((mine, *_bits(d, u[mine])))
    bit_start, flat = _interleave(bits, len(at))
    out = columns | {"shard": shard, "row": row, "dataset": dataset, "bit_start": bit_start, "bits": flat}
    return Spans(**{f.name: out[f.name] for f in fields(Spans)})


def _bits(d: Drafted, u: Units) -> tuple[I64, Bool]:
    """(number of segments per span, their loss bits one after another), in the record's order."""
    t = d.table
    if t.data == "image-text":
        return _pair_bits(t, d, u)
    atom = t.atom_start[u.record] + u.first
    start, stop = t.atom_segment[atom], t.atom_segment[atom + u.count]
    if t.segments is None:
        return stop - start, np.ones(int((stop - start).sum()), np.bool_)
    at, _ = expand(start, stop)  # segments lie in the order of atoms, record after record
    return stop - start, loss_bits(t.segments, at, d.source.loss)


def _pair_bits(t: Table, d: Drafted, u: Units) -> tuple[I64, Bool]:
    images = (u.structure.astype(np.int64) - 2) // 2
    n = images + 1
    last = np.cumsum(n) - 1
    bits = np.ones(int(n.sum()), np.bool_)
    if t.segments is not None:
        at = np.repeat(t.segments.start[u.record], n) + np.arange(len(bits)) - np.repeat(last + 1 - n, n)
        at[last] = t.segments.start[u.record] + u.caption
        bits = loss_bits(t.segments, at, d.source.loss)
    is_caption = np.zeros(len(bits), np.bool_)
    is_caption[last] = True
    shown_clean = np.repeat(u.image_first & (not d.source.both), n)
    return n, bits & (is_caption | ~shown_clean)


def _interleave(bits: list[tuple[NDArray[Any], I64, Bool]], n: int) -> tuple[I64, Bool]:
    """Loss lists of several sources, put in the order of spans."""
    size = np.zeros(n, np.int64)
    for mine, count, _ in bits:
        size[mine] = count
    start = np.concatenate([[0], np.cumsum(size)])
    flat = np.zeros(int(start[-1]), np.bool_)
    for mine, _, values in bits:
        flat[expand(start[mine], start[mine + 1])[0]] = values
    return start, flat
