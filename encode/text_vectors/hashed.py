"""Hashed word n-grams: a text's direction from the words and word pairs it uses, with no model at all (Weinberger et al. 2009, feature hashing).

In: texts. Out: for each piece of `piece` words the counts of its 1- to `words`-grams, hashed to `width` places, at unit length. Texts are cut into
pieces of one size because a long document uses every common word and a caption cannot: without it, length alone would be most of the distance.
Words are lower-case and stand apart from marks. Weights are whole numbers (2^20 to one), so sums are exact and no order or sharding shows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from encode.text_vectors import TextVectors
from pipelines.format.document import Size
from pipelines.matching import BREAK, laid_out
from pipelines.phrases import PAD, Powers

_MIX = np.uint64(0x9E3779B97F4A7C15)
_ONE = 1 << 20
_POWERS = Powers(0xC2B2AE3D27D4EB4F)


class Hashed(TextVectors):
    """`words`: the longest n-gram; `width`: places of a vector; `piece`: words of a piece (a caption's length)."""

    words: int = Field(2, ge=1, le=5)
    width: Size = Field(262_144, ge=256)
    piece: int = Field(16, ge=1)

    def sums(self, texts: list[str]) -> tuple[NDArray[np.float64], int]:
        total = np.zeros(self.width, np.float64)
        n = 0
        for lo in range(0, len(texts), 2_000):
            piece, place = self._grams(texts[lo : lo + 2_000])
            if not len(piece):
                continue
            n += len(np.unique(piece))
            both, count = np.unique(piece * self.width + place, return_counts=True)
            piece, place = both // self.width, both % self.width
            length = np.sqrt(np.bincount(piece, count.astype(np.float64) ** 2))
            total += np.bincount(place, np.rint(_ONE * count / length[piece]), self.width)
        return total / _ONE, n

    def _grams(self, texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(piece, place) of every n-gram; no n-gram goes from one piece into the next."""
        data = np.frombuffer(laid_out([t.lower() for t in texts]), np.uint8)[:-PAD]
        edge = np.flatnonzero(data == 32)
        starts, ends = edge[:-1] + 1, edge[1:]
        of = np.cumsum(data[starts] == BREAK)
        real = (ends > starts) & (data[starts] != BREAK)
        starts, ends, of = starts[real], ends[real], of[real]
        sums = _POWERS.sums(data)
        word = ((sums[ends] - sums[starts]) * _POWERS.down[starts]) * _MIX
        word ^= word >> np.uint64(29)
        first = np.flatnonzero(np.diff(of, prepend=-1))
        within = np.arange(len(of)) - np.repeat(first, np.diff(first, append=len(of)))
        piece = np.cumsum((within % self.piece) == 0) - 1
        pieces, hashes = [piece], [word]
        gram = word
        for n in range(1, self.words):
            gram = gram[:-1] * _MIX + word[n:]
            same = piece[n:] == piece[: len(piece) - n]
            pieces.append(piece[n:][same])
            hashes.append(gram[same])
        place = (np.concatenate(hashes) * _MIX >> np.uint64(16)) % np.uint64(self.width)
        return np.concatenate(pieces), place.astype(np.int64)
