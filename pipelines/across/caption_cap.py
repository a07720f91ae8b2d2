"""One caption under thousands of pictures: of all records with the same caption, at most so many stay.

Web pairs repeat themselves ("untitled", a shop's slogan, a template of a real-estate portal), and what a model reads ten thousand times it learns
by heart. Captions count as the same when NFKC, lower case, spaces, digits and marks make no difference ("Page 2 of 9" and "page 3 of 9"; `digits:
keep` tells them apart). A record with several captions stays as long as one of them is within its cap. Those with the smallest draws stay, so
the answer depends on no order, shard or worker, and a smaller cap keeps a part of what a larger one keeps.

    round 0   record → a row a caption        reduce: the first `most` by draw are within; the others say so
    round 1   by record                       reduce: who is beyond the cap with every caption leaves, as `caption_cap`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal
from unicodedata import category

from pydantic import Field

from pipelines.across.exact_text import folded
from pipelines.format.chance import draw
from pipelines.format.record import Record
from pipelines.stage import Across, Map, Reduce, Row

_SHOWN = 60  # characters of a caption in the report
_NAMED = 20


class CaptionCap(Across):
    """`most` records for one caption. `captions`: names of the captions that count, all by default. `digits`: whether numbers tell captions
    apart. `seed` of the draws."""

    most: int = Field(100, ge=1)
    captions: tuple[str, ...] | None = None
    digits: Literal["fold", "keep"] = "fold"
    seed: int = 0

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """By caption, then by record."""
        return [(self._by_caption, self._beyond), (_by_record, _everywhere)]

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """The captions that were capped, the commonest first."""
        capped = sorted((value for value in told[0] if value[0] == "capped"), key=lambda v: (-v[2], v[1]))
        return {"captions": len(capped), "records": sum(v[2] for v in capped), "commonest": [{"caption": v[1], "n": v[2]} for v in capped[:_NAMED]]}

    def _by_caption(self, records: Iterable[Record]) -> Iterator[Row]:
        for record in records:
            texts = [s.text for s in record.segments if s.text is not None and (self.captions is None or s.member in self.captions)]
            kinds = {self.normal(text) for text in texts}
            for text in sorted(kinds):
                digest = blake2b(text.encode(), digest_size=16).digest()
                key = digest + text[:_SHOWN].encode()
                yield int.from_bytes(digest[:4], "little"), key, [f"{draw(record.h, self.seed, 'survivor'):020d}", record.id, len(kinds)]

    def normal(self, text: str) -> str:
        """The caption as captions are compared; as it is folded where nothing but numbers and marks would be left out."""
        text = folded(text)
        kept = "LMN" if self.digits == "keep" else "LM"  # letters with their combining marks, without which Hindi loses its vowels
        return " ".join("".join(c if category(c)[0] in kept else " " for c in text).split()) or text

    def _beyond(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        for key, same in groupby(rows, key=lambda row: row[1]):
            n = 0
            for n, (_, _, (_, id, captions)) in enumerate(same, 1):  # rows come sorted by draw
                if n > self.most:
                    yield ["beyond", id, captions]
            if n > self.most:
                yield ["capped", key[16:].decode(), n]


def _by_record(values: Iterable[Any]) -> Iterator[Row]:
    yield from ((int(v[1][:8], 16), bytes.fromhex(v[1]), v[2]) for v in values if v[0] == "beyond")


def _everywhere(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    for key, same in groupby(rows, key=lambda row: row[1]):
        captions = [value for _, _, value in same]
        if len(captions) == captions[0]:
            yield key.hex(), "caption_cap"
