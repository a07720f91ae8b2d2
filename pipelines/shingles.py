"""Runs of words as numbers: what near-duplicate search and decontamination compare.

What comes in: a text, how many words a run has, the language. What goes out: xxhash64 of every run, uint64 [words − n + 1]. Text is
simplified first (lower case, digits folded to 0, punctuation and diacritics gone), so copies that differ in typography meet. Both steps
give exactly what datatrove's `simplify_text` and MinHash shingles give (tested), in a third of the time: plain ASCII needs no Unicode pass,
words come from the lexicon, and the runs are slices of one string.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.extra import need
from pipelines.words import Words, lexicon


def simplified(text: str) -> str:
    """Lower case, numbers as 0, no punctuation, no diacritics, single spaces."""
    text = _tables().NUMBERS_PATTERN.sub("0", text.lower()).translate(_tables().PUNCTUATION_TRANS)
    text = " ".join(text.split())  # str.split knows the white space that the pattern \s knows
    if text.isascii():
        return text
    text = unicodedata.normalize("NFD", text)
    marks = [c for c in set(text) if unicodedata.category(c) == "Mn"]
    return text.translate(dict.fromkeys(map(ord, marks))).strip()


def words_simplified(text: str, language: str) -> Words:
    """The words of the simplified text."""
    return lexicon(language).of(simplified(text))


def runs(words: Words, n: int) -> NDArray[np.uint64]:
    """xxhash64 of every n words in a row, joined by spaces, in order."""
    if len(words) < n:
        return np.empty(0, np.uint64)
    joined = " ".join(words.texts)
    data = joined.encode()
    sizes = words.lexicon.length[words.ids] if len(data) == len(joined) else np.fromiter((len(w.encode()) for w in words.texts), np.int64)
    ends = np.cumsum(sizes + 1)
    starts = (ends - sizes - 1)[: len(words) - n + 1].tolist()
    digest = _hash()
    found = [digest(data[a:b]) for a, b in zip(starts, (ends[n - 1 :] - 1).tolist(), strict=True)]
    return np.array(found, np.uint64)


@cache
def _tables() -> Any:
    return need("datatrove.utils.text", "comparing texts")


@cache
def _hash() -> Any:
    return need("xxhash", "comparing texts").xxh64_intdigest
