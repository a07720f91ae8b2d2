"""The arithmetic of balancing (`metaclip`): which t each list gets, how many records stay at any t, and the figures that explain both.

In: how many texts match each entry, and how many records stay from which t on. Out: limits, counts of kept records, plain figures for the card.

Lists for several languages are bound by one share ("Meta CLIP 2", 2025): p is the part of the first list's matches that falls to entries with
fewer than t; every other list gets the count up to which its own entries, rarest first, hold the part nearest to p. Both steps only rise with t,
so the number of records kept rises with it too, and the t that keeps a wanted number is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
DEFAULT_T = 20_000  # the published one, for a pool of 1.6 billion texts
COMMONEST = 20  # entries named in the card
SHOWN = 80  # characters of an entry there: cards stay small whatever a list holds


class Tails:
    """The counts of every list, rarest first, to go from t to shares and back. Entries without a match count for nothing."""

    def __init__(self, counts: I64, places: Iterable[tuple[int, int]]) -> None:
        self.places = list(places)
        self._rising = [np.sort(c[c > 0]) for c in (counts[lo:hi] for lo, hi in self.places)]
        self._shares = [np.cumsum(r) / max(int(r.sum()), 1) for r in self._rising]

    @property
    def most(self) -> int:
        """The highest count of the first list."""
        return int(self._rising[0][-1]) if len(self._rising[0]) else 0

    def share(self, t: int) -> float:
        """The share of all matches of the first list that fall to entries with fewer than t."""
        below = int(np.searchsorted(self._rising[0], t))
        return float(self._shares[0][below - 1]) if below else 0.0

    def nearest(self, k: int, share: float) -> int:
        """The count in list k up to which its entries hold the share of all its matches that comes nearest to `share`."""
        rising, shares = self._rising[k], self._shares[k]
        return int(rising[np.argmin(np.abs(shares - share))]) if len(rising) else DEFAULT_T

    def at(self, t: int) -> list[int]:
        """t of every list, when that of the first is t."""
        share = self.share(t)
        return [t, *(self.nearest(k, share) for k in range(1, len(self.places)))]

    def limits(self, t: int) -> I64:
        """t of every entry."""
        return np.repeat(self.at(t), [hi - lo for lo, hi in self.places]).astype(np.int64)


class Needs:
    """How many records of each list stay from which t on. Each t is rounded up to four digits, so what is said to stay is never too much."""

    def __init__(self, values: Iterable[dict[str, Any]], lists: int) -> None:
        of = {value["list"]: value for value in merged(values)}
        rows = [sorted(zip(of[k]["t"], of[k]["n"], strict=True)) if k in of else [] for k in range(lists)]
        self._from = [np.array([t for t, _ in r], np.int64) for r in rows]
        self._kept = [np.cumsum([0, *(n for _, n in r)]) for r in rows]

    @property
    def all(self) -> int:
        """Records that match anything."""
        return sum(int(kept[-1]) for kept in self._kept)

    @property
    def most(self) -> int:
        """The t from which all records of the first list stay."""
        return int(self._from[0][-1]) if len(self._from[0]) else 1

    def kept(self, limits: Sequence[int]) -> int:
        """Records that stay when each list has this t."""
        places = (np.searchsorted(f, t, side="right") for f, t in zip(self._from, limits, strict=True))
        return sum(int(kept[place]) for kept, place in zip(self._kept, places, strict=True))


def histograms(needs: Iterable[tuple[I64, I64]]) -> Iterator[dict[str, Any]]:
    """(list, t) of records, as what `Needs` is made of: a histogram of the rounded t for each list."""
    found: dict[int, Counter[int]] = {}
    for lists, t in needs:
        both, heights = np.unique(np.stack([lists, rounded_up(t)]), axis=1, return_counts=True)
        for k, value, n in zip(*both.tolist(), heights.tolist(), strict=True):
            found.setdefault(k, Counter())[value] += n
    yield from _rows(found)


def merged(values: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Histograms of many parts as one of each list."""
    found: dict[int, Counter[int]] = {}
    for value in values:
        found.setdefault(value["list"], Counter()).update(dict(zip(value["t"], value["n"], strict=True)))
    yield from _rows(found)


def _rows(found: dict[int, Counter[int]]) -> Iterator[dict[str, Any]]:
    for k in sorted(found):
        yield {"list": k, "t": list(found[k]), "n": list(found[k].values())}


def solve(tails: Tails, needs: Needs, wanted: int) -> int | None:
    """The smallest t of four significant digits at which `wanted` records stay; None when there are not so many at any t.

    The last t to try is the one from which the first list's entries are all tail: from there on nothing changes for any list.
    """
    last = max(needs.most, tails.most + 1)
    place = bisect_left(range(1, last + 1), wanted, key=lambda t: needs.kept(tails.at(t)))
    return int(rounded_up(np.array([place + 1]))[0]) if place < last else None


def rounded_up(t: I64) -> I64:
    """Up to four significant digits, so that histograms of any data stay small."""
    unit = 10 ** np.maximum(np.floor(np.log10(np.maximum(t, 1))).astype(np.int64) - 3, 0)
    return -(-t // unit) * unit


def steps(last: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … up to the first that is no less than `last`."""
    out = [1]
    while out[-1] < last:
        out.append(out[-1] // 2 * 5 if str(out[-1])[0] == "2" else out[-1] * 2)
    return out


def by_t(tails: Tails, needs: Needs) -> list[list[int]]:
    """[t, records that would stay] for the steps up to the t at which all of the first list's do."""
    return [[t, needs.kept(tails.at(t))] for t in steps(needs.most)]


def by_rank(counts: I64, limits: I64) -> list[list[int]]:
    """[n, matches of the n commonest entries, how many of them the draws are expected to pass]."""
    order = np.argsort(-counts, kind="stable")
    before, after = np.cumsum(counts[order]), np.cumsum(np.minimum(counts, limits)[order])
    matched = int((counts > 0).sum())
    ranks = [*(n for n in steps(matched) if n < matched), matched] if matched else []
    return [[n, int(before[n - 1]), int(after[n - 1])] for n in ranks]


def commonest(entries: Sequence[str], counts: I64, limits: I64) -> list[list[Any]]:
    """[entry, its count, its t] of the entries above t, commonest first."""
    order = np.argsort(-counts, kind="stable")[:COMMONEST]
    return [[entries[i][:SHOWN], int(counts[i]), int(limits[i])] for i in order.tolist() if counts[i] > limits[i]]
