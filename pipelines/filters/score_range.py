"""Records whose scores lie outside limits: similarity too low, a probability too high, a mark too small. Scores come from `pipelines run score`,
or from filters that note one (`language`, `quality`).

    score_range: {scores: {clip: {min: 0.28}, nsfw: {max: 0.1, missing: keep}}}

The shape and the meaning are those of a mixture's `where`, which leaves the choice to each mixture; here what falls outside is gone for good.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.format.document import Document
from pipelines.format.record import Record
from pipelines.stage import Filter


class Limits(Document):
    """Ends included, compared as the float32 that scores are stored in. `missing`: what becomes of a record without this score."""

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)
    missing: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _some(self) -> Limits:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}: nothing could stay")
        return self

    def problem(self, value: float | None) -> str | None:
        """min, max or missing; None for what may stay."""
        if value is None:
            return "missing" if self.missing == "drop" else None
        if not (self.min is None or np.float32(value) >= np.float32(self.min)):
            return "min"
        return None if self.max is None or np.float32(value) <= np.float32(self.max) else "max"


class ScoreRange(Filter):
    """`scores` by name: `clip`, or one caption's `clip.recaption`. The reason names the score and the limit: `score_range.clip.min`."""

    scores: dict[str, Limits] = Field(min_length=1)

    def reason(self, record: Record) -> str | None:
        for name, limits in self.scores.items():
            problem = limits.problem(record.scores.get(name))
            if problem:
                return f"score_range.{name}.{problem}"
        return None
