"""One caption of several: by name, or the one that a score likes best.

    pick_caption: {best: clip}                          the caption with the highest `clip.<name>`; the first of equal ones
    pick_caption: {name: [recaption, original]}         the first of these that the record has

A choice made here is made once and for all; a mixture's `captions: {original: 0.5, recaption: 0.5}` draws anew for every epoch. The caption keeps
its name and the record its id. The record's own score becomes that of the caption that stays, and scores of the others go with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import model_validator

from pipelines.captions import column, named, only
from pipelines.format.record import Record
from pipelines.stage import Transform


class PickCaption(Transform):
    """Exactly one of `name` and `best`. `missing`: a record without any of the names, or with several captions and no score of any, is dropped as
    `empty`, or kept as it is."""

    name: str | tuple[str, ...] | None = None
    best: str | None = None
    missing: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _one(self) -> PickCaption:
        if (not self.name) == (not self.best):
            raise ValueError("exactly one of `name` and `best` says which caption stays")
        return self

    def apply(self, record: Record) -> Iterable[Record]:
        if record.data != "image-text":
            yield record
            return
        kept = self._chosen(record)
        if kept is not None:
            yield only(record, kept)
        elif self.missing == "keep":
            yield record

    def _chosen(self, record: Record) -> str | None:
        names = [name for name, _ in named(record)]
        if self.best is None:
            asked = (self.name,) if isinstance(self.name, str) else self.name or ()
            return next((name for name in asked if name in names), None)
        if len(names) == 1:
            return names[0]
        known = {name: np.float32(record.scores[key]) for name in names if (key := column(self.best, name)) in record.scores}
        return max(known, key=lambda name: known[name]) if known else None  # of equal ones the first: captions stand in the record's order
