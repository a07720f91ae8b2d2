"""Stand-ins: what takes the place of records that were forgotten after a plan was made.

In: a plan and the tombstones of its datasets. Out: for each row that held a forgotten record, its spans with the next unused draws of the same source
in that place. A plan is a finished artifact and several runs may read it, so nothing is written beside it: the answer is a pure function of the plan
and the tombstones, no rank, world, step or clock, and whoever reads the plan works it out anew.

    tombstones, oldest first ──▶ gaps (row, place) ──▶ next unit of the source that fits ──▶ … itself forgotten later? then a gap again, at that time

A place has the positions of the span that left it, and the last one of a row its padding. A text is cut to fit; small units follow one another until
they hold as much as what went; what nothing fits stays empty and is counted. Tombstones take effect in the order in which they were added, so those
of tomorrow change no stand-in of today, except where they name it: a run that goes on after a second `forget` reads no record twice for it. Held-out
rows have no stand-ins: an evaluation on other records is another evaluation.

Cost: the plan's spans, and for each dataset with forgotten records in it one column of its indexes. Without new tombstones: a look at each card.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixtures.layout import layout
from mixtures.next_draws import Drawn, Ended, NextDraws
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, RowFile, row_path
from mixtures.span import Span
from pipelines.format.chance import draw
from pipelines.format.dataset import Dataset
from pipelines.format.forgotten import NEVER, rows_named, tombstones


class Replaced(NamedTuple):
    """One record's place taken by another's. `id` is None where nothing fitted."""

    seq: int
    source: str
    forgotten: str
    id: str | None
    epoch: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StandIns:
    """`rows`: the spans of every row that changed, and how many of its places stay empty. `replaced`: what happened, in order of tombstones."""

    rows: dict[int, tuple[tuple[Span, ...], int]] = field(default_factory=dict)
    replaced: tuple[Replaced, ...] = ()

    def spans(self, seq: int, planned: tuple[Span, ...]) -> tuple[tuple[Span, ...], int]:
        """The spans of training row `seq` as they are to be read, and in how many places nothing stands."""
        return self.rows.get(seq, (planned, 0))

    @property
    def empty(self) -> int:
        """Places of forgotten records that nothing took."""
        return sum(empty for _, empty in self.rows.values())

    def table(self) -> pa.Table:
        """What was replaced, as rows for a run's records."""
        names = {"seq": pa.int64(), "source": pa.string(), "forgotten": pa.string(), "id": pa.string(), "epoch": pa.int16(), "tokens": pa.int32()}
        return pa.table({k: pa.array([getattr(r, k) for r in self.replaced], kind) for k, kind in names.items()})


def stand_ins(plan: Plan) -> StandIns:
    """What stands in for forgotten records in the training rows of `plan`."""
    stones = [tombstones(d) for d in plan.datasets]
    if not any(s is not None and len(s) for s in stones):
        return StandIns()
    gone = [_gone(d, s) for d, s in zip(plan.datasets, stones, strict=True)]
    sources = [plan.card["sources"][name] for name in plan.sources]
    by_source = [_both([gone[n] for n in (s["dataset"], s.get("target")) if n is not None]) for s in sources]
    gaps = list(_gaps(plan, by_source))
    if not gaps:
        return StandIns()
    asked = {gap.span.source for gap in gaps}
    hashes = {n: [_h(plan.datasets[n], i) for i in range(len(plan.datasets[n].shards))] for n in {sources[i]["dataset"] for i in asked}}
    draws = {}
    for i, ended in _ends(plan, {i: hashes[sources[i]["dataset"]] for i in asked}).items():
        read = [(plan.datasets[n], stones[n]) for n in (sources[i]["dataset"], sources[i].get("target")) if n is not None]
        draws[i] = NextDraws(plan, plan.sources[i], read, hashes[sources[i]["dataset"]], ended)
    return _filled(plan, gaps, draws)


Gone = tuple[NDArray[np.int64], NDArray[np.int64]]  # places, ascending, and the number of the tombstone that names each


def _gone(dataset: Dataset, stones: pa.Table | None) -> Gone:
    """The records that tombstones name."""
    places, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for i in range(len(dataset.shards)) if stones is not None and len(stones) else ():
        rows, first = rows_named(dataset, i, stones)
        dataset.release(i)
        places.append((i << 32) | rows.astype(np.int64))
        numbers.append(first)
    return np.concatenate(places), np.concatenate(numbers)


def _both(gone: list[Gone]) -> Gone:
    """Records that either of two datasets has forgotten, by the earlier of two tombstones."""
    if len(gone) == 1:
        return gone[0]
    places = np.unique(np.concatenate([p for p, _ in gone]))
    first = np.full(len(places), NEVER, np.int64)
    for p, numbers in gone:
        np.minimum.at(first, np.searchsorted(places, p), numbers)
    return places, first


class _Gap(NamedTuple):
    """A place in a row whose record was forgotten by this tombstone. Ordered as they are filled."""

    forgotten: int
    seq: int
    place: int
    span: Span


def _files(plan: Plan) -> Iterator[tuple[int, RowFile]]:
    for first in range(0, plan.sequences(), ROWS_PER_FILE):
        yield first, RowFile.read(row_path(plan.path, "train", first))


def _gaps(plan: Plan, by_source: list[Gone]) -> Iterator[_Gap]:
    for first, file in _files(plan):
        spans, place = file.spans, _place(file.spans)
        for source, (places, numbers) in enumerate(by_source):
            for k in np.flatnonzero((spans["source"] == source) & np.isin(place, places)).tolist():
                row = int(np.searchsorted(file.start, k, side="right")) - 1
                within = k - int(file.start[row])
                number = int(numbers[np.searchsorted(places, place[k])])
                yield _Gap(number, first + row, within, file.row(row).spans[within])


def _place(spans: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    out: NDArray[np.int64] = (spans["shard"].astype(np.int64) << 32) | spans["row"]
    return out


def _h(dataset: Dataset, i: int) -> NDArray[np.uint64]:
    found = np.asarray(dataset.index(i, ["h"])["h"], np.uint64)
    dataset.release(i)
    return found


def _ends(plan: Plan, hashes: dict[int, list[NDArray[np.uint64]]]) -> dict[int, Ended]:
    """Where each source's budget ended in its draw order."""
    seed = plan.card["mixture"]["seed"]
    flat = {i: (np.concatenate([np.zeros(0, np.uint64), *h]), np.cumsum([0, *map(len, h)])) for i, h in hashes.items()}
    last: dict[tuple[int, int], int] = {}
    for _, file in _files(plan):
        spans = file.spans
        for source, (h, start) in flat.items():
            mine = np.flatnonzero(spans["source"] == source)
            for epoch in np.unique(spans["epoch"][mine]).tolist():
                these = mine[spans["epoch"][mine] == epoch]
                keys = draw(h[start[spans["shard"][these]] + spans["row"][these]], seed, "order", epoch)
                last[source, epoch] = max(last.get((source, epoch), -1), int(keys.max()))
    ends = {source: max(e for s, e in last if s == source) for source in hashes}
    return {source: Ended(epoch, last[source, epoch], last.get((source, 0), -1)) for source, epoch in ends.items()}


def _filled(plan: Plan, gaps: list[_Gap], draws: dict[int, NextDraws]) -> StandIns:
    rows = {seq: plan.row(seq) for seq in sorted({gap.seq for gap in gaps})}
    # Each dataset counts its tombstones by itself, so in no row may what one forgets change the room that another has: freed positions stay with
    # the dataset that freed them, and the padding goes to that of the row's last span.
    room = {(seq, s.dataset): 0 for seq, row in rows.items() for s in row.spans}
    for seq, row in rows.items():
        room[seq, row.spans[-1].dataset] = plan.sequence_length - row.length
    places: dict[tuple[int, int], list[Drawn]] = {(gap.seq, gap.place): [] for gap in gaps}
    replaced: list[Replaced] = []
    # (tombstone, row, place, order among a place's units) → what is forgotten there: a span of the plan, or a unit that stood in for one.
    coming: list[tuple[int, int, int, int, Drawn]] = []
    for gap in gaps:
        record = plan.record(gap.span)
        length = len(layout(gap.span, record, plan.rules(gap.span.source), plan.specials))
        coming.append((gap.forgotten, gap.seq, gap.place, -1, Drawn(gap.span, record.id, length, gap.span.payload, False, gap.forgotten)))
    heapq.heapify(coming)
    made = 0
    while coming:
        number, seq, place, _, out = heapq.heappop(coming)
        held = places[seq, place]
        at = next((k for k, d in enumerate(held) if d is out), len(held))
        del held[at : at + 1]
        here = (seq, out.span.dataset)
        room[here] += out.length
        owed, found = out.payload, 0
        while owed > 0 and (drawn := draws[out.span.source].take(room[here], number)) is not None:
            held.insert(at + found, drawn)
            room[here] -= drawn.length
            owed -= drawn.payload
            found += 1
            replaced.append(Replaced(seq, plan.sources[out.span.source], out.id, drawn.id, drawn.span.epoch, drawn.payload))
            if drawn.forgotten < NEVER:
                made += 1
                heapq.heappush(coming, (drawn.forgotten, seq, place, made, drawn))
        if not found:
            replaced.append(Replaced(seq, plan.sources[out.span.source], out.id, None, out.span.epoch, 0))
    return StandIns({seq: _row(row.spans, seq, places) for seq, row in rows.items()}, tuple(replaced))


def _row(planned: tuple[Span, ...], seq: int, places: dict[tuple[int, int], list[Drawn]]) -> tuple[tuple[Span, ...], int]:
    changed = {k: tuple(d.span for d in places[seq, k]) for k in range(len(planned)) if (seq, k) in places}
    spans = [s for k, span in enumerate(planned) for s in changed.get(k, (span,))]
    return tuple(spans), sum(not held for held in changed.values())
