"""What the planner knows of a dataset: the flat columns of its indexes, as numpy arrays over records.

What comes in: an encoded dataset, the held-out rule, a `where`. What goes out: a `Table` in written order (shard by shard). Lists become flat
arrays with a `start` per record, so that everything downstream is arithmetic on whole columns. Segments (kinds, roles, turns, names) are
nested in the index and cost ten times as much to read, so they are read only where flat columns cannot answer: conversations, action
samples, named captions, records whose segments differ in role.

Memory: 34 bytes a record and 16 an atom.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixtures.mixture import HeldOut, Where
from mixtures.where import columns as asked_of
from mixtures.where import keep as keeps
from pipelines.format.chance import group_hashes, held_out_by
from pipelines.format.dataset import Dataset
from pipelines.format.flat import flat
from pipelines.format.forgotten import NAMED_BY, forgotten, tombstone_entry, tombstones

I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]
_FLAT = ["h", "text_tokens", "visual_tokens", "loss_tokens", "nbytes", "atoms", "atom_segments", "atom_images"]


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Per segment, in record order; `start` [n + 1] says where each record's begin."""

    start: I64
    image: Bool
    target: Bool
    turn: NDArray[np.int16]
    tokens: I32
    member: NDArray[Any]  # names, or None
    made: I32 | None = None  # tokens where the segment takes loss, when images with loss come from another dataset

    def shown(self, at: NDArray[Any], loss: Bool) -> I32:
        """Tokens of the segments `at` with these loss bits."""
        return self.tokens[at] if self.made is None else np.where(loss, self.made[at], self.tokens[at])


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Per record: where it lies, who it is, how many payload tokens it has, and its atoms."""

    data: str
    shard: I32
    row: I32
    h: NDArray[np.uint64]
    nbytes: I64
    held: Bool  # its group is kept from training
    usable: Bool  # for training: not held out, inside `where`, not forgotten
    text: I32
    visual: I32
    loss: I32
    atom_start: I64  # [n + 1]
    atom_tokens: I32
    atom_segment: I64  # [atoms + 1] where the segments of each atom begin, over the whole table
    atom_images: I32
    segments: Segments | None
    dropped: dict[str, int] = field(default_factory=dict)  # records out of training, by reason
    atom_made: I32 | None = None  # as `Segments.made`, for atoms of one image

    def __len__(self) -> int:
        return len(self.h)


Sides = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # packed bits per record: usable, held out


def read_table(
    dataset: Dataset,
    held: HeldOut | None,
    where: Where,
    named_captions: bool = False,
    shards: range | None = None,
    sides: Sides | None = None,
) -> Table:
    """The planner's view of `dataset`, or of some of its shards. Reads their indexes once; opens no data file.

    `sides` says, of the same shards, which records are usable and which are held out: then groups, scores and tombstones are not read."""
    conversation = dataset.data in ("vqa", "action-video")
    named = list(NAMED_BY) if sides is None and tombstone_entry(dataset) else []
    columns = list(dict.fromkeys(_FLAT if sides is not None else [*_FLAT, "group_h", *asked_of(where), *named]))
    which = range(len(dataset.shards)) if shards is None else shards
    read = [_index(dataset, i, columns) for i in which]
    table = pa.concat_tables(read) if read else pa.table({c: [] for c in columns})
    rows = [t.num_rows for t in read]
    text, visual, loss = (_numbers(table, c, np.int32) for c in ("text_tokens", "visual_tokens", "loss_tokens"))
    dropped: dict[str, int] = {}
    if sides is None:
        usable, out, dropped = _sides(table, dataset, held, where)
    else:
        usable, out = (np.unpackbits(bits, count=table.num_rows).astype(np.bool_) for bits in sides)
    atom_start, atom_tokens = _lists(table["atoms"])
    mixed_roles = not np.array_equal(loss, text + visual)
    nested = conversation or named_captions or mixed_roles
    segments = read_segments(dataset, which, named_captions) if nested else None
    for i in which:
        dataset.release(i)
    return Table(
        data=dataset.data,
        shard=np.repeat(np.asarray(which, np.int32), rows),
        row=np.concatenate([np.arange(n, dtype=np.int32) for n in rows] or [np.zeros(0, np.int32)]),
        h=_numbers(table, "h", np.uint64),
        nbytes=_numbers(table, "nbytes", np.int64),
        held=out,
        usable=usable,
        text=text,
        visual=visual,
        loss=loss,
        atom_start=atom_start,
        atom_tokens=atom_tokens,
        atom_segment=np.concatenate([[0], np.cumsum(_lists(table["atom_segments"])[1], dtype=np.int64)]),
        atom_images=_lists(table["atom_images"])[1],
        segments=segments,
        dropped=dropped,
    )


def _sides(table: pa.Table, dataset: Dataset, held: HeldOut | None, where: Where) -> tuple[Bool, Bool, dict[str, int]]:
    """(usable, held out, records out of training by reason)."""
    out = _split_by_group(_numbers(table, "group_h", np.uint64), held)
    dropped = {"held_out": int(out.sum())}
    usable = ~out
    for reason, keep in (("where", keeps(table, where)), ("forgotten", _remembered(table, dataset))):
        if keep is not None:
            lost = usable & ~keep
            if lost.any():
                dropped[reason] = int(lost.sum())
            usable &= keep
            if reason == "forgotten":
                out &= keep
    return usable, out, dropped


def read_segments(dataset: Dataset, shards: Iterable[int] | None = None, named: bool = False) -> Segments:
    """Kinds, roles, turns and counts of all segments of a dataset, or of some shards, and with `named` their names: leaves of the nested column, read
    alone."""
    kinds = {"kind": np.bool_, "role": np.bool_, "turn": np.int16, "tokens": np.int32, "member": object}
    leaves = [name for name in kinds if named or name != "member"]
    starts: list[I64] = [np.zeros(1, np.int64)]
    parts: dict[str, list[NDArray[Any]]] = {k: [] for k in kinds}
    for i in range(len(dataset.shards)) if shards is None else shards:
        column = dataset.index(i, [f"segments.list.element.{k}" for k in leaves])["segments"].combine_chunks()
        starts.append(_offsets(column)[1:] + starts[-1][-1])
        values = column.flatten()
        parts["kind"].append(~_are(values.field("kind"), "tokens"))
        parts["role"].append(_are(values.field("role"), "target"))
        parts["turn"].append(flat(values.field("turn")))
        parts["tokens"].append(flat(values.field("tokens")))
        if named:
            parts["member"].append(np.array(values.field("member").to_pylist(), object))
    columns: dict[str, Any] = {k: np.concatenate([np.zeros(0, kind), *parts[k]]).astype(kind, copy=False) for k, kind in kinds.items()}
    return Segments(np.concatenate(starts), *columns.values())


def _are(words: pa.Array, word: str) -> Bool:
    """Which of some words are this one."""
    found = words.dictionary_encode()
    same: Bool = np.array([w == word for w in found.dictionary.to_pylist()], np.bool_)
    return same[flat(found.indices)]


def _numbers(table: pa.Table, name: str, dtype: Any) -> NDArray[Any]:
    return flat(table[name].combine_chunks()).astype(dtype, copy=False) if table.num_rows else np.zeros(0, dtype)


def _offsets(lists: pa.ListArray) -> I64:
    offsets = flat(lists.offsets).astype(np.int64)
    return offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)


def _lists(column: pa.ChunkedArray) -> tuple[I64, I32]:
    """A list column as (start [n + 1], flat values)."""
    if not len(column):
        return np.zeros(1, np.int64), np.zeros(0, np.int32)
    lists = column.combine_chunks()
    return _offsets(lists), flat(lists.flatten()).astype(np.int32, copy=False)


def _index(dataset: Dataset, i: int, columns: list[str]) -> pa.Table:
    """These columns of a shard's index; hashes of groups are made where an older index has none."""
    table = dataset.index(i, columns)
    if "group_h" in columns and "group_h" not in table.column_names:
        names = dataset.index(i, ["group"])["group"].cast(pa.binary()).to_pylist()
        table = table.append_column("group_h", pa.array(group_hashes(names), pa.uint64()))
    return table.select(columns)


def _split_by_group(groups: NDArray[np.uint64], held: HeldOut | None) -> Bool:
    """Held out or not, record by record."""
    if held is None or held.fraction == 0:
        return np.zeros(len(groups), np.bool_)
    return held_out_by(groups, held.fraction, held.seed)


def _remembered(table: pa.Table, dataset: Dataset) -> Bool | None:
    """False for what a tombstone names by id, url, sha256 or phash."""
    stones = tombstones(dataset)
    return None if stones is None else ~forgotten(table, stones)
