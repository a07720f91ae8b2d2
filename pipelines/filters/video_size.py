"""Videos too small to learn from, or too long and thin to crop: judged by the picture as a player shows it, before any resizing.

`image_size` sees what is stored, after the source has resized it. cosmos-curate's motion filter rejects sides of less than 256 pixels: the
default.
"""

from __future__ import annotations

from pydantic import Field

from pipelines.format.record import Record
from pipelines.measured import field
from pipelines.stage import Filter


class VideoSize(Filter):
    """`min_side` in pixels; `max_aspect` = longer ÷ shorter side. Reasons: `video_size.min_side`, `video_size.max_aspect`."""

    min_side: int = Field(256, ge=1)
    max_aspect: float | None = Field(None, ge=1)

    def reason(self, record: Record) -> str | None:
        width, height = field(record, "shown")
        if min(width, height) < self.min_side:
            return "video_size.min_side"
        return "video_size.max_aspect" if self.max_aspect is not None and max(width, height) > self.max_aspect * min(width, height) else None
