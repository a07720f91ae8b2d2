"""Units on their way from an index to a row of the plan: one flat record each, so that they can be sorted, spilled and gathered at once.

In: units of a table (`units.py`). Out: arrays of `UNIT`, which need no table any more: where the record lies, what the span will say, its loss bits,
and the two keys by which it is sorted. 96 bytes a unit. Loss bits of up to 64 segments lie in `mask`; of more, in a side array of bytes where
`mask` is their place (`bits` says how many).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mixtures.mixture import Source
from mixtures.table import I64, Bool, Table
from mixtures.units import Units, expand, loss_bits
from pipelines.format import storage

UNIT = np.dtype(
    [
        ("h", "u8"),
        ("key", "u8"),  # the order in which units are read back: a draw on the record, or on the first record of its block
        ("mask", "u8"),
        ("nbytes", "i8"),  # of the whole record
        *((name, "i4") for name in ("shard", "row", "first", "count", "caption", "start", "stop", "text", "loss", "structure", "bits")),
        ("epoch", "i2"),
        ("stage", "i2"),
        ("source", "i2"),
        ("image_first", "?"),
        ("cut", "?"),
        ("opens", "?"),  # a block begins here
    ],
    align=True,
)
Placed: TypeAlias = NDArray[Any]  # of UNIT
BITS = 64
_COPIED = ("first", "count", "caption", "start", "stop", "text", "loss", "structure", "image_first", "cut")


_WORDS = UNIT.itemsize // 8


def none() -> Placed:
    """No units."""
    return np.zeros(0, UNIT)


def take(u: Placed, at: NDArray[Any]) -> Placed:
    """`u[at]` (places, or bools), six times as fast: numpy copies records field by field, but words by rows."""
    words = np.ascontiguousarray(u).view(np.uint64).reshape(len(u), _WORDS)
    return np.take(words, np.flatnonzero(at) if at.dtype == np.bool_ else at, axis=0).reshape(-1).view(UNIT)


def join(parts: list[Placed]) -> Placed:
    """`np.concatenate`, likewise by words."""
    kept = [np.ascontiguousarray(p) for p in parts if len(p)]
    return np.concatenate([p.view(np.uint64) for p in kept]).view(UNIT) if len(kept) > 1 else kept[0] if kept else none()


def placed(table: Table, u: Units, source: Source, number: int, epoch: int) -> tuple[Placed, NDArray[np.uint8]]:
    """Units of one source (of this number) and pass, and the bytes of loss bits that are too many for a mask."""
    out = np.zeros(len(u), UNIT)
    for name in _COPIED:
        out[name] = getattr(u, name)
    for name in ("shard", "row", "h", "nbytes"):
        out[name] = getattr(table, name)[u.record]
    out["source"], out["epoch"] = number, epoch
    n, flat = _bits(table, source, u)
    out["bits"] = n
    start = np.cumsum(n) - n
    many = n > BITS
    if len(u):
        within = np.arange(len(flat)) - np.repeat(start, n)
        out["mask"] = np.bitwise_or.reduceat(flat.astype(np.uint64) << (within.astype(np.uint64) & np.uint64(63)), start)
    if not many.any():
        return out, np.zeros(0, np.uint8)
    out["mask"][many] = np.cumsum(n[many]) - n[many]
    return out, flat[np.repeat(many, n)].astype(np.uint8)


def write(u: Placed, name: str | None) -> Placed | str:
    """Units into a scratch file of that name, or nowhere; what `read` takes. No fsync: nobody needs them after a crash."""
    if name is None:
        return u
    if storage.is_local(name):
        path = storage.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        u.tofile(path)
    else:
        storage.publish(name, u.tobytes())
    return name


def read(data: Placed | str, start: int = 0, stop: int | None = None) -> Placed:
    """Units [start, stop) of what `write` returned."""
    if not isinstance(data, str):
        return data[start:stop]
    if storage.is_local(data):
        return np.fromfile(storage.local(data), UNIT, -1 if stop is None else stop - start, offset=start * UNIT.itemsize)
    return np.frombuffer(storage.read(data, start * UNIT.itemsize, None if stop is None else stop * UNIT.itemsize), UNIT)


def shifted(u: Placed, by: int) -> Placed:
    """The same units when their side array comes after one of `by` bytes."""
    if by:
        u["mask"][u["bits"] > BITS] += np.uint64(by)
    return u


def length(u: Placed) -> I64:
    """Positions in a row."""
    out: I64 = u["stop"].astype(np.int64) - u["start"] + u["structure"]
    return out


def payload(u: Placed) -> I64:
    """Ids and latent rows."""
    out: I64 = u["stop"].astype(np.int64) - u["start"]
    return out


def counted(u: Placed, count: str) -> I64:
    """What the budget counts, per unit. A record counts 1, at its first unit."""
    if count == "records":
        return (u["first"] == 0).astype(np.int64)
    if count in ("text", "loss"):
        return u[count].astype(np.int64)
    return payload(u) - (u["text"] if count == "visual" else 0)


def loss_lists(u: Placed, side: dict[int, NDArray[np.uint8]]) -> tuple[I64, Bool]:
    """(start [n + 1], loss bits) of units, their side arrays by source."""
    n = u["bits"].astype(np.int64)
    start = np.concatenate([[0], np.cumsum(n)])
    within = (np.arange(start[-1]) - np.repeat(start[:-1], n)).astype(np.uint64)
    flat = ((np.repeat(u["mask"], n) >> (within & np.uint64(63))) & np.uint64(1)).astype(np.bool_)
    for i in np.flatnonzero(n > BITS).tolist():  # rare: long conversations, hundreds of small frames
        at = int(u["mask"][i])
        flat[start[i] : start[i + 1]] = side[int(u["source"][i])][at : at + int(n[i])]
    return start, flat


def _bits(t: Table, source: Source, u: Units) -> tuple[I64, Bool]:
    """(number of segments per unit, their loss bits one after another), in the record's order."""
    if t.data == "image-text":
        return _pair_bits(t, source, u)
    atom = t.atom_start[u.record] + u.first
    start, stop = t.atom_segment[atom], t.atom_segment[atom + u.count]
    if t.segments is None:
        return stop - start, np.ones(int((stop - start).sum()), np.bool_)
    at, _ = expand(start, stop)  # segments lie in the order of atoms, record after record
    return stop - start, loss_bits(t.segments, at, source.loss)


def _pair_bits(t: Table, source: Source, u: Units) -> tuple[I64, Bool]:
    images = (u.structure.astype(np.int64) - 2) // 2
    n = images + 1
    last = np.cumsum(n) - 1
    bits = np.ones(int(n.sum()), np.bool_)
    if t.segments is not None:
        at = np.repeat(t.segments.start[u.record], n) + np.arange(len(bits)) - np.repeat(last + 1 - n, n)
        at[last] = t.segments.start[u.record] + u.caption
        bits = loss_bits(t.segments, at, source.loss)
    is_caption = np.zeros(len(bits), np.bool_)
    is_caption[last] = True
    shown_clean = np.repeat(u.image_first & (not source.both), n)
    return n, bits & (is_caption | ~shown_clean)
