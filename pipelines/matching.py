"""Matching texts to a list of entries by MetaCLIP's rule, exactly and fast.

In: texts and, once, the entries. Out: every pair (text, entry) once. The rule (Xu et al., "Demystifying CLIP Data", 2024):

    spacing     a space before and after the text and each of , . ; : ? ! `   and one instead of each tab, line feed and carriage return
    "spaces"    an entry matches where " entry " occurs: whole words, case as it is, no stemming
    "scripts"   the second version's rule: no space is asked for on a side where the entry begins or ends with a character of a script that
                is written without spaces (Han, Thai, Lao, Khmer, Burmese, Tibetan) or with punctuation

`scan` is the rule said plainly, a step an entry; `Matcher` gives the same pairs by `phrases`. An entry bounded by spaces on both sides is a
run of whole words of the spaced text; any other is a run of characters, its spaces included.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.phrases import PAD, Phrases

Boundaries = Literal["spaces", "scripts"]
WRAPPED, SPACES = ",.;:?!`", "\t\n\r"
BATCH_BYTES = 1 << 17  # texts are taken in batches of about this size: tables of a batch stay in a core's cache
_NUL = "\0"
BREAK = 0xFF  # stands between texts that are laid end to end: a byte that UTF-8 never has

# Where the second version asks for no space: its ranges of scripts, and its punctuation.
_HAN = ((0x2E80, 0x2FDF), (0x2FF0, 0x2FFF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2EBEF))
_SCRIPTS = (*_HAN, (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF))
_PUNCTUATION = frozenset(string.punctuation + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—")


def spacing(text: str) -> str:
    """The text as entries are looked for in it."""
    text = f" {text} "
    for mark in WRAPPED:
        text = text.replace(mark, f" {mark} ")
    for mark in SPACES:
        text = text.replace(mark, " ")
    return text


def unspaced(character: str) -> bool:
    """Whether the second version's rule asks for no space beside this character."""
    return character in _PUNCTUATION or any(lo <= ord(character) <= hi for lo, hi in _SCRIPTS)


def pattern(entry: str, boundaries: Boundaries = "spaces") -> str:
    """What must occur in the spaced text."""
    if boundaries == "spaces":
        return f" {entry} "
    return f"{'' if unspaced(entry[0]) else ' '}{entry}{'' if unspaced(entry[-1]) else ' '}"


def scan(texts: Sequence[str], entries: Sequence[str], boundaries: Boundaries = "spaces") -> Iterator[tuple[int, int]]:
    """The rule as it is written, an entry at a time: what `Matcher.match` must equal. Slow."""
    patterns = [pattern(e, boundaries) for e in entries]
    for i, text in enumerate(map(spacing, texts)):
        yield from ((i, j) for j, p in enumerate(patterns) if p in text)


_UNREACHABLE = re.compile(rf"[^ ][{WRAPPED}]|[{WRAPPED}][^ ]|[{WRAPPED}] [{WRAPPED}]|[{SPACES}\0\ufffe]")


def reachable(entry: str, boundaries: Boundaries = "spaces") -> bool:
    """Whether any text can match: spacing leaves no tab or line end, no mark without spaces beside it, and two between two marks."""
    return entry != "" and not _UNREACHABLE.search(pattern(entry, boundaries))


class Matcher:
    """Finds entries in texts. `entries` are distinct, not empty, and hold no NUL; one that no text can match is never found."""

    def __init__(self, entries: Sequence[str], boundaries: Boundaries = "spaces") -> None:
        patterns = [pattern(e, boundaries) for e in entries]
        worded = [p[0] == " " == p[-1] and len(p) > 2 for p in patterns]
        self._word_ids = np.flatnonzero(worded)
        self._other_ids = np.flatnonzero(~np.array(worded, bool))
        words = [_encode(e) for e, w in zip(entries, worded, strict=True) if w]
        self._words = Phrases(words, map(_word_heads, words))
        others = [_encode(p) for p, w in zip(patterns, worded, strict=True) if not w]
        self._others = Phrases(others, map(_character_heads, others)) if others else None
        self._firsts = np.zeros(256, bool)
        self._firsts[[p[0] for p in others]] = True

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return self._words.nbytes + (self._others.nbytes if self._others else 0)

    def match(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(text, entry) as two arrays, each pair once, sorted by text, then entry."""
        found = []
        for lo, hi in _batches(texts):
            pairs = self._batch(texts[lo:hi])
            found.append(pairs + (lo << 32))
        pairs = np.concatenate(found) if found else np.zeros(0, np.int64)
        return pairs >> 32, pairs & 0xFFFFFFFF

    def _batch(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """text << 32 | entry, sorted, each once."""
        raw = laid_out(texts)
        data = np.frombuffer(raw, np.uint8)
        body = data[: len(data) - PAD]
        space = np.flatnonzero(body == 32)
        starts, ends = space[:-1] + 1, space[1:]
        of = np.cumsum(data[starts] == BREAK)
        unit, phrase = self._words.find(data, self._words.powers.sums(body), starts, ends)
        pairs = of[unit] << 32 | self._word_ids[phrase]
        if self._others is not None:
            more = self._by_characters(self._others, data, body)
            pairs = np.concatenate([pairs, more])
        pairs.sort(kind="stable")  # a merge of runs that are in order of texts already: four times as fast here as the default
        return pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])] if len(pairs) else pairs

    def _by_characters(self, others: Phrases, data: NDArray[np.uint8], body: NDArray[np.uint8]) -> NDArray[np.int64]:
        edge = np.flatnonzero((body & 0xC0) != 0x80)  # bytes that begin a character
        ends = np.append(edge[1:], len(body))
        begin = np.flatnonzero(self._firsts[body[edge]])
        unit, phrase = others.find(data, others.powers.sums(body), edge, ends, begin)
        of = np.searchsorted(np.flatnonzero(body == BREAK), edge[unit])
        return of << 32 | self._other_ids[phrase]


def laid_out(texts: Sequence[str]) -> bytes:
    """Spaced texts end to end, " BREAK " between them, and PAD zeros. A NUL inside a text becomes a character that no entry holds."""
    joined = f" {_NUL} ".join(texts)
    if joined.count(_NUL) != len(texts) - 1:
        joined = f" {_NUL} ".join(t.replace(_NUL, "\ufffe") for t in texts)
    data = _encode(f" {joined} ")
    for mark in WRAPPED.encode():
        data = data.replace(bytes([mark]), bytes([32, mark, 32]))
    return data.translate(_TO_SPACE) + bytes(PAD)


_TO_SPACE = bytes(32 if chr(b) in SPACES else b or BREAK for b in range(256))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # half a surrogate pair is a character like another to the rule


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    upto = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 3)
    lo = 0
    while lo < len(texts):
        hi = int(np.searchsorted(upto, (upto[lo - 1] if lo else 0) + BATCH_BYTES)) + 1
        yield lo, min(hi, len(texts))
        lo = hi


def _word_heads(phrase: bytes) -> list[int]:
    cut = [i for i, b in enumerate(phrase) if b == 32] if b" " in phrase else []
    return [*cut, len(phrase)]


def _character_heads(phrase: bytes) -> list[int]:
    return [*(i for i, b in enumerate(phrase) if i and b & 0xC0 != 0x80), len(phrase)]
