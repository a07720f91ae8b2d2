"""Which language a text is in, by a fastText model that the recipe names: lid.176.bin, GlotLID, or one of your own.

The rule of datatrove's LanguageFilter: with `languages`, a text stays when any of them scores above `threshold`; without, when the best
language does. What stays carries its language in `fields.language` and the score in `scores.language`, so a mixture can weigh by it. The
model is never downloaded: a path is asked for, and `sha256` pins its bytes.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import PrivateAttr

from pipelines.classifier import classifier
from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import text_of


class Language(Filter):
    """`languages` are the model's own labels without `__label__` (`en`, or `eng_Latn` for GlotLID); null accepts all. 0.65 is FineWeb's
    threshold."""

    model: str
    sha256: str | None = None
    languages: tuple[str, ...] | None = None
    threshold: Percent = 0.65
    _last: tuple[str, str, float] = PrivateAttr(("", "", 0.0))

    def files(self) -> list[str]:
        return [self.model]

    def reason(self, record: Record) -> str | None:
        text = text_of(record)
        scores = classifier(self.model, self.sha256).scores(text, " ")
        best = max(scores, key=lambda label: scores[label])
        self._last = (text, best, scores[best])
        asked = self.languages or (best,)
        return None if any(scores.get(label, 0.0) > self.threshold for label in asked) else "language"

    def kept(self, record: Record) -> Record:
        """The record with its language and the score."""
        text, best, score = self._last
        assert text is text_of(record), "asked about another record than `reason`"
        return replace(record, fields={**record.fields, "language": best}, scores={**record.scores, "language": score})
