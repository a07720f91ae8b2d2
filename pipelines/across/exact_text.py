"""Exact duplicates of text: of all records with the same normalised text, the one that comes first in a seeded draw stays.

In: every record's text segments, joined. Out: the ids of the others, as `exact_text`. Normalising is NFKC, lower case and white space folded, so
that copies which differ in spacing or capitals are found. The survivor is the record with the smallest draw(h, seed, "survivor"), ties by id: it
does not depend on order, sharding or workers, and no crawl is favoured for being read first.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import groupby
from typing import Any

from pipelines.format.chance import draw
from pipelines.format.record import Record
from pipelines.stage import Across, Row


def folded(text: str) -> str:
    """The text as copies are compared: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


class ExactText(Across):
    """`seed` decides which copy survives."""

    seed: int = 0

    def rounds(self) -> list[tuple[Callable[[Any], Iterable[Row]], Callable[[Iterable[Row]], Iterable[Any]]]]:
        """One round: by hash of the text."""
        return [(self._hashed, self._others)]

    def _hashed(self, records: Iterable[Record]) -> Iterator[Row]:
        for r in records:
            text = "\n".join(s.text for s in r.segments if s.text is not None)
            digest = blake2b(folded(text).encode(), digest_size=16).digest()
            yield int.from_bytes(digest[:4], "little"), digest, [f"{draw(r.h, self.seed, 'survivor'):020d}", r.id]

    def _others(self, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
        for _, same in groupby(rows, key=lambda row: row[1]):
            _, *others = sorted(value for _, _, value in same)
            yield from ((id, "exact_text") for _, id in others)
