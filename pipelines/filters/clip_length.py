"""Clips too short or too long, in seconds or in frames. What a source never makes (`min_frames`, `min_seconds`) is not counted; what this drops
is."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipelines.format.record import Record
from pipelines.stage import Filter


class ClipLength(Filter):
    """Ends included. Seconds are those of the clip's span; a record without one is judged by its frames' times. Reasons: `clip_length.min_seconds`
    and so on."""

    min_seconds: float | None = Field(None, ge=0)
    max_seconds: float | None = Field(None, ge=0)
    min_frames: int | None = Field(None, ge=1)
    max_frames: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _says_something(self) -> ClipLength:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("give at least one limit")
        return self

    def reason(self, record: Record) -> str | None:
        times = [s.time_s for s in record.segments if s.kind == "image" and s.time_s is not None]
        seconds = record.fields.get("seconds", max(times, default=0.0) - min(times, default=0.0))
        frames = sum(s.kind == "image" for s in record.segments)
        for name, value, limit in (("seconds", seconds, "min"), ("frames", frames, "min"), ("seconds", seconds, "max"), ("frames", frames, "max")):
            allowed = getattr(self, f"{limit}_{name}")
            if allowed is not None and (value < allowed if limit == "min" else value > allowed):
                return f"clip_length.{limit}_{name}"
        return None
