"""Clips that move too little or too much: by their mean change, and by the part of the picture that moves least.

The second finds moving pictures in a still frame (a speaker beside slides, a game's panels), as cosmos-curate asks for both the global mean and
the least patch. Its limits (0.00098 and 0.000001) are of motion vectors; these measures are differences of sampled frames, at another scale,
so nothing is on by default but `min`. Look at `pipelines stats` and the contact sheet for your own.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from pipelines.format.record import Record
from pipelines.measured import score
from pipelines.stage import Filter


class Motion(Filter):
    """Limits of the scores `motion` (`min`, `max`) and `motion_min` (`min_patch`, of 4 × 4), shares of full light, ends included. They depend on
    the rate of sampling. Clips of one frame are kept. Reasons: `motion.min`, `motion.max`, `motion.min_patch`."""

    min: float | None = Field(0.002, ge=0, le=1)
    max: float | None = Field(None, ge=0, le=1)
    min_patch: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> Motion:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}: nothing could stay")
        return self

    def reason(self, record: Record) -> str | None:
        whole, least = score(record, "motion"), score(record, "motion_min")
        if whole is None or least is None:
            return None
        if self.min is not None and whole < self.min:
            return "motion.min"
        if self.max is not None and whole > self.max:
            return "motion.max"
        return "motion.min_patch" if self.min_patch is not None and least < self.min_patch else None
