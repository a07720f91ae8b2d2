"""Units in an order of their own, whatever their number: an external sort over `UNIT` records.

A run of shards writes its units sorted into buckets by the first bits of `key`; reading goes bucket by bucket, through all runs in their order, and
sorts each in memory. So memory holds one bucket of each source, and the disk some 90 bytes a unit. What is small stays in memory: the same
code, without files. The order depends on keys and on the order of shards, never on how many runs or buckets there are.

    training    key = draw on the first record of the unit's block (a run of one shard's rows, ≥ 4 MB of what was taken). Blocks are read in the
                order of their draws, 16 at a time, and the records of 16 are shuffled: a ranged read brings many samples, neighbours are strangers
    held-out    key = the order draw: the selection's own order
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.placed import Placed, counted, join, none, payload, read, shifted, take, write
from mixtures.sweep import BUCKETS, Reading, Within, leads, place, units_of
from mixtures.table import I64
from mixtures.units import expand
from pipelines.format.chance import draw

BLOCK_BYTES = 4 << 20
BLOCKS_SHUFFLED_TOGETHER = 16
UNITS_IN_MEMORY = 10 << 20  # records of one plan: 1 GB; beyond that they are spilled
UNITS_IN_A_BUCKET = 1 << 17

Key = tuple[int, int]  # (stage, epoch); HELD for the held-out split
HELD: Key = (-1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """What a budget takes of one pass: all units of the buckets below `limit`, at the stage that `stages` says for their bucket, apart from the
    buckets `exact`, of which only the units of `exactly` are taken, as they stand there (stage, and where the last text is cut)."""

    epoch: int
    within: Within
    limit: int = BUCKETS
    stages: NDArray[np.int16] | None = None
    exact: tuple[int, ...] = ()
    exactly: Placed = field(default_factory=none)
    held: bool = False

    def inside(self, bucket: I64) -> NDArray[np.bool_]:
        """Which buckets there is something to take of."""
        return (bucket < self.limit) | np.isin(bucket, self.exact) if self.exact else bucket < self.limit


@dataclass(slots=True, eq=False)
class Spilled:
    """What one run gave: per key its chunk (a file or an array, and the bucket edges in units) and counts; `side` are loss bits beyond masks."""

    run: int
    chunks: dict[Key, tuple[Any, I64]]
    side: NDArray[np.uint8]
    facts: dict[Key, Counter[str]]
    records: int  # distinct, in training


def spill(item: dict[str, Any], reading: Reading, taken: list[Taken], count: str, buckets: int, folder: str | None) -> tuple[int, Spilled]:
    """Take one run's units, key them, and put them into buckets: files of `folder`, or arrays where that is None."""
    out = Spilled(item["run"], {}, np.zeros(0, np.uint8), {}, 0)
    seen: list[NDArray[np.int64]] = []
    sides: list[NDArray[np.uint8]] = []
    for t in taken:
        u, side = units_of(item, reading, t.within, t.epoch, t.held, t.inside)
        shifted(u, sum(len(s) for s in sides))
        sides.append(side)
        if t.stages is not None:
            u["stage"] = t.stages[reading.bucket(u["h"], t.epoch, t.held)]
        if t.exact:
            u = _exactly(u, np.isin(reading.bucket(u["h"], t.epoch, t.held), t.exact), t.exactly)
        if not t.held:
            seen.append(place(u["shard"], u["row"])[leads(u)])
        for stage in np.unique(u["stage"]).tolist() if t.stages is not None else [0] if len(u) else []:
            part = take(u, u["stage"] == stage) if t.stages is not None else u
            part["key"] = draw(part["h"], reading.seed_of(True), "order", 0) if t.held else _blocks(part, reading.seed)
            key = HELD if t.held else (stage, t.epoch)
            facts = {"units": len(part), "payload": int(payload(part).sum()), "counted": int(counted(part, count).sum())}
            out.facts[key] = Counter({**facts, "records": int(np.count_nonzero(leads(part)))})
            name = None if folder is None else f"{folder}/{reading.number:05d}-{item['run']:06d}-{stage}-{t.epoch}-{int(t.held)}.units"
            out.chunks[key] = _chunk(part, buckets, name)
    out.side = np.concatenate([out.side, *sides])
    out.records = len(np.unique(np.concatenate(seen))) if len(seen) > 1 else sum(len(s) for s in seen)
    return item["run"], out


def _exactly(u: Placed, decided: NDArray[np.bool_], wanted: Placed) -> Placed:
    """Units outside the decided buckets as they are, and of those inside the wanted ones, cut and staged as said."""
    places = {(s, r, f): i for i, (s, r, f) in enumerate(zip(*(wanted[k].tolist() for k in ("shard", "row", "first")), strict=True))}
    keep = ~decided
    for i in np.flatnonzero(decided).tolist():
        found = places.get((int(u["shard"][i]), int(u["row"][i]), int(u["first"][i])))
        if found is not None:
            keep[i] = True
            for name in ("stage", "stop", "text", "loss", "structure"):
                u[name][i] = wanted[name][found]
    return take(u, keep)


def _blocks(u: Placed, seed: int) -> NDArray[np.uint64]:
    """The key of each unit (in written order), and in `opens` where a block begins."""
    nbytes = np.where(leads(u), u["nbytes"], 0)
    before = np.cumsum(nbytes) - nbytes
    new_shard = np.diff(u["shard"], prepend=-1) != 0
    base = np.maximum.accumulate(np.where(new_shard, before, 0))
    block = (before - base) // BLOCK_BYTES
    u["opens"] = new_shard | (np.diff(block, prepend=-1) != 0)
    keys = draw(u["h"][u["opens"]], seed, "block", int(u["epoch"][0]))
    out: NDArray[np.uint64] = keys[np.cumsum(u["opens"]) - 1]
    return out


def _chunk(u: Placed, buckets: int, name: str | None) -> tuple[Any, I64]:
    bits = np.uint64(buckets.bit_length() - 1)
    bucket = np.zeros(len(u), np.int64) if buckets == 1 else (u["key"] >> (np.uint64(64) - bits)).astype(np.int64)
    edges = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=buckets))])
    u = take(u, np.argsort(bucket.astype(np.uint16), kind="stable")) if buckets > 1 else u  # by radix: buckets are at most 65,536
    return write(u, name), edges


def ascending(keys: NDArray[np.uint64]) -> I64:
    """argsort; the fast sort orders equal keys differently on different machines, so where there are some the stable one is taken."""
    out = np.argsort(keys)
    if len(keys) > 1 and (keys[out[1:]] == keys[out[:-1]]).any():
        return np.argsort(keys, kind="stable")
    return out


def _by_block(u: Placed) -> I64:
    """The stable order by `key`, of units whose blocks lie together: only blocks are sorted."""
    opens = np.flatnonzero(u["opens"])
    order = ascending(u["key"][opens])
    stops = np.append(opens[1:], len(u))
    return expand(opens[order], stops[order])[0]


@dataclass(slots=True, eq=False)
class Spill:
    """All runs of one source."""

    buckets: int
    runs: list[tuple[Spilled, int]] = field(default_factory=list)  # with the place of their side arrays
    side: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    facts: dict[Key, Counter[str]] = field(default_factory=dict)
    records: int = 0

    def add(self, s: Spilled) -> None:
        """The next run."""
        self.runs.append((s, len(self.side)))
        self.side = np.concatenate([self.side, s.side]) if len(s.side) else self.side
        self.records += s.records
        for key, facts in s.facts.items():
            self.facts.setdefault(key, Counter()).update(facts)

    def of(self, what: str, keys: list[Key] | None = None) -> int:
        """A sum over these keys (default: all of training)."""
        return sum(f[what] for k, f in self.facts.items() if (k in keys if keys is not None else k != HELD))

    def bucket(self, key: Key, i: int, before: Placed | None = None) -> Placed:
        """The units of one bucket, run after run, behind those `before`."""
        parts = [before] if before is not None else []
        for s, base in self.runs:
            if key not in s.chunks:
                continue
            data, edges = s.chunks[key]
            a, b = int(edges[i]), int(edges[i + 1])
            if a == b:
                continue
            part = read(data, a, b)
            parts.append(shifted(part.copy(), base) if base and len(self.side) else part)
        return join(parts)

    def blocks(self, key: Key, seed: int) -> Iterator[Placed]:
        """The units of one stage and pass in the order of consumption."""
        rank, carry, before = 0, none(), np.zeros(0, np.int64)  # units of a window of blocks that is not whole yet, and their windows
        for i in range(self.buckets):
            both = self.bucket(key, i, carry)
            u = both[len(carry) :]
            order = _by_block(u)
            opens = u["opens"][order]
            windows = (rank + np.cumsum(opens) - 1) // BLOCKS_SHUFFLED_TOGETHER
            rank += int(np.count_nonzero(opens))
            whole = rank // BLOCKS_SHUFFLED_TOGETHER if i + 1 < self.buckets else rank
            if len(before) and before[0] >= whole:
                carry, before = join([carry, take(u, order)]), np.concatenate([before, windows])
                continue
            done = int(np.searchsorted(windows, whole))
            at = np.concatenate([np.arange(len(carry)), len(carry) + order[:done]])
            if len(at):
                shuffle = draw(both["h"][at], seed, "shuffle", int(both["epoch"][0])) >> np.uint64(24)
                window = np.concatenate([before, windows[:done]]).astype(np.uint64)
                yield take(both, at[ascending((window << np.uint64(40)) | shuffle)])
            carry, before = take(u, order[done:]), windows[done:]

    def sorted(self, key: Key) -> Iterator[Placed]:
        """The units by their keys alone."""
        for i in range(self.buckets):
            u = self.bucket(key, i)
            if len(u):
                yield take(u, ascending(np.ascontiguousarray(u["key"])))
