"""Which records a budget takes: successive passes over a source, each in an order of its own, and where in that order the budget ends.

    selection     ascending draw(h, seed, order, epoch). A budget takes a prefix of it, so that the 25B set of a source lies inside its 50B set
                  and a grid compares amounts, not draws. A prefix ends where the count comes nearest to the budget; a text is cut there, so that
                  text budgets are exact to the token.

Nothing is sorted as a whole. A survey sums what each of 65,536 buckets of the draw holds; the bucket in which a budget (a pool, a stage) ends is
fetched and looked at unit by unit, all others are taken or left as they are. What comes out is a list of `Taken`, a description of some kilobytes
that every run of shards can be asked with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.placed import Placed, counted, join, none, payload
from mixtures.spill import Taken
from mixtures.sweep import BUCKETS, Reading, Surveyed, Within, gather, nothing, place, survey, sweep


@dataclass(slots=True, eq=False)
class Passes:
    """The passes over one source's pool, surveyed when they are first needed. `available` is what one pass holds, in the budget's unit."""

    reading: Reading
    job: Any = None
    pool: Fraction | None = None
    chosen: dict[int, NDArray[np.uint64]] | None = None  # by pass: hashes of the records to take, instead of a budget
    keep: str | None = None  # where the first pass's units are kept between sweeps: MEMORY, a folder, or nowhere
    items: list[dict[str, Any]] = field(init=False)
    first: Surveyed = field(init=False)
    held: Taken | None = None
    _within: Within = field(default_factory=Within)
    _made: dict[int, Surveyed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.items = self.reading.runs()
        self.first = self._survey(0, Within(), keep=self.keep)
        if self.pool is not None:
            self._made[0] = self._pool(self.first, self.pool)
        elif self.chosen is None:
            self._made[0] = self.first
        if self.reading.held is not None and self.first.held.any():
            self.held = self._held_out(self.reading.held.max_tokens)

    @property
    def unfit(self) -> dict[str, int]:
        """Records that are not trained on, by reason."""
        return {k: n for k, n in {**self.first.dropped, **self.first.unfit}.items() if n or k == "held_out"}

    @property
    def available(self) -> int:
        """What one pass over the pool holds."""
        return self._holds(0).holds

    def holds(self, epochs: Fraction) -> Fraction:
        """What so many passes hold, the last one in proportion."""
        whole = int(epochs)
        parts = [(epoch, Fraction(1)) for epoch in range(whole)] + ([(whole, epochs - whole)] if epochs > whole else [])
        return sum((part * self._holds(e).holds for e, part in parts), Fraction(0))

    def enough(self, asked: int) -> int:
        """Passes that hold so much. They differ where captions are drawn anew in each; beyond 16 the smallest of those stands for the rest."""
        held, least = 0, self.available
        for epoch in range(16):
            if held >= asked:
                return epoch
            held += (one := self._holds(epoch).holds if self.first.data == "image-text" else self.available)
            least = min(least, one)
        return 16 + (math.ceil((asked - held) / least) if least else 0) if held < asked else 16

    def take(self, asked: list[int]) -> tuple[list[Taken], int]:
        """Prefixes of successive passes that hold what the stages ask for, and how much could be had when `max_epochs` is not enough."""
        limit, wanted = Fraction(repr(float(self.reading.source.max_epochs))), sum(asked)
        ends = list(accumulate(asked))
        taken: list[Taken] = []
        left, epoch, before = wanted, 0, 0
        while left > 0 and epoch < limit:
            holds = self._holds(epoch).holds
            if holds == 0:
                break
            part = min(Fraction(1), limit - epoch)
            room = holds if part == 1 else int(part * holds)
            one, held = self._prefix(epoch, min(left, room), before, ends)
            taken.append(one)
            before += held
            left -= min(left, room)
            epoch += 1
        return taken, wanted - left

    def take_chosen(self, payloads: dict[int, int]) -> tuple[list[Taken], dict[int, tuple[int, int]]]:
        """What another plan took: all of each pass's records, or, of texts, a prefix of so many tokens. Also, by pass, how many of the records are
        here and how many were wanted."""
        assert self.chosen is not None
        taken, found = [], {}
        for epoch in range(max(self.chosen, default=-1) + 1):
            within = replace(self._within, chosen=self.chosen.get(epoch, np.zeros(0, np.uint64)))
            made = self._survey(epoch, within, "all" if self._texts else None)
            found[epoch] = (made.matched, len(self.chosen.get(epoch, ())))
            if self._texts:
                self._made[epoch] = made
                taken.append(self._prefix(epoch, payloads.get(epoch, 0), 0, [1 << 62], within, "all")[0])
            else:
                taken.append(Taken(epoch, within))
        return taken, found

    def units(self, taken: list[Taken]) -> int:
        """About how many units, at most."""
        return sum(self._made.get(t.epoch, self.first).matched for t in taken)

    @property
    def _texts(self) -> bool:
        return self.first.data == "text"

    def _holds(self, epoch: int) -> Surveyed:
        if epoch not in self._made:
            self._made[epoch] = self._survey(epoch, self._within)
        return self._made[epoch]

    def _survey(self, epoch: int, within: Within, count: str | None = None, keep: str | None = None) -> Surveyed:
        out, count = nothing(), count or self.reading.count
        for run, one, known in sweep(self.job, survey, self.items, reading=self.reading, within=within, epoch=epoch, count=count, keep=keep):
            out.add(one)
            self.items[run] = known
        return out

    def _gather(self, epoch: int, buckets: list[int], within: Within, held: bool = False) -> Placed:
        """All units of some buckets in draw order."""
        given: dict[str, Any] = {"reading": self.reading, "within": within, "epoch": epoch, "buckets": buckets, "held": held}
        u = join([units for _, units in sorted(sweep(self.job, gather, self.items, **given), key=lambda found: found[0])])
        return u[np.argsort(u["key"], kind="stable")]

    def _pool(self, first: Surveyed, pool: Fraction) -> Surveyed:
        """The first pass when only a prefix of its records may be used. A record that the pool's end falls into is in the pool as a whole."""
        held = np.cumsum(first.counted)
        b = int(np.searchsorted(held, float(pool), side="left"))
        if b == BUCKETS:
            return first
        u = self._gather(0, [b], Within())
        n = np.cumsum(counted(u, self.reading.count)) + (int(held[b - 1]) if b else 0)
        reach = int(np.searchsorted(n, float(pool), side="left")) + 1
        mine = np.isin(place(u["shard"], u["row"]), place(u["shard"][:reach], u["row"][:reach]))
        self._within = Within(b, np.unique(place(u["shard"][mine], u["row"][mine])))
        sums = first.counted.copy()
        sums[b] = int(counted(u[mine], self.reading.count).sum())
        sums[b + 1 :] = 0
        return replace(first, counted=sums)

    def _held_out(self, most: int | None) -> Taken:
        """The held-out units, at most so many tokens of them."""
        sums = np.cumsum(self.first.held)
        if most is None or int(sums[-1]) <= most:
            return Taken(0, Within(), held=True)
        b = int(np.searchsorted(sums, most, side="right"))
        u = prefix(self._gather(0, [b], Within(), held=True), most - (int(sums[b - 1]) if b else 0), "all", at_most=True)
        return Taken(0, Within(), b, exact=(b,), exactly=u, held=True)

    def _prefix(
        self, epoch: int, wanted: int, before: int, ends: list[int], within: Within | None = None, count: str | None = None
    ) -> tuple[Taken, int]:
        """The prefix of a pass that holds `wanted`, when `before` was taken by earlier ones and stages end at `ends`; and what it holds."""
        within, count = within or self._within, count or self.reading.count
        sums = self._holds(epoch).counted
        after = np.cumsum(sums)
        b = int(np.searchsorted(after, wanted, side="right")) if wanted < int(after[-1]) else BUCKETS
        start = before + after - sums
        inside = [int(i) for end in ends[:-1] for i in np.flatnonzero((start < end) & (end <= before + after))]
        exact = sorted({i for i in [b, *inside] if i < BUCKETS and i <= b})
        stages = None
        if len(ends) > 1:
            stages = np.minimum(np.searchsorted(ends, start, side="right"), len(ends) - 1).astype(np.int16)
        parts, held = [none()], int(after[b - 1]) if b else 0
        if exact:
            u = self._gather(epoch, exact, within)
            bucket = self.reading.bucket(u["h"], epoch)
            for i in exact:
                mine = u[bucket == i]
                if i == b:
                    mine = prefix(mine, wanted - held, count)
                    held += int(counted(mine, count).sum())
                n = counted(mine, count)
                middle = int(start[i]) + np.cumsum(n) - n / 2
                mine["stage"] = np.minimum(np.searchsorted(ends, middle, side="right"), len(ends) - 1)
                parts.append(mine)
        return Taken(epoch, within, b, stages, tuple(exact), join(parts)), held


def prefix(u: Placed, wanted: int, count: str, at_most: bool = False) -> Placed:
    """The prefix whose count comes nearest to `wanted`, or nearest from below; its last text is cut to hit it exactly."""
    held = np.cumsum(counted(u, count))
    n = int(np.searchsorted(held, wanted, side="right"))  # units that fit whole
    if n == len(u):
        return u
    short = wanted - (int(held[n - 1]) if n else 0)
    if count != "records" and u["cut"][n]:
        return _cut_last(u[: n + 1].copy(), short) if short else u[:n]
    over = int(held[n]) - wanted
    return u[: n + 1] if over < short and not at_most else u[:n]


def _cut_last(u: Placed, tokens: int) -> Placed:
    """The last unit, a text, keeps its first `tokens` ids and loses its end."""
    last = u[-1:]
    last["loss"] = np.where(last["loss"] > 0, tokens, 0)
    last["stop"] = last["text"] = tokens
    last["structure"] -= 1
    assert (payload(last) == tokens).all()
    return u
