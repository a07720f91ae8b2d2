"""What is asked of a source's indexes: three sweeps over runs of its shards, each a pure function of one run, in this process or through the engine.

    survey   what each run holds: payload by draw bucket (the first 16 bits of the order draw), and which records may be used (bits)
    gather   the units of a few buckets, those in which a budget, a pool or a stage ends, since there single records decide
    spill    the units that are taken, sorted into the buckets by which they will be read back (`spill.py`)

A run is some hundred thousand records, so memory stays flat whatever a dataset holds. No run looks at another, so any number of workers gives
the same plan. `select.py` decides between the sweeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.dual import read_both
from mixtures.mixture import HeldOut, Source
from mixtures.placed import Placed, join, placed, read, shifted, take, write
from mixtures.table import I64, Bool, Table, read_table
from mixtures.units import Units, units
from pipelines.format.chance import draw
from pipelines.format.dataset import Dataset, open_cached

BUCKETS = 1 << 16
MEMORY = ""  # where units are kept, when not in a folder
RECORDS = 1 << 17  # in a run, and at least one shard


@dataclass(frozen=True, slots=True)
class Reading:
    """How one source is read. `number` is its place among the mixture's sources by name."""

    number: int
    source: Source
    fingerprints: tuple[str, ...]
    held: HeldOut | None
    row: int
    seed: int
    count: str

    @property
    def datasets(self) -> list[Dataset]:
        """One, or two of a dual encoder."""
        return [open_cached(p, f) for p, f in zip(self.source.paths, self.fingerprints, strict=True)]

    def runs(self) -> list[dict[str, Any]]:
        """Runs of neighbouring shards: {run, shards: [from, to)}."""
        out: list[dict[str, Any]] = []
        first = held = 0
        shards = self.datasets[0].shards
        for i, shard in enumerate(shards):
            held += shard.records
            if held >= RECORDS or i + 1 == len(shards):
                out.append({"run": len(out), "shards": (first, i + 1), "sides": None, "kept": None})
                first, held = i + 1, 0
        return out

    def table(self, item: dict[str, Any]) -> Table:
        """The records of a run; with `sides` known, groups, scores and tombstones are not read again."""
        args = [(d, self.held, self.source.where, self.source.captions is not None, range(*item["shards"]), item["sides"]) for d in self.datasets]
        return read_both(*args) if self.source.dual else read_table(*args[0])

    def seed_of(self, held: bool) -> int:
        """The seed of draws: training's, or that of the held-out split, which no training seed touches."""
        return self.held.seed if held and self.held is not None else self.seed

    def bucket(self, h: NDArray[np.uint64], epoch: int, held: bool = False) -> I64:
        """The bucket of each record's draw in a pass (or, with `held`, in the order of the held-out split)."""
        out: I64 = (draw(h, self.seed_of(held), "order", epoch) >> np.uint64(48)).astype(np.int64)
        return out

    def units(self, table: Table, picks: NDArray[Any], epoch: int, held: bool = False) -> tuple[Units, dict[str, int]]:
        """Units of `picks`, and the records that fit nowhere by reason."""
        return units(table, picks, self.source, self.row, self.seed_of(held), epoch)

    def placed(self, table: Table, picks: NDArray[Any], epoch: int, held: bool = False) -> tuple[Placed, NDArray[np.uint8]]:
        """Units of `picks`, and the side array of their loss bits."""
        return placed(table, self.units(table, picks, epoch, held)[0], self.source, self.number, epoch)


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """Which usable records a pass may use: those of a pool (a prefix of the first pass's order), those of another plan (sorted hashes)."""

    pool_limit: int = BUCKETS
    pool_exact: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # `place`s
    chosen: NDArray[np.uint64] | None = None

    def keep(self, reading: Reading, of: Any) -> Bool:
        """Of a table's records, or of units (by `h`, `shard`, `row`), those that may be used."""
        h, shard, row = (np.asarray(of[k] if isinstance(of, np.ndarray) else getattr(of, k)) for k in ("h", "shard", "row"))
        out = np.ones(len(h), np.bool_)
        if self.pool_limit < BUCKETS:
            out &= (reading.bucket(h, 0) < self.pool_limit) | np.isin(place(shard, row), self.pool_exact)
        if self.chosen is not None:
            out &= _among(h, self.chosen)
        return out


def place(shard: NDArray[Any], row: NDArray[Any]) -> I64:
    """One integer for where a record lies."""
    out: I64 = (shard.astype(np.int64) << 32) | row
    return out


def _among(h: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Bool:
    if not len(wanted):
        return np.zeros(len(h), np.bool_)
    at = np.minimum(np.searchsorted(wanted, h), len(wanted) - 1)
    out: Bool = wanted[at] == h
    return out


@dataclass(slots=True, eq=False)
class Surveyed:
    """What a source holds for one pass; sums over runs."""

    counted: I64  # [BUCKETS] in the budget's unit
    held: I64  # [BUCKETS] payload of the held-out split
    records: int = 0
    matched: int = 0  # records with units
    dropped: Counter[str] = field(default_factory=Counter)
    unfit: Counter[str] = field(default_factory=Counter)
    data: str = ""

    @property
    def holds(self) -> int:
        return int(self.counted.sum())

    def add(self, other: Surveyed) -> None:
        """Sum up; `other` may be of another run."""
        self.counted += other.counted
        self.held += other.held
        self.records, self.matched, self.data = self.records + other.records, self.matched + other.matched, other.data
        self.dropped.update(other.dropped)
        self.unfit.update(other.unfit)


def nothing() -> Surveyed:
    """The sum over no run."""
    return Surveyed(np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, np.int64))


def survey(item: dict[str, Any], reading: Reading, within: Within, epoch: int, count: str, keep: str | None) -> tuple[int, Surveyed, dict[str, Any]]:
    """(run, what it holds in this pass, what of it to remember: its `sides`, which records are usable and which held out, packed; with `keep`,
    its units of the first pass, in memory or in that folder, so that no index is opened again for them)."""
    table = reading.table(item)
    u, unfit = reading.units(table, np.flatnonzero(table.usable & within.keep(reading, table)), epoch)
    out, known = nothing(), {**item, "sides": (np.packbits(table.usable), np.packbits(table.held))}
    out.counted = _sums(reading.bucket(table.h[u.record], epoch), u.counted(count))
    if item["sides"] is None and table.held.any():
        h, _ = reading.units(table, np.flatnonzero(table.held), 0, held=True)
        out.held = _sums(reading.bucket(table.h[h.record], 0, held=True), h.counted("all"))
    else:
        h = u[:0]
    if keep is not None:
        known["kept"] = _kept(reading, table, u, h, None if keep == MEMORY else f"{keep}/{reading.number:05d}-{item['run']:06d}.kept")
    out.records, out.data = len(table), table.data
    out.matched = int(np.count_nonzero(np.diff(u.record, prepend=-1)))
    out.dropped.update(table.dropped)
    out.unfit.update(unfit)
    return item["run"], out, known


def _kept(reading: Reading, table: Table, train: Units, held: Units, name: str | None) -> tuple[Any, NDArray[np.uint8]]:
    """Units of the first pass and of the held-out split (`stage` −1), with the side array of their loss bits."""
    u, side = placed(table, train, reading.source, reading.number, 0)
    h, more = placed(table, held, reading.source, reading.number, 0)
    h["stage"] = -1
    both = join([u, shifted(h, len(side))])
    return write(both, name), np.concatenate([side, more])


def units_of(
    item: dict[str, Any], reading: Reading, within: Within, epoch: int, held: bool, inside: Callable[[I64], Bool]
) -> tuple[Placed, NDArray[np.uint8]]:
    """A run's units of a pass (or of the held-out split) that may be used and whose bucket is `inside`, in written order; and their side array."""
    if item["kept"] is not None and epoch == 0:
        data, side = item["kept"]
        u = read(data)
        mine = u["stage"] == -1 if held else (u["stage"] == 0) & within.keep(reading, u)
        u = take(u, mine & inside(reading.bucket(u["h"], epoch, held)))
        u["stage"] = 0
        return u, side
    table = reading.table(item)
    mine = table.held if held else table.usable & within.keep(reading, table)
    return reading.placed(table, np.flatnonzero(mine & inside(reading.bucket(table.h, epoch, held))), epoch, held)


def gather(item: dict[str, Any], reading: Reading, within: Within, epoch: int, buckets: list[int], held: bool) -> tuple[int, Placed]:
    """(run, the units of its records in these buckets, `key` their order draw)."""
    u, _ = units_of(item, reading, within, epoch, held, lambda bucket: np.isin(bucket, buckets))
    u["key"] = draw(u["h"], reading.seed_of(held), "order", epoch)
    return item["run"], u


def leads(u: Placed) -> Bool:
    """Where a record begins, among units in written order."""
    at = place(u["shard"], u["row"])
    out: Bool = np.diff(at, prepend=-1) != 0
    return out


def _sums(bucket: I64, weight: I64) -> I64:
    """Sums by bucket; in float64, which is exact up to 2⁵³ tokens."""
    return np.bincount(bucket, weights=weight, minlength=BUCKETS).astype(np.int64)


def sweep(job: Any, fn: Callable[..., Any], items: list[dict[str, Any]], **given: Any) -> Iterator[Any]:
    """The results of every run: in this process one after another, or through the engine's map, and then in no particular order."""
    if job is None or getattr(job, "where", "local") != "ray":
        for item in list(items):
            yield fn(item, **given)
    else:
        yield from job.map([partial(fn, **given)], list(items))
