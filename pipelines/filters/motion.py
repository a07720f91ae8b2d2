"""Clips that move too little or too much: by their mean motion, and by the part of the picture that moves least.

The second finds moving pictures in a still frame (a speaker beside slides, a game's panels), as cosmos-curate asks for both the global mean and
the least patch: 0.00098 and 0.000001 are its limits, of motion vectors (`by: vectors`). Differences of sampled frames are at another scale,
and no number of the field fits them; 0.002 is ours. Look at `pipelines stats` and the contact sheet for your own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.format.record import Record
from pipelines.measured import score
from pipelines.stage import Filter


class Motion(Filter):
    """Limits of the mean (`min`, `max`) and of the least of 4 × 4 patches (`min_patch`), ends included. `by: difference` reads the scores `motion`
    and `motion_min`, shares of full light that depend on the rate of sampling; without a limit given, min is 0.002. `by: vectors` reads `vectors` and
    `vectors_min`, which the source notes with `motion_vectors: true`; without a limit given, min is 0.00098 and min_patch 0.000001. A
    clip of one frame, or of a codec without vectors, is treated as `missing` says. Reasons: `motion.min`, `.max`, `.min_patch`, `.missing`."""

    by: Literal["difference", "vectors"] = "difference"
    min: float | None = Field(None, ge=0, le=1)
    max: float | None = Field(None, ge=0, le=1)
    min_patch: float | None = Field(None, ge=0, le=1)
    missing: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _some(self) -> Motion:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}: nothing could stay")
        return self

    def _limits(self) -> tuple[float | None, float | None, float | None]:
        given = self.min, self.max, self.min_patch
        if any(limit is not None for limit in given):
            return given
        return (0.002, None, None) if self.by == "difference" else (0.00098, None, 0.000001)

    def reason(self, record: Record) -> str | None:
        name = "motion" if self.by == "difference" else "vectors"
        whole, least = score(record, name), score(record, f"{name}_min")
        if whole is None or least is None:
            return "motion.missing" if self.missing == "drop" else None
        low, high, patch = self._limits()
        if low is not None and whole < low:
            return "motion.min"
        if high is not None and whole > high:
            return "motion.max"
        return "motion.min_patch" if patch is not None and least < patch else None
