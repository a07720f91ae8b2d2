"""The samples of a plan or of an encoded dataset, for any trainer: views of mapped files, in order, from any position.

    from mixtures.samples import Samples

    for sample, position in Samples("out/plans/example").read():
        sample.source, sample.id, sample.arrays, sample.forms      # "pairs", "137b…", (uint16 [256, 1152], uint16 [17]), (Form…, Form…)

A sample of a plan is one span, in order of consumption: the ids and latents that the span takes of its record, as they are stored, in the order
in which they are shown. A sample of a dataset is a record, in written order. Nothing is copied or decoded: `decode(array, form)` makes float32 of
latents. Structure tokens (BOS, BOI …) are not stored and so not here; `trainer.torch_dataset` gives batches that have them.

The position is one integer, and reading from it gives every sample at or after it: for a dataset the row; for a plan the sequence times 2^20 plus
the place of the span in it (`position_of(seq)`), so that it opens at once wherever it is. Ranks share positions: rank r of W takes the sequences
(or rows) that C8's steps give it, so a position at the beginning of a step is right for any other W.

Cost: everything that a sample needs is gathered a few thousand at a time into plain lists, and a view is one slice: 0.5-0.8 µs for a sample of one
array, 0.3 µs each more. A file is hashed at its first use on a machine (`verify`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixtures.arrays import I64, Arrays, Form, Group, decode
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, RowFile, row_path
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card

__all__ = ["Form", "Sample", "Samples", "decode", "position_of"]
SPANS = 1 << 20  # places of one sequence in a position; a sequence has at most 2^20 positions and a span at least one
FIRST, LARGEST = 64, 32_768  # samples whose columns are gathered at a time: few before the first one, then eight times as many each time
RUN = 128  # samples that exist at a time: their views stay in the processor's cache


class Sample(NamedTuple):
    """`source` of the mixture (of a dataset: of the record), the record's id, its arrays and what they are."""

    source: str
    id: str
    arrays: tuple[NDArray[Any], ...]
    forms: tuple[Form, ...]


_made = partial(tuple.__new__, Sample)  # half the time of Sample._make


def position_of(sequence: int) -> int:
    """Where a sequence of a plan begins."""
    return sequence * SPANS


@dataclass(frozen=True, slots=True, eq=False)
class _Pieces:
    """Columns over samples: source names and ids (objects), first array (one more); and over arrays: file, first element, last element, form."""

    sources: NDArray[Any]
    ids: NDArray[Any]
    first: I64
    file: I64
    begin: I64
    end: I64
    form: I64

    def run(self, start: int, stop: int) -> _Pieces:
        """Those of samples start:stop."""
        first = self.first[start : stop + 1]
        of = slice(int(first[0]), int(first[-1]))
        return _Pieces(self.sources[start:stop], self.ids[start:stop], first - first[0], self.file[of], self.begin[of], self.end[of], self.form[of])


class Samples:
    """What there is to read of a plan (`split`: train or heldout) or of a dataset, on a local disk. It pickles as its path.

    Raises InputError for a dataset that is not encoded or not local, VerifyError where a file is not what its table says."""

    def __init__(self, path: str, split: str = "train", verify: bool = True) -> None:
        card = read_card(path)
        self.path, self.split, self.verify = path, split, verify
        self.fingerprint = str(card["fingerprint"])
        self.plan: Plan | None = None
        if card["kind"] == "plan":
            self.plan = Plan(card["path"], card)
            if "target" in card["encoding"]:
                raise InputError("this plan reads images of two encoders, and a sample has one", where=path, next="name one dataset of each source")
        elif card["kind"] != "dataset":
            raise InputError("samples are those of a plan or a dataset", where=path, found=card["kind"])
        self.arrays = Arrays(self.plan.datasets if self.plan else [Dataset(card["path"], card)], verify)
        self._named = np.array(self.plan.sources if self.plan else [], object)
        shards = self.arrays.datasets[0].shards
        self._first = np.cumsum([0, *(s.records for s in shards)]) if not self.plan else np.zeros(1, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.path, self.split, self.verify)

    def __len__(self) -> int:
        """Sequences of a plan, records of a dataset."""
        return self.plan.sequences(self.split) if self.plan else int(self._first[-1])

    def read(self, position: int = 0, rank: int = 0, world: int = 1, batch: int | None = None) -> Iterator[tuple[Sample, int]]:
        """(sample, position after it) of this rank from `position` on. `batch` is the number of sequences (or records) a step, as in C8: step s
        has [s B, (s+1) B), of which rank r of W takes s B + r, s B + r + W, …; without it B = W."""
        for samples, positions in self.runs(position, rank, world, batch):
            yield from zip(samples, positions, strict=True)

    def runs(self, position: int = 0, rank: int = 0, world: int = 1, batch: int | None = None) -> Iterator[tuple[list[Sample], list[int]]]:
        """The same in lists of up to 128."""
        size, gathered = batch or world, FIRST
        if not 0 <= rank < world or size < 1 or position < 0:
            raise InputError("no such rank or position", where=self.path, found=f"rank {rank} of {world}, batch {batch}, position {position}")
        for places, pieces_of in self._spans(position, rank, world, size) if self.plan else self._records(position, rank, world, size):
            at = 0
            while at < len(places):
                kept, pieces = pieces_of(np.arange(at, min(at + gathered, len(places))))
                after = places[kept] + 1
                for start in range(0, len(kept), RUN):
                    yield self._cut(pieces.run(start, start + RUN)), after[start : start + RUN].tolist()
                at, gathered = at + gathered, min(8 * gathered, LARGEST)

    def sequence(self, i: int) -> list[Sample]:
        """The samples of sequence i of a plan, or record i of a dataset, as a list (empty where all of it is forgotten)."""
        if not 0 <= i < len(self):
            raise InputError("no such sequence", where=self.path, found=i, allowed=f"0 to {len(self) - 1}")
        if self.plan is None:
            _, pieces_of = next(self._records(i, 0, 1, 1))
            return self._cut(pieces_of(np.arange(1))[1])
        file: RowFile = self.plan.file(row_path(self.plan.path, self.split, i))
        spans = slice(*file.start[i % ROWS_PER_FILE : i % ROWS_PER_FILE + 2].tolist())
        columns = {name: column[spans] for name, column in file.spans.items()}
        return self._cut(self._taken(columns, np.arange(spans.stop - spans.start))[1])

    def _cut(self, p: _Pieces) -> list[Sample]:
        """Samples of pieces: the only thing here that is done sample by sample."""
        files, forms, shaped = self.arrays.files, self.arrays.forms, self.arrays.shaped
        begin, end, numbers = p.begin.tolist(), p.end.tolist(), p.form.tolist()
        if any(shaped):
            cuts = zip(p.file.tolist(), begin, end, [shaped[n] for n in numbers], strict=True)
            views = [files[f][a:b].reshape(-1, w) if w else files[f][a:b] for f, a, b, w in cuts]
        elif len(numbers) and (p.file == p.file[0]).all():
            whole = files[int(p.file[0])]
            views = [whole[a:b] for a, b in zip(begin, end, strict=True)]
        else:
            views = [files[f][a:b] for f, a, b in zip(p.file.tolist(), begin, end, strict=True)]
        arrays: Iterable[tuple[Any, ...]]
        named: Iterable[tuple[Form, ...]]
        if len(numbers) == len(p.ids) and (np.diff(p.first) == 1).all():
            alone = [(form,) for form in forms]
            arrays, named = zip(views), [alone[n] for n in numbers]
        else:
            each, bounds = [forms[n] for n in numbers], list(pairwise(p.first.tolist()))
            arrays, named = [tuple(views[a:b]) for a, b in bounds], [tuple(each[a:b]) for a, b in bounds]
        return list(map(_made, zip(p.sources.tolist(), p.ids.tolist(), arrays, named, strict=True)))

    # ---- datasets: records in written order ------------------------------------------------------------------------------------------------

    def _records(self, position: int, rank: int, world: int, size: int) -> Iterator[tuple[I64, Any]]:
        """Per row group: rows of the dataset that are this rank's, and how to get pieces of them."""
        for shard in range(int(np.searchsorted(self._first, position, side="right")) - 1, len(self._first) - 1):
            base, bounds = int(self._first[shard]), self.arrays.bounds(0, shard)
            for number, (first, stop) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
                if base + stop <= position:
                    continue
                rows = np.arange(max(base + first, position), base + stop)
                rows = rows[rows % size % world == rank]
                yield rows, partial(_whole, self.arrays.group(0, shard, number), rows - base - first)

    # ---- plans: spans in order of consumption ----------------------------------------------------------------------------------------------

    def _spans(self, position: int, rank: int, world: int, size: int) -> Iterator[tuple[I64, Any]]:
        """Per file of the plan: positions of spans that are this rank's, and how to get pieces of them."""
        assert self.plan is not None
        total = len(self)
        for first in range(position // SPANS // ROWS_PER_FILE * ROWS_PER_FILE, total, ROWS_PER_FILE):
            file: RowFile = self.plan.file(row_path(self.plan.path, self.split, first))
            seq = first + np.repeat(np.arange(len(file)), np.diff(file.start))
            places = seq * SPANS + np.arange(len(seq)) - file.start[seq - first]
            chosen: Any = slice(int(np.searchsorted(places, position)), None)
            if world > 1:
                chosen = np.flatnonzero((places >= position) & (seq % size % world == rank))
            yield places[chosen], partial(self._taken, {name: column[chosen] for name, column in file.spans.items() if name != "epoch"})

    def _taken(self, columns: dict[str, I64], which: I64) -> tuple[I64, _Pieces]:
        """Pieces of some spans of a file: (which of them are not forgotten, pieces). Spans of one row group of one index go together."""
        assert self.plan is not None
        c = {name: column[which].astype(np.int64) for name, column in columns.items()}
        key = c["dataset"] << 32 | c["shard"]
        parts, owners = [], []
        for code in np.unique(key).tolist():
            dataset, shard = code >> 32, code & 0xFFFFFFFF
            mine = np.flatnonzero(key == code)
            number = np.searchsorted(self.arrays.bounds(dataset, shard), c["row"][mine], side="right") - 1
            for group in np.unique(number).tolist():
                here = mine[number == group]
                parts.append(_chosen(self.arrays.group(dataset, shard, group), {name: column[here] for name, column in c.items()}))
                owners.append(here)
        return _in_order(parts, owners, which, self._named[c["source"]])


def _whole(group: Group, all_rows: I64, which: I64) -> tuple[I64, _Pieces]:
    """Records of one row group, whole."""
    rows = all_rows[which]
    kept = ~group.gone[rows]
    rows = rows[kept]
    start, count = group.start[rows], group.start[rows + 1] - group.start[rows]
    at = _expand(start, count)
    columns = (group.file[at], group.begin[at], group.end[at], group.form[at])
    return which[kept], _Pieces(group.sources[rows], group.ids[rows], _counted(count), *columns)


def _chosen(g: Group, c: dict[str, I64]) -> tuple[NDArray[Any], NDArray[np.bool_], I64, I64, I64, I64, I64]:
    """Of spans into one row group: ids, whether forgotten, and per span the number of its arrays; of these file, begin, end, form."""
    row = c["row"] - g.first
    if g.plain and (c["caption"] < 0).all():  # every record is one array
        begin = g.begin[row]
        cut = g.may_be_cut[row]
        end = np.where(cut, begin + c["stop"], g.end[row])
        return g.ids[row], g.gone[row], np.ones(len(row), np.int64), g.file[row], np.where(cut, begin + c["start"], begin), end, g.form[row]
    pair = c["caption"] >= 0
    pairs = bool(pair.any())
    atom = g.atom[row] + c["first"]
    start, stop = g.atom_start[atom], g.atom_start[atom + (np.where(pair, 0, c["count"]) if pairs else c["count"])]
    if pairs:
        start, stop = np.where(pair, g.start[row], start), np.where(pair, g.start[row + 1], stop)
    count = stop - start
    at = _expand(start, count)
    if pairs:
        # Of a pair: its images and the one caption, in the order in which the plan shows them.
        owner = np.repeat(np.arange(len(row)), count)
        text = g.is_text[at]
        shown = ~pair[owner] | ~text | (at - start[owner] == c["caption"][owner])
        late = text == c["image_first"][owner].astype(np.bool_)
        order = np.lexsort((np.arange(len(at)), late & pair[owner], owner))
        order = order[shown[order]]
        at, count = at[order], np.bincount(owner[order], minlength=len(row))
    begin, end = g.begin[at], g.end[at]
    lead = np.arange(len(row)) if len(at) == len(row) and (count == 1).all() else np.cumsum(count) - count
    alone = np.flatnonzero((count == 1) & (c["count"] == 1) & ~pair)
    alone = alone[g.may_be_cut[at[lead[alone]]]]
    lead = lead[alone]
    end[lead] = begin[lead] + c["stop"][alone]
    begin[lead] += c["start"][alone]
    return g.ids[row], g.gone[row], count, g.file[at], begin, end, g.form[at]


def _in_order(parts: list[Any], owners: list[I64], which: I64, sources: NDArray[Any]) -> tuple[I64, _Pieces]:
    """Parts of several row groups, put in the order of spans; forgotten ones left out."""
    gone, count = _placed(parts, owners, 1, np.zeros(len(which), np.bool_)), _placed(parts, owners, 2, np.zeros(len(which), np.int64))
    ids = _placed(parts, owners, 0, np.empty(len(which), object))
    if (count == 1).all():
        placed = [_placed(parts, owners, k, np.empty(len(which), np.int64)) for k in range(3, 7)]
    else:
        first = _counted(count)
        runs = [_expand(first[owner], part[2]) for owner, part in zip(owners, parts, strict=True)]
        placed = [_placed(parts, runs, k, np.empty(int(first[-1]), np.int64)) for k in range(3, 7)]
    if not gone.any():
        return which, _Pieces(sources, ids, _counted(count), *placed)
    kept = np.flatnonzero(~gone)
    at = _expand(_counted(count)[kept], count[kept])
    return which[kept], _Pieces(sources[kept], ids[kept], _counted(count[kept]), *(column[at] for column in placed))


def _placed(parts: list[Any], owners: list[I64], k: int, out: NDArray[Any]) -> NDArray[Any]:
    """Column k of the parts, each value where its owner says."""
    for part, owner in zip(parts, owners, strict=True):
        out[owner] = part[k]
    return out


def _counted(count: I64) -> I64:
    """Where each begins, and where the last one ends."""
    out = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=out[1:])
    return out


def _expand(start: I64, count: I64) -> I64:
    """Every index of the runs [start, start + count), one run after another."""
    if len(count) and (count == 1).all():
        return start
    begins = np.cumsum(count) - count
    return np.repeat(start - begins, count) + np.arange(int(count.sum()))
