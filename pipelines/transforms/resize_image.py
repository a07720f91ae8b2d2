"""Images to the size the encoder wants, as JPEG: what makes photos of any size storable by the million.

Decoding here is also the full check: damage in the middle of a file, which no header shows, costs its record now and not an encoder's
batch later; it happens in the guarded child (`media/still.py`). A JPEG that is already of the size wanted keeps its bytes: a second
compression would only lose detail. One of three times the size and more is decoded at a half, quarter or eighth scale, which takes a third of the
time. (Encoders never do that: there the processor's exact pixels count.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from pipelines.format.document import Size
from pipelines.format.record import Record, Segment
from pipelines.media import images, still
from pipelines.stage import Transform


class ResizeImage(Transform):
    """Bicubic, antialiased. `mode`: center_crop → size × size; keep_ratio → shortest side = size; keep_ratio_largest → longest side = size;
    border → the same on a white square; no → only decoded and, unless JPEG or plain PNG, re-encoded. `upscale: false` leaves small images small
    (img2dataset's `resize_only_if_bigger`). `quality` is JPEG's, 1 to 95."""

    version: ClassVar[int] = 2  # 2: large JPEGs are decoded at reduced scale; PNGs that nothing is done to stay PNGs
    size: int = Field(224, ge=1, le=16384)
    mode: images.Mode = "center_crop"
    quality: int = Field(92, ge=1, le=95)
    upscale: bool = True
    max_pixels: Size = images.MAX_PIXELS

    def apply(self, record: Record) -> Iterable[Record]:
        yield replace(record, segments=tuple(self._resized(s) if s.kind == "image" else s for s in record.segments))

    def _resized(self, segment: Segment) -> Segment:
        assert segment.payload is not None
        payload, shape = _resize(segment.payload, self)
        return replace(segment, payload=payload, shape=shape, dtype=segment.dtype if payload == segment.payload else "jpeg")


@lru_cache(maxsize=8)  # frames and question images shared by neighbouring records are done once; small after resizing
def _resize(payload: bytes, how: ResizeImage) -> tuple[bytes, tuple[int, ...]]:
    keep = ("jpeg", "png") if how.mode == "no" else ("jpeg",)
    return still.resized(payload, how.size, how.mode, how.quality, how.upscale, how.max_pixels, keep)
