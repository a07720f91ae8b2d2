"""64-bit hashes that differ in few bits, found without comparing all with all.

What comes in: hashes (uint64) and a distance d. What goes out: exactly the pairs that differ in d bits or fewer. Cut 64 bits into d + 2 blocks: d
differing bits leave at least two blocks untouched, so two near hashes agree on both blocks of some pair of blocks. There are (d + 2)(d + 1) / 2
such pairs: each is a mask, and `hash & mask` a key under which near hashes meet (Manku, Jain and Das Sarma, "Detecting Near-Duplicates for Web
Crawling", 2007, with two blocks). Two blocks instead of one cost three times the rows at d = 4 and make keys of 21 bits instead of 13: a million
hashes meet 0.5 others a key by chance, not 120. `Near` asks one hash after another against a fixed list: there d + 1 tables,
each of one block, are smaller.

Hashes of `images.phash` have 32 bits set, so their distances are even; with 24 or fewer many of its frequencies were equal: a flat picture or a
ramp, whose hash says nothing (`flat`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
FLAT_BITS = 24
_BITS, ALL = 64, (1 << 64) - 1
_CHUNK = 1 << 20  # comparisons at a time: 8 MB


def flat(hash: int) -> bool:
    """Whether a perceptual hash comes of a picture without structure, such as one colour. Only its bytes can tell such a picture from others."""
    return hash.bit_count() <= FLAT_BITS


def blocks(n: int) -> list[int]:
    """The 64 bits as n masks of neighbouring bits, of lengths that differ by one at most, highest bits first."""
    edges = [_BITS * i // n for i in range(n + 1)]
    return [(ALL >> a) & ~(ALL >> b) for a, b in pairwise(edges)]


def masks(distance: int) -> list[int]:
    """Masks of which any two hashes within `distance` agree on at least one; none for 0, where the hash itself is the key."""
    return [a | b for a, b in combinations(blocks(distance + 2), 2)] if distance else []


def spread(x: int) -> int:
    """32 bits to choose a bucket by: the upper half of a product, since a masked hash has long runs of zeros."""
    return (x * 0x9E3779B97F4A7C15 & ALL) >> 32


def near_pairs(hashes: U64, distance: int, mask: int, first: int, each: int, kin: NDArray[np.int64] | None = None) -> Iterator[tuple[int, int, int]]:
    """(i, j, distance) with i < j of hashes that agree on `mask`, each pair under the first of the masks that it agrees on alone. Hashes with the
    same number in `kin` are no pairs.

    Work and output are bounded however alike the hashes are: hash j is compared with those before it among the `first`, and pairs with the first
    `each` that are near. Below these limits the answer is exact."""
    every = masks(distance) or [ALL]
    earlier = [np.uint64(m) for m in every[: every.index(mask)]]
    step = max(1, _CHUNK // max(1, min(len(hashes), first)))
    for start in range(1, len(hashes), step):
        stop = min(start + step, len(hashes))
        apart = hashes[start:stop, None] ^ hashes[None, : min(stop, first)]
        bits = np.bitwise_count(apart)
        close = (bits <= distance) & (np.arange(apart.shape[1])[None, :] < np.arange(start, stop)[:, None])
        if kin is not None:
            close &= kin[start:stop, None] != kin[None, : min(stop, first)]
        close &= np.cumsum(close, axis=1) <= each
        for j, i in np.argwhere(close).tolist():
            if not any(apart[j, i] & m == 0 for m in earlier):
                yield i, start + j, int(bits[j, i])


class Near:
    """A fixed list of hashes that is asked for neighbours. It takes 8 bytes a hash for each of distance + 1 tables, and 8 for the hash."""

    def __init__(self, hashes: U64, distance: int) -> None:
        self.hashes, self.distance = np.unique(hashes), distance
        self._tables: list[tuple[int, NDArray[Any], NDArray[np.uint32]]] = []
        for mask in blocks(distance + 1):
            values = _part(self.hashes, mask)
            order = np.argsort(values, kind="stable").astype(np.uint32)
            self._tables.append((mask, values[order], order))

    def nearest(self, hash: int) -> int | None:
        """The least distance of a listed hash, or None when none is within the distance."""
        x, best = np.array([hash], np.uint64), self.distance + 1
        for mask, values, order in self._tables:
            value = _part(x, mask)[0]
            a, b = np.searchsorted(values, value), np.searchsorted(values, value, "right")
            if a < b:
                best = min(best, int(np.bitwise_count(self.hashes[order[a:b]] ^ x).min()))
        return best if best <= self.distance else None


    def of_many(self, hashes: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each of `hashes` the least distance of a listed one (distance + 1 where none is within the distance) and the place of one such in
        `self.hashes`. Column by column instead of hash by hash; memory is bounded by pieces in which a million pairs are compared."""
        best, at = np.full(len(hashes), self.distance + 1, np.int64), np.zeros(len(hashes), np.int64)
        for mask, values, order in self._tables:
            asked = _part(hashes, mask)
            first, last = np.searchsorted(values, asked), np.searchsorted(values, asked, "right")
            met = np.flatnonzero(last > first)
            ends = np.cumsum(last[met] - first[met])
            for k in range(int(-(-ends[-1] // _CHUNK)) if len(ends) else 0):
                piece = met[np.searchsorted(ends, k * _CHUNK, "right") : np.searchsorted(ends, (k + 1) * _CHUNK, "right")]
                n = last[piece] - first[piece]
                owner = np.repeat(piece, n)
                place = order[np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first[piece], n)]
                bits = np.bitwise_count(self.hashes[place] ^ hashes[owner]).astype(np.int64)
                close = np.flatnonzero(bits < best[owner])  # nearly nothing: what follows sorts
                owner, place, bits = owner[close], place[close], bits[close]
                rank = np.lexsort((place, bits, owner))
                owner, place, bits = owner[rank], place[rank], bits[rank]
                nearer = np.flatnonzero(np.diff(owner, prepend=-1))
                best[owner[nearer]], at[owner[nearer]] = bits[nearer], place[nearer]
        return best, at


def _part(hashes: U64, mask: int) -> NDArray[Any]:
    """The bits under a mask of neighbouring bits, as small numbers."""
    values = (hashes & np.uint64(mask)) >> np.uint64((mask & -mask).bit_length() - 1)
    return values.astype(np.uint32) if mask.bit_count() <= 32 else values
