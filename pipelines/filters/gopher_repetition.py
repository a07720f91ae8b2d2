"""Gopher's repetition rules: pages that say the same lines, paragraphs or phrases again and again.

The limits are those of table A1 of Rae et al., 2021; the same documents are dropped for the same first reason as by datatrove's
GopherRepetitionFilter. Counting n-grams in Python is what that filter spends its time on, so here a bound is computed first, on arrays:

    top n-gram          its share ≤ (count of the most frequent 2-gram) × (longest n-gram)                      one sort
    duplicated n-grams  the duplicates it adds up are disjoint windows seen before, so ≤ the union of all such   a sort for each n

Only a document whose bound is over the limit, one in ten of ordinary web text, is then counted as datatrove counts, so the answer is always
its answer; and of it only the windows whose hash is met more than once, so that a long document takes 60 bytes a word and not a kilobyte. Windows
are compared by a 64-bit hash of the string they make; two strings with one hash can only raise the bound.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import Words, powers, text_of, words_of

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_FEW = 10_000  # words, up to which counting all n-grams takes a few megabytes and less time than sorting them


class GopherRepetition(Filter):
    """Shares of elements and of characters that repeat; null switches a rule off. `top_n_grams` and `dup_n_grams` are lists of [n,
    share]."""

    dup_line_frac: Percent | None = 0.3
    dup_para_frac: Percent | None = 0.3
    dup_line_char_frac: Percent | None = 0.2
    dup_para_char_frac: Percent | None = 0.2
    top_n_grams: tuple[tuple[int, Percent], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, Percent], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    language: str = "eng"

    def reason(self, record: Record) -> str | None:
        text = text_of(record)
        detail = "empty" if not text else self._pieces(text) or self._grams(text)
        return f"gopher_repetition.{detail}" if detail else None

    def _pieces(self, text: str) -> str | None:
        pieces = _PARAGRAPHS.split(text.strip())
        n, chars = repeats(pieces)
        if self.dup_para_frac and n / len(pieces) > self.dup_para_frac:
            return "dup_para_frac"
        if self.dup_para_char_frac and chars / len(text) > self.dup_para_char_frac:
            return "dup_para_char_frac"
        pieces = _LINES.split(text)
        n, chars = repeats(pieces)
        if self.dup_line_frac and n / len(pieces) > self.dup_line_frac:
            return "dup_line_frac"
        if self.dup_line_char_frac and chars / len(text) > self.dup_line_char_frac:
            return "dup_line_char_frac"
        return None

    def _grams(self, text: str) -> str | None:
        words = words_of(text, self.language)
        if not len(words):
            return None
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(words.lexicon.length[words.ids])])  # of the words, without what stands between
        pair, prefix = _most_frequent_pair(words.ids), None
        for n, most in self.top_n_grams:
            if len(words) < n:
                continue
            longest = int((ends[n:] - ends[:-n]).max()) + n - 1
            count = pair if n > 1 else len(words)
            if count * longest / len(text) > most:
                prefix = _prefix_hashes(words, ends) if prefix is None and len(words) > _FEW else prefix
                hashes = _hashes(prefix, ends, n) if prefix is not None else None
                if _top(words.texts, n, hashes) / len(text) > most:
                    return f"top_{n}_gram"
        for n, most in self.dup_n_grams:
            if len(words) < n:
                continue
            prefix = _prefix_hashes(words, ends) if prefix is None else prefix
            first, later = _repeated(_hashes(prefix, ends, n))
            if _covered(later, ends, n) / len(text) > most and _duplicated(words.texts, n, np.union1d(first, later)) / len(text) > most:
                return f"duplicated_{n}_n_grams"
        return None


def repeats(pieces: list[str]) -> tuple[int, int]:
    """How many pieces equal an earlier one, and their characters."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    n = chars = 0
    for piece in pieces:
        if piece in seen:
            n, chars = n + 1, chars + len(piece)
        else:
            seen.add(piece)
    return n, chars


def _most_frequent_pair(ids: NDArray[np.int64]) -> int:
    """The count of the most frequent 2-gram, which no longer n-gram exceeds."""
    if len(ids) < 2:
        return 0
    pairs = np.sort((ids[:-1] << 31) | ids[1:])
    borders = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1], [True]]))
    return int(np.diff(borders).max())


def _top(words: list[str], n: int, hashes: NDArray[np.uint64] | None = None) -> int:
    """Characters of the most frequent n-gram (of those, the one met first) times its count. With hashes, only windows of the most frequent ones
    are looked at as words: a long text has a million different n-grams, and as tuples they would take a quarter of a gigabyte."""
    grams = _most_frequent(words, n, hashes) if hashes is not None else Counter(zip(*(words[i:] for i in range(n)), strict=False))
    gram, count = max(grams.items(), key=lambda item: item[1])
    return (sum(map(len, gram)) + n - 1) * count


def _most_frequent(words: list[str], n: int, hashes: NDArray[np.uint64]) -> Counter[tuple[str, ...]]:
    ordered = np.sort(hashes)
    borders = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    counts = np.diff(borders)
    most = int(counts.max())
    if most == 1:
        return Counter([tuple(words[:n])])
    places = np.flatnonzero(np.isin(hashes, ordered[borders[:-1][counts == most]]))
    grams = Counter(tuple(words[i : i + n]) for i in places.tolist())
    if max(grams.values()) == most:
        return grams
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))  # one hash of several n-grams ("a bc", "ab c"): then all are counted


def _prefix_hashes(words: Words, ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The polynomial of all words before each place, modulo 2^64; differences, shifted, are those of windows."""
    mixed = words.lexicon.mix[words.ids] * powers(int(ends[-1]) + 1)[ends[:-1]]
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])


def _hashes(prefix: NDArray[np.uint64], ends: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
    """A hash of each window of n words: of the string they make, without what stands between."""
    shift = powers(int(ends[-1]) + 1)[ends[-1] - ends[:-n]]  # brings every window to one exponent, so that equal strings are equal numbers
    return (prefix[n:] - prefix[:-n]) * shift


_NONE = np.empty(0, np.int64)


def _repeated(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of places: of a window, and of the next one that has the same hash."""
    ordered = np.sort(hashes)  # ten times as fast as the stable argsort, and often enough
    if not np.any(ordered[1:] == ordered[:-1]):
        return _NONE, _NONE
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    return order[:-1][same], order[1:][same]


def _covered(later: NDArray[np.int64], ends: NDArray[np.int64], n: int) -> int:
    """Characters that lie in a window of n words whose string was seen before."""
    if not len(later):
        return 0
    change = np.zeros(len(ends), np.int64)
    np.add.at(change, later, 1)
    np.add.at(change, later + n, -1)
    return int(np.diff(ends)[np.cumsum(change[:-1]) > 0].sum())


def _duplicated(words: list[str], n: int, several: NDArray[np.int64]) -> int:
    """Characters of n-grams seen before, read from the left, each counted window skipped whole. Windows that are met once need no look."""
    seen: set[str] = set()
    chars = free = 0
    for i in several.tolist():
        if i < free:
            continue
        gram = "".join(words[i : i + n])
        if gram in seen:
            chars += len(gram)
            free = i + n
        else:
            seen.add(gram)
    return chars
