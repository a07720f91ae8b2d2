"""Units of all sources → rows of spans, in the order of consumption.

Within a stage every source is spread evenly over the whole length by its payload (mixed in the batch, not one after another), the merged
order is packed window by window, and the rows of a window are shuffled by a draw. What comes out is columns, ready to be written. Everything
streams: of each source one bucket is in memory, of the merged order one window and what it left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.budget import Draft, Drafted
from mixtures.packing import Pieces, pack_windows, window_of
from mixtures.placed import Placed, join, length, loss_lists, none, payload, take
from mixtures.span import Spans
from mixtures.spill import HELD
from mixtures.table import I64
from pipelines.format.chance import draw


def train_rows(draft: Draft) -> Iterator[tuple[int, Spans]]:
    """(stage, spans) of successive windows of the training split; rows are numbered from 0 across all of them."""
    rows = 0
    for stage in range(len(draft.mixture.stages or [1])):
        units = sum(d.units.of("units", [(stage, e) for e in range(d.passes)]) for d in draft.sources)
        for spans in _packed(draft, _merged(draft, stage), units, rows, draft.mixture.seed):
            rows = int(spans.row_in_plan[-1]) + 1
            yield stage, spans


def held_out_rows(draft: Draft) -> Iterator[tuple[int, Spans]]:
    """(source, spans) of the held-out split. A row holds one source, sources follow one another; the order is that of the draws."""
    rows = 0
    seed = draft.mixture.held_out.seed if draft.mixture.held_out is not None else 0
    for i, d in enumerate(draft.sources):
        for spans in _packed(draft, d.units.sorted(HELD), d.units.of("units", [HELD]), rows, seed):
            rows = int(spans.row_in_plan[-1]) + 1
            yield i, spans


def _merged(draft: Draft, stage: int) -> Iterator[Placed]:
    """All sources' units of one stage, each source spread evenly by its payload."""
    streams = [_timed(d, stage, draft.mixture.seed) for d in draft.sources]
    held = [next(s, None) for s in streams]
    while any(h is not None for h in held):
        # Until when every source's units are at hand; those at that very time wait, so that no border between chunks shows.
        until = min(float(h[1][-1]) for h in held if h is not None)
        parts, times = [], []
        for i, h in enumerate(held):
            while h is not None and float(h[1][-1]) <= until:
                more = next(streams[i], None)
                if more is None:
                    parts.append(h[0])
                    times.append(h[1])
                    h = None
                else:
                    h = (join([h[0], more[0]]), np.concatenate([h[1], more[1]]))
            if h is not None:
                n = int(np.searchsorted(h[1], until, side="left"))
                parts.append(h[0][:n])
                times.append(h[1][:n])
                h = (h[0][n:], h[1][n:])
            held[i] = h
        order = np.argsort(np.concatenate(times), kind="stable")
        yield take(join(parts), order)


def _timed(d: Drafted, stage: int, seed: int) -> Iterator[tuple[Placed, NDArray[np.float64]]]:
    """Pass after pass, each in its block-local order, with the place of each unit in [0, 1)."""
    keys = [(stage, e) for e in range(d.passes) if (stage, e) in d.units.facts]
    total, before = max(d.units.of("payload", keys), 1), 0
    for key in keys:
        for u in d.units.blocks(key, seed):
            n = payload(u)
            after = before + np.cumsum(n)
            before = int(after[-1])
            yield u, (after.astype(np.float64) - n / 2) / total


def _windows(units: Iterator[Placed], size: int) -> Iterator[Placed]:
    """The same units, so many at a time."""
    held: list[Placed] = []
    n = 0
    for u in units:
        first = size - n
        held.append(u[:first])
        n += len(u)
        if n >= size:
            yield join(held)
            for a in range(first, len(u) - size + 1, size):
                yield u[a : a + size]
            n %= size
            held = [u[len(u) - n :]] if n else []
    if n:
        yield join(held)


class _Live:
    """Units that are not placed yet, found by their number in the order of consumption."""

    def __init__(self, units: Iterator[Placed]) -> None:
        self._units, self._held, self._numbers = units, none(), np.zeros(0, np.int64)
        self._first = self._fresh = 0  # units seen, and those of the last window

    def windows(self) -> Iterator[tuple[I64, NDArray[np.bool_]]]:
        """(lengths, may be cut), each window kept until `forget`."""
        for u in self._units:
            self._held = join([self._held, u])
            self._numbers = np.concatenate([self._numbers, np.arange(self._first, self._first + len(u))])
            self._first += len(u)
            self._fresh = len(u)
            yield length(u), u["cut"]

    def __getitem__(self, numbers: I64) -> Placed:
        old = len(self._numbers) - self._fresh
        at = numbers - (self._first - self._fresh) + old
        older = np.flatnonzero(at < old)
        at[older] = np.searchsorted(self._numbers[:old], numbers[older])
        return take(self._held, at)

    def forget(self, all_but: I64) -> None:
        keep = np.searchsorted(self._numbers, np.unique(all_but))
        self._held, self._numbers, self._fresh = take(self._held, keep), self._numbers[keep], 0


def _packed(draft: Draft, units: Iterator[Placed], n: int, rows: int, seed: int) -> Iterator[Spans]:
    live = _Live(_windows(units, window_of(n)))
    for window, left in pack_windows(live.windows(), draft.mixture.sequence_length):
        key = draw(np.arange(rows, rows + window.rows).astype(np.uint64), seed, "rows")
        place = np.empty(window.rows, np.int64)
        place[np.argsort(key, kind="stable")] = np.arange(window.rows)
        row = place[window.row]
        order = np.argsort((row << 40) | (window.unit - int(window.unit.min())))  # no row holds two pieces of one unit
        pieces = Pieces(window.unit[order], window.start[order], window.stop[order], row[order] + rows)
        yield _spans(draft, live[pieces.unit], pieces)
        live.forget(left)
        rows += window.rows


def _spans(draft: Draft, u: Placed, pieces: Pieces) -> Spans:
    """Positions of units become payload ranges of records; structure is what is left."""
    head = ((u["first"] == 0) & (u["start"] == 0)).astype(np.int64)  # a text's BOS
    whole = payload(u)
    start = np.where(u["cut"], u["start"] + np.maximum(pieces.start - head, 0), u["start"])
    stop = np.where(u["cut"], u["start"] + np.minimum(pieces.stop - head, whole), u["stop"])
    held = stop - start
    columns: dict[str, Any] = {"row_in_plan": pieces.row, "start": start, "stop": stop, "structure": pieces.stop - pieces.start - held}
    columns["text"] = np.where(u["cut"], held, u["text"])
    columns["loss_tokens"] = np.where(u["cut"], np.where(u["loss"] > 0, held, 0), u["loss"])
    columns |= {k: np.ascontiguousarray(u[k]) for k in ("source", "shard", "row", "first", "count", "caption", "image_first", "epoch")}
    columns["dataset"] = np.array([d.dataset for d in draft.sources], np.int32)[u["source"]]
    columns["bit_start"], columns["bits"] = loss_lists(u, {i: d.units.side for i, d in enumerate(draft.sources)})
    return Spans(**{f.name: columns[f.name] for f in fields(Spans)})
