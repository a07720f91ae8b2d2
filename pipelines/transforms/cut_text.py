"""A long document into pieces that a filter, a page or a person can look at: one record becomes n.

Cut at paragraph borders, at a line or sentence end where a paragraph is longer than a piece, and inside a word only where nothing else is
left. Joined again, the pieces are the document. Not needed for packing: the planner cuts token runs where a sequence ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from pipelines.format.document import Size
from pipelines.format.record import Record, Text
from pipelines.stage import Transform

_BORDERS = ("\n\n", "\n", ". ", " ")


class CutText(Transform):
    """Pieces of at most `chars` code points. Ids are new (origin `…~k`), the group stays the document's, so no split divides a document."""

    chars: Size = Field(20_000, ge=1)

    def apply(self, record: Record) -> Iterable[Record]:
        text = "".join(s.text or "" for s in record.segments)
        pieces = list(cut(text, self.chars))
        if record.data != "text" or len(pieces) == 1:
            yield record
            return
        rest = {"licence": record.licence, "url": record.url, "scores": record.scores, "fields": record.fields}
        for k, piece in enumerate(pieces):
            yield Record.make(record.source, f"{record.origin}~{k}", record.data, [Text(piece)], group=record.group, **rest)


def cut(text: str, most: int) -> Iterable[str]:
    """`text` in pieces of at most `most` characters, each ending at the strongest border in its second half. Joined they are `text`."""
    start = 0
    while len(text) - start > most:
        end = start + most
        for border in _BORDERS:
            found = text.rfind(border, start + most // 2, end)
            if found >= 0 and start < found + len(border) <= end:
                end = found + len(border)
                break
        yield text[start:end]
        start = end
    yield text[start:]
