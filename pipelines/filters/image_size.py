"""Images too small to learn from, too large to decode safely, or too long and thin to crop: judged by the header's width and height.

One image of a record outside the limits drops the record. Needs no pixels: sources set each image segment's shape from its header.
"""

from __future__ import annotations

from pipelines.format.document import Size
from pipelines.format.record import Record
from pipelines.stage import Filter


class ImageSize(Filter):
    """`min_side` in pixels, `max_pixels` = width × height (sizes such as 50M), `max_aspect` = longer ÷ shorter side."""

    min_side: int = 1
    max_pixels: Size | None = None
    max_aspect: float | None = None

    def reason(self, record: Record) -> str | None:
        for segment in record.segments:
            if segment.kind != "image":
                continue
            height, width = segment.shape[:2]
            if min(height, width) < self.min_side:
                return "image_size.min_side"
            if self.max_pixels is not None and height * width > self.max_pixels:
                return "image_size.max_pixels"
            if self.max_aspect is not None and max(height, width) > self.max_aspect * min(height, width):
                return "image_size.max_aspect"
        return None
