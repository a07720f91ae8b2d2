"""Which records a budget takes, and in which order they are consumed. No chance but draws on the record's hash.

Two orders, because two things are wanted:

    selection     ascending draw(h, seed, order, epoch). A budget takes a prefix of it, so that the 25B set of a source lies inside its 50B set
                  and a grid compares amounts, not draws. Each pass over a source has an order of its own.
    consumption   block-local. What was selected is cut into blocks (runs of one shard's rows, ≥ 4 MB), the blocks are permuted, and records
                  are shuffled within windows of 16 blocks: a ranged read then brings many samples, and neighbours are still strangers.

A prefix ends where the count comes nearest to the budget; a text is cut there, so that text budgets are exact to the token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.mixture import HeldOut, Source
from mixtures.table import I64, Table
from mixtures.units import Units, units
from pipelines.format.chance import draw

BLOCK_BYTES = 4 << 20
BLOCKS_SHUFFLED_TOGETHER = 16


@dataclass(slots=True, eq=False)
class Passes:
    """The passes over one source's pool, made when they are first needed. `available` is what one pass holds, in the budget's unit."""

    table: Table
    source: Source
    row: int
    seed: int
    count: str
    pool: Fraction | None = None
    _records: NDArray[Any] = field(init=False)
    _made: dict[int, Units] = field(default_factory=dict)
    unfit: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._records = np.flatnonzero(self.table.usable)
        first, self.unfit = self._units(0)
        if self.pool is not None:
            reach = np.searchsorted(np.cumsum(first.counted(self.count)), float(self.pool), side="left") + 1
            records = first.record[:reach]
            self._records = np.sort(np.unique(records))
            # A clip that the pool's end falls into is in the pool as a whole.
            first = first[: int(np.searchsorted(np.cumsum(_starts(first)), len(self._records), side="right"))]
        self._made[0] = first

    @property
    def available(self) -> int:
        """What one pass over the pool holds."""
        return int(self._made[0].counted(self.count).sum())

    def holds(self, epochs: Fraction) -> Fraction:
        """What so many passes hold, the last one in proportion."""
        whole = int(epochs)
        parts = [(epoch, Fraction(1)) for epoch in range(whole)] + ([(whole, epochs - whole)] if epochs > whole else [])
        return sum((part * int(self.units(e).counted(self.count).sum()) for e, part in parts), Fraction(0))

    def units(self, epoch: int) -> Units:
        """All units of one pass, in draw order."""
        if epoch not in self._made:
            self._made[epoch], _ = self._units(epoch)
        return self._made[epoch]

    def take(self, wanted: int) -> tuple[list[Units], int]:
        """Prefixes of successive passes that hold `wanted`, and how much could be had when `max_epochs` is not enough."""
        limit = Fraction(repr(float(self.source.max_epochs)))
        taken: list[Units] = []
        left, epoch = wanted, 0
        while left > 0 and epoch < limit:
            whole = self.units(epoch)
            holds = int(whole.counted(self.count).sum())
            if holds == 0:
                break
            part = min(Fraction(1), limit - epoch)
            room = holds if part == 1 else int(part * holds)
            if left > room:
                taken.append(prefix(whole, room, self.count))
                left -= room
            else:
                taken.append(prefix(whole, left, self.count))
                left = 0
            epoch += 1
        return taken, wanted - left

    def _units(self, epoch: int) -> tuple[Units, dict[str, int]]:
        h = self.table.h[self._records]
        picks = self._records[_ascending(draw(h, self.seed, "order", epoch))]
        return units(self.table, picks, self.source, self.row, self.seed, epoch)


def _starts(u: Units) -> I64:
    """1 where a record begins."""
    return (np.diff(u.record, prepend=-1) != 0).astype(np.int64)


def _ascending(keys: NDArray[np.uint64]) -> I64:
    """argsort; the fast sort orders equal keys differently on different machines, so equal keys (1 in 10⁶ plans of 10 M) take the stable one."""
    out = np.argsort(keys)
    if len(keys) > 1 and (keys[out[1:]] == keys[out[:-1]]).any():
        return np.argsort(keys, kind="stable")
    return out


def prefix(u: Units, wanted: int, count: str, at_most: bool = False) -> Units:
    """The prefix whose count comes nearest to `wanted`, or nearest from below; its last text is cut to hit it exactly."""
    held = np.cumsum(u.counted(count))
    n = int(np.searchsorted(held, wanted, side="right"))  # units that fit whole
    if n == len(u):
        return u
    short = wanted - (int(held[n - 1]) if n else 0)
    if count != "records" and u.cut[n]:
        return _cut_last(u[: n + 1], short) if short else u[:n]
    over = int(held[n]) - wanted
    return u[: n + 1] if over < short and not at_most else u[:n]


def _cut_last(u: Units, tokens: int) -> Units:
    """The last unit, a text, keeps its first `tokens` ids and loses its end."""
    columns = {name: getattr(u, name).copy() for name in ("stop", "text", "loss", "structure")}
    columns["stop"][-1] = columns["text"][-1] = tokens
    columns["loss"][-1] = tokens if u.loss[-1] else 0
    columns["structure"][-1] -= 1
    return replace(u, **columns)


def held_out_units(table: Table, source: Source, row: int, held: HeldOut) -> Units:
    """The source's held-out units, at most `max_tokens` of them, by draws that no training seed touches."""
    picks = np.flatnonzero(table.held)
    picks = picks[_ascending(draw(table.h[picks], held.seed, "order", 0))]
    made, _ = units(table, picks, source, row, held.seed, 0)
    if held.max_tokens is None or int(made.payload.sum()) <= held.max_tokens:
        return made
    return prefix(made, held.max_tokens, "all", at_most=True)


def consumption(table: Table, u: Units, seed: int, epoch: int) -> I64:
    """The permutation in which the units of one pass are consumed: block-local, see above."""
    if not len(u):
        return np.zeros(0, np.int64)
    stored = np.argsort(u.record, kind="stable")  # a table lies in the order of its shards and rows
    record = u.record[stored]
    lead = np.diff(record, prepend=-1) != 0
    nbytes = np.where(lead, table.nbytes[record], 0)
    before = np.cumsum(nbytes) - nbytes
    shard = table.shard[record]
    new_shard = np.diff(shard, prepend=-1) != 0
    base = np.maximum.accumulate(np.where(new_shard, before, 0))
    block = (before - base) // BLOCK_BYTES
    opens = new_shard | (np.diff(block, prepend=-1) != 0)
    number = np.cumsum(opens) - 1
    place = np.empty(int(number[-1]) + 1, np.int64)
    place[_ascending(draw(table.h[record[opens]], seed, "block", epoch))] = np.arange(len(place))
    window = (place // BLOCKS_SHUFFLED_TOGETHER)[number].astype(np.uint64)
    key = (window << np.uint64(40)) | (draw(table.h[record], seed, "shuffle", epoch) >> np.uint64(24))
    return stored[np.argsort(key, kind="stable")]
