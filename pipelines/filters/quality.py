"""How good a text is, by a fastText classifier that the recipe names: an educational-value model, DCLM's, or one of your own.

The rule of datatrove's FastTextClassifierFilter on whole documents: with `keep`, a text stays when one of these labels reaches its score;
with `remove`, it goes when one does. The score of every label named is kept in `scores` as `quality.<label>`.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import PrivateAttr, model_validator

from pipelines.classifier import classifier
from pipelines.format.document import Percent
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import text_of


class Quality(Filter):
    """`keep` or `remove`: label (without `__label__`) → least score. `newline` is what line ends become, since fastText reads one line;
    datatrove's default is nothing, most models were trained with a space."""

    model: str
    sha256: str | None = None
    keep: dict[str, Percent] | None = None
    remove: dict[str, Percent] | None = None
    newline: str = " "
    _last: tuple[str, dict[str, float]] = PrivateAttr(("", {}))

    @model_validator(mode="after")
    def _one_of(self) -> Quality:
        if bool(self.keep) == bool(self.remove):
            raise ValueError("give either `keep` or `remove`, with at least one label")
        return self

    def files(self) -> list[str]:
        return [self.model]

    def reason(self, record: Record) -> str | None:
        text, named = text_of(record), self.keep or self.remove or {}
        model = classifier(self.model, self.sha256)
        unknown = named.keys() - set(model.labels)
        if unknown:
            raise InputError("the model has no such label", where="quality", found=", ".join(sorted(unknown)), allowed=", ".join(model.labels[:50]))
        scores = model.scores(text.strip(), self.newline)
        self._last = (text, {f"quality.{label}": scores.get(label, 0.0) for label in named})
        reached = any(scores.get(label, -1.0) >= least for label, least in named.items())
        return None if reached == bool(self.keep) else "quality"

    def kept(self, record: Record) -> Record:
        """The record with its scores."""
        text, scores = self._last
        assert text is text_of(record), "asked about another record than `reason`"
        return replace(record, scores={**record.scores, **scores})
