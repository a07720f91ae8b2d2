"""Which of half a million phrases stand in a text: a trie walked in numpy, one level for all places of a batch at a time.

In: phrases as bytes, and texts laid end to end as one array of bytes with the places where units (words or characters) begin and end. Out:
pairs (unit, phrase). A phrase is a run of whole units, so it is found by looking up its first unit, then its first two, and so on, as long as
some longer phrase begins that way. Every lookup is one 64-bit hash of a slice, which prefix sums give in constant time for any length
(Karp and Rabin 1987, over 2^64: P[k] = Σ b_j·B^j, so slice [s, e) is (P[e] − P[s])·B^−s), in one open table.

A hash never decides: what it finds is compared byte by byte, eight at a time. Hence the result is exact for any input, while the cost is a few
numpy calls a batch instead of a Python step a word. An Aho–Corasick automaton does the same in one pass, but a node a character costs it
hundreds of megabytes and a cache miss a byte at this size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]

# Any odd numbers do: hits are compared, and two beginnings of one hash are met at set-up by the next base (1 in 70 at 500,000 phrases).
_BASES = (0x9E6C63D0876A9A47, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0xBF58476D1CE4E5B9)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_ONE = np.uint64(1)
_MASKS = np.array([(1 << 8 * k) - 1 for k in range(9)], np.uint64)  # the first k bytes of eight
PAD = 8  # bytes that must follow the last one, so that eight can be read anywhere


class Powers:
    """B^j and B^−j modulo 2^64 for all places of a text, longer as longer texts come."""

    def __init__(self, base: int) -> None:
        self._base, self._inverse = base, pow(base, -1, 1 << 64)
        self.up: U64 = np.ones(1, np.uint64)
        self.down: U64 = self.up

    def reach(self, n: int) -> None:
        """Make places 0 … n−1 known."""
        if n <= len(self.up):
            return
        n = max(n, 1 << 16)
        one = np.ones(1, np.uint64)
        self.up, self.down = (np.cumprod(np.append(one, np.full(n - 1, b, np.uint64)), dtype=np.uint64) for b in (self._base, self._inverse))

    def sums(self, data: Bytes) -> U64:
        """P: one more entry than bytes."""
        self.reach(len(data) + 1)
        out = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(data * self.up[: len(data)], out=out[1:])
        return out


class Phrases:
    """An exact set of distinct phrases without NUL bytes. `heads` gives, for each, the lengths in bytes of its beginnings: one unit, two units …,
    itself last.

    A slot of the table is one number: the high bits of a beginning's hash, and in the `low` others the phrase that it is, if it is one, and
    whether a longer one begins with it. So a lookup is one access to memory.
    """

    def __init__(self, phrases: list[bytes], heads: Iterable[list[int]]) -> None:
        self._lengths = np.array([len(p) for p in phrases], np.int64)
        eights = (self._lengths + 7) // 8
        self._first = np.cumsum(eights) - eights
        # One copy a phrase would be half a second of Python; padding each to eights lets one join lay them all.
        blob = np.frombuffer(b"".join(p.ljust(w * 8, b"\0") for p, w in zip(phrases, eights.tolist(), strict=True)), np.uint8)
        self._eights = blob.view("<u8")
        self._head = self._eights[self._first]
        self._low = np.uint64(len(phrases).bit_length() + 1)
        owner, ends = _flat(heads)
        if not any(self._fill(blob, owner, ends, base) for base in _BASES):
            raise AssertionError("the phrases are not distinct")

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(a.nbytes for a in (self._table, self._eights, self._head, self._lengths, self._first))

    def _fill(self, blob: Bytes, owner: I64, ends: I64, base: int) -> bool:
        """Put every beginning of every phrase into the table; False when two different phrases have one hash."""
        self.powers = Powers(base)
        whole = ends == self._lengths[owner]
        high = (self._hash_slices(blob, self._first[owner] * 8, ends) * _SPREAD) >> self._low
        order = np.lexsort((~whole, high))
        high, whole, owner, ends = high[order], whole[order], owner[order], ends[order]
        new = np.ones(len(high), bool)
        new[1:] = high[1:] != high[:-1]
        first = np.flatnonzero(new)
        # A beginning shared by several phrases has one length; of two whole phrases in a row, one would be lost.
        if (whole[1:] & ~new[1:]).any() or (ends != np.repeat(ends[first], np.diff(first, append=len(ends)))).any():
            return False
        longer = np.bitwise_or.reduceat(~whole, first) if len(first) else new
        value = np.where(whole[first], owner[first] + 1, 0) << 1 | longer
        bits = max(4, (4 * max(len(first), 1) - 1).bit_length())  # at most a quarter full
        self._shift, self._wrap = np.uint64(64 - bits), (1 << bits) - 1
        self._table = np.zeros(1 << bits, np.uint64)
        self._place(high[first] << self._low | value.astype(np.uint64))
        return True

    def _hash_slices(self, blob: Bytes, starts: I64, lengths: I64) -> U64:
        """Hashes of blob[start : start + length], a slab at a time: prefix sums of the whole blob would be eight times its size."""
        out = np.zeros(len(starts), np.uint64)
        for lo in range(0, len(starts), 1 << 13):
            s, n = starts[lo : lo + (1 << 13)], lengths[lo : lo + (1 << 13)]
            a, b = int(s.min()), int((s + n).max())
            sums = self.powers.sums(blob[a:b])
            out[lo : lo + (1 << 13)] = (sums[s + n - a] - sums[s - a]) * self.powers.down[s - a]
        return out

    def _place(self, rows: U64) -> None:
        """Each row into the first free slot from its own on; a row is never 0."""
        slot = (rows >> self._shift).astype(np.int64)
        todo = np.arange(len(rows))
        while len(todo):
            free = todo[self._table[slot[todo]] == 0]
            taken, who = np.unique(slot[free], return_index=True)
            self._table[taken] = rows[free[who]]
            todo = todo[self._table[slot[todo]] != rows[todo]]
            slot[todo] = (slot[todo] + 1) & self._wrap

    def _look(self, hashes: U64) -> U64:
        """What the table says of each hash: phrase + 1, times two, plus whether it goes on; 0 where there is nothing."""
        wanted = hashes * _SPREAD
        slot = (wanted >> self._shift).view(np.int64)
        row = self._table[slot]
        same = ((row ^ wanted) >> self._low) == 0
        low = (_ONE << self._low) - _ONE
        more = np.flatnonzero((row != 0) & ~same)
        row &= low
        row *= same
        while len(more):
            slot[more] = (slot[more] + 1) & self._wrap
            there = self._table[slot[more]]
            same = ((there ^ wanted[more]) >> self._low) == 0
            row[more[same]] = there[same] & low
            more = more[~same & (there != 0)]
        return row

    def find(self, data: Bytes, sums: U64, starts: I64, ends: I64, begin: I64 | None = None) -> tuple[I64, I64]:
        """(unit, phrase) for each phrase that begins at a unit, `begin` naming the units to begin at (all of them by default).

        Unit i is data[starts[i] : ends[i]]; `data` ends in PAD bytes that belong to no unit; `sums` is `powers.sums(data)`.
        """
        # The eight bytes at every place, copied once: gathering from a view of overlapping numbers costs four times as much.
        here = np.ascontiguousarray(np.ndarray((len(data) - PAD + 1,), "<u8", data, strides=(1,)))
        units, found = [], []
        for at, last, phrase in self._walk(sums, starts, ends, begin):
            good = self._same(here, starts[at], ends[last] - starts[at], phrase)
            units.append(at[good])
            found.append(phrase[good])
        return (np.concatenate(units), np.concatenate(found)) if units else (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _walk(self, sums: U64, starts: I64, ends: I64, begin: I64 | None) -> Iterator[tuple[I64, I64, I64]]:
        upto = sums[ends]
        if begin is None:
            at = np.arange(len(starts))
            before, down = sums[starts], self.powers.down[starts]
        else:
            at = begin
            before, down = sums[starts[at]], self.powers.down[starts[at]]
        last = at
        while len(at):
            value = self._look((upto[last] - before) * down)
            whole = np.flatnonzero(value > 1)
            yield at[whole], last[whole], (value[whole] >> _ONE).view(np.int64) - 1
            on = np.flatnonzero(((value & _ONE) != 0) & (last < len(ends) - 1))
            at, before, down, last = at[on], before[on], down[on], last[on] + 1

    def _same(self, here: U64, starts: I64, lengths: I64, phrase: I64) -> NDArray[np.bool_]:
        """Whether the slice of that length at each start is the phrase, eight bytes at a time.

        No byte of either is 0, so the first eight, padded with zeros, also tell the lengths apart as long as one of them is below eight.
        """
        good = (here[starts] & _MASKS[np.minimum(lengths, 8)]) == self._head[phrase]
        todo = np.flatnonzero(good & (lengths >= 8))
        good[todo] = self._lengths[phrase[todo]] == lengths[todo]
        todo = todo[good[todo] & (lengths[todo] > 8)]
        at, first, left = starts[todo], self._first[phrase[todo]], lengths[todo]
        while len(todo):
            at, first, left = at + 8, first + 1, left - 8
            good[todo] &= (here[at] & _MASKS[np.minimum(left, 8)]) == self._eights[first]
            on = np.flatnonzero(left > 8)
            todo, at, first, left = todo[on], at[on], first[on], left[on]
        return good


def _flat(heads: Iterable[list[int]]) -> tuple[I64, I64]:
    owner: list[int] = []
    ends: list[int] = []
    for i, cut in enumerate(heads):
        owner += [i] * len(cut)
        ends += cut
    return np.array(owner, np.int64), np.array(ends, np.int64)
