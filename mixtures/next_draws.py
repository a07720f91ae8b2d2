"""What a source would have given next: the units that follow those of a plan in the order in which budgets draw.

In: a plan, one of its sources, and where its budget ended (the last pass and the greatest draw in it). Out: units in draw order, with the number of
the first tombstone that names their record. The same rules hold as for the plan's own: held-out groups, `where`, `pool`, `max_epochs`. Counts are
those of the plan's day, as if nothing had been forgotten since, so tombstones that come later change nothing of what was drawn before them.

One column (`h`) of all indexes is read, 8 bytes a record; whole rows only of the few records that come next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixtures import where
from mixtures.dual import read_both
from mixtures.mixture import Mixture
from mixtures.packing import shortest_piece
from mixtures.placed import counted, loss_lists, placed
from mixtures.span import Span
from mixtures.table import I64, Bool, Table, read_table
from mixtures.units import units
from pipelines.format.chance import draw, held_out
from pipelines.format.dataset import Dataset
from pipelines.format.document import exact
from pipelines.format.forgotten import NEVER, named_by

LOOK = 64  # units that are looked at for one gap: what is too long for it waits for the next one
FIRST_READ, MOST_READ = 32, 4096  # records whose rows are read at a time, doubling


@dataclass(frozen=True, slots=True)
class Drawn:
    """A unit that may stand in a row: its span, positions, payload, and when (by which tombstone) its record was forgotten itself."""

    span: Span
    id: str
    length: int
    payload: int
    cut: bool
    forgotten: int

    def head(self, room: int) -> Drawn:
        """The beginning of a text that has `room` positions. It has no EOS, so at least one id stays behind."""
        begins = int(self.span.first == 0 and self.span.start == 0)
        n = min(room - begins, self.payload - 1)
        span = Span(**{**{k: getattr(self.span, k) for k in Span.__slots__}, "stop": self.span.start + n})
        return Drawn(span, self.id, begins + n, n, self.cut, self.forgotten)


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a source's budget ended: the last pass, the greatest draw that it used in it, and the greatest of the first pass."""

    epoch: int
    last: int
    last_of_first: int


class NextDraws:
    """The units of one source that a plan has not used, in order. `take` gives the next one that fits."""

    def __init__(self, plan: Any, name: str, read: list[tuple[Dataset, pa.Table | None]], h: list[NDArray[np.uint64]], ended: Ended) -> None:
        """`read` is one dataset, or two of a dual encoder, with their tombstones; `h` those of every record, by shard of the first."""
        self.mixture = Mixture.model_validate(plan.card["mixture"])
        self.source, self.number = self.mixture.sources[name], plan.sources.index(name)
        self.card = plan.card["sources"][name]
        self.datasets, self.stones = [d for d, _ in read], [stones for _, stones in read]
        self.h, self.start = np.concatenate([np.zeros(0, np.uint64), *h]), np.cumsum([0, *map(len, h)])
        self._waiting: list[Drawn] = []
        self._coming = self._drawn(ended)

    def take(self, room: int, forgotten: int) -> Drawn | None:
        """The next unit of at most `room` positions, a text cut to fit; None when none of the next few does. Records that were forgotten by the
        tombstone number `forgotten` or before are passed over for good."""
        i = 0
        while i < LOOK:
            if i == len(self._waiting):
                more = next(self._coming, None)
                if more is None:
                    return None
                self._waiting += more
                continue
            drawn = self._waiting[i]
            if drawn.forgotten <= forgotten:
                del self._waiting[i]
            elif drawn.length <= room:
                return self._waiting.pop(i)
            elif drawn.cut and room >= shortest_piece(self.mixture.sequence_length):
                return self._waiting.pop(i).head(room)
            else:
                i += 1
        return None

    def _drawn(self, ended: Ended) -> Iterator[list[Drawn]]:
        """Runs of units: the rest of the last pass, then further passes while `max_epochs` allows."""
        scale, have = exact(self.mixture.scale), int(self.card["available"])
        limit = Fraction(repr(float(self.source.max_epochs)))
        pool = None if self.source.pool is None else self.source.pool * scale
        edge = None if pool is None or ended.epoch == 0 else ended.last_of_first  # the last draw of the first pass that lies in the pool
        epoch, after = ended.epoch, ended.last
        while epoch < limit:
            used = max(int(self.card["taken"]) - epoch * have, 0) if epoch == ended.epoch else 0
            left = None if limit - epoch >= 1 else int((limit - epoch) * have) - used
            room = None if pool is None or edge is not None else pool - used
            last = after
            for chunk in self._pass(epoch, after, edge):
                units, counts, keys = chunk
                n = len(units)
                if room is not None:  # a record that the pool's end falls into is in it as a whole
                    n = int(np.searchsorted(np.cumsum(counts) - counts, float(room), side="left"))
                    room -= int(counts[:n].sum())
                if left is not None:
                    n = min(n, int(np.searchsorted(np.cumsum(counts), left, side="right")))
                    left -= int(counts[:n].sum())
                last = int(keys[n - 1]) if n else last
                yield units[:n]
                if n < len(units):
                    break
            if pool is not None and edge is None:
                edge = last
            epoch, after = epoch + 1, -1

    def _pass(self, epoch: int, after: int, edge: int | None) -> Iterator[tuple[list[Drawn], I64, NDArray[np.uint64]]]:
        """(units, what the budget counts of each, their draws) of records whose draw is greater than `after`, in order."""
        keys = draw(self.h, self.mixture.seed, "order", epoch)
        may = np.ones(len(keys), np.bool_) if after < 0 else keys > np.uint64(after)
        if edge is not None:
            may &= draw(self.h, self.mixture.seed, "order", 0) <= np.uint64(max(edge, 0))
        places, size = np.flatnonzero(may), FIRST_READ
        while len(places):
            n = min(size, len(places))
            first = np.argpartition(keys[places], n - 1)[:n] if n < len(places) else np.arange(n)
            picked = places[first]
            picked = picked[np.argsort(keys[picked], kind="stable")]
            places = np.delete(places, first)
            size = min(2 * size, MOST_READ)
            yield self._units(picked, keys[picked], epoch)

    def _units(self, picked: I64, keys: NDArray[np.uint64], epoch: int) -> tuple[list[Drawn], I64, NDArray[np.uint64]]:
        """The units of some records, given as numbers in the dataset, and in that order."""
        shard = np.searchsorted(self.start, picked, side="right") - 1
        row = picked - self.start[shard]
        rows = [_rows(d, shard, row) for d in self.datasets]
        forgotten = np.min([named_by(r, s) if s is not None else np.full(len(picked), NEVER) for r, s in zip(rows, self.stones, strict=True)], axis=0)
        table = self._table(rows)
        u, _ = units(table, np.flatnonzero(table.usable), self.source, self.mixture.sequence_length, self.mixture.seed, epoch)
        flat, side = placed(table, u, self.source, self.number, epoch)
        edges, bits = loss_lists(flat, {self.number: side})
        ids = rows[0]["id"].to_pylist()
        out = []
        for i, (unit, r) in enumerate(zip(flat, u.record.tolist(), strict=True)):
            plain = {k: int(unit[k]) for k in ("first", "count", "caption", "start", "stop")}
            loss = tuple(bits[edges[i] : edges[i + 1]].tolist())
            where_it_lies = {"dataset": self.card["dataset"], "source": self.number, "shard": int(shard[r]), "row": int(row[r])}
            span = Span(**where_it_lies, **plain, image_first=bool(unit["image_first"]), loss=loss, epoch=epoch)
            length = span.payload + int(unit["structure"])
            out.append(Drawn(span, ids[r], length, span.payload, bool(unit["cut"]), int(forgotten[r])))
        return out, counted(flat, self.mixture.count), keys[u.record]

    def _table(self, rows: list[pa.Table]) -> Table:
        held = self.mixture.held_out
        out = np.zeros(rows[0].num_rows, np.bool_) if held is None else held_out(rows[0]["group"].to_pylist(), held.fraction, held.seed)
        keep: list[Bool] = [~out, *(k for r in rows if (k := where.keep(r, self.source.where)) is not None)]
        sides = (np.packbits(np.all(keep, axis=0)), np.packbits(out))
        few = [_Few(d, r) for d, r in zip(self.datasets, rows, strict=True)]
        asked: list[Any] = [(f, held, self.source.where, self.source.captions is not None, range(1), sides) for f in few]
        return read_both(*asked) if self.source.dual else read_table(*asked[0])


class _Few:
    """Some rows of a dataset's indexes, as a dataset of one shard to whoever reads indexes."""

    def __init__(self, dataset: Dataset, rows: pa.Table) -> None:
        self.path, self.data, self.card = dataset.path, dataset.data, dataset.card
        self.shards = [None]
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="none")
        self._file = sink.getvalue()  # a file in memory, so that single leaves of nested columns can be asked for as ever

    def index(self, i: int, columns: list[str] | None = None) -> pa.Table:
        return pq.ParquetFile(pa.BufferReader(self._file)).read(columns=columns, use_threads=False)

    def release(self, i: int) -> None:
        return None


def _rows(dataset: Dataset, shard: I64, row: I64) -> pa.Table:
    """Rows of the indexes, in the order asked for; each shard is opened once."""
    tables, at = [], []
    for i in np.unique(shard).tolist():
        mine = np.flatnonzero(shard == i)
        tables.append(dataset.index(i).take(row[mine]))
        dataset.release(i)
        at.append(mine)
    order = np.argsort(np.concatenate(at), kind="stable")
    return pa.concat_tables(tables).take(order)
