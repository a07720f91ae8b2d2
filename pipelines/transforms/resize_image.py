"""Images to the size the encoder wants, as JPEG: what makes photos of any size storable by the million.

Decoding here is also the full check: damage in the middle of a file, which no header shows, costs its record now and not an encoder's
batch later; it happens in the guarded child (`media/still.py`). A JPEG that is already of the size wanted keeps its bytes: a second
compression would only lose detail. One of three times the size and more is decoded at a half, quarter or eighth scale, which takes a third of the
time. (Encoders never do that: there the processor's exact pixels count.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from pipelines.format.document import Size
from pipelines.format.record import Record
from pipelines.media import images, resizing, still
from pipelines.stage import Transform

Resized = tuple[bytes, tuple[int, int, int], int | None]  # JPEG, its shape, the perceptual hash
RECENT = 8  # frames and question images shared by neighbouring records are done once
_recent: list[tuple[bytes, ResizeImage, Resized]] = []


class ResizeImage(Transform):
    """Bicubic, antialiased. `mode`: center_crop → size × size; keep_ratio → shortest side = size; keep_ratio_largest → longest side = size;
    border → the same on a white square; no → only decoded and, unless JPEG or plain PNG, re-encoded. `upscale: false` leaves small images small
    (img2dataset's `resize_only_if_bigger`). `quality` is JPEG's, 1 to 95. `phash` notes the perceptual hash of the whole picture for records of one
    image, for which the pixels are at hand."""

    version: ClassVar[int] = 3  # 2: large JPEGs are decoded at reduced scale; PNGs that nothing is done to stay PNGs; 3: perceptual hashes
    size: int = Field(224, ge=1, le=16384)
    mode: resizing.Mode = "center_crop"
    quality: int = Field(92, ge=1, le=95)
    upscale: bool = True
    max_pixels: Size = images.MAX_PIXELS
    phash: bool = True

    def apply(self, record: Record) -> Iterable[Record]:
        one = sum(s.kind == "image" for s in record.segments) == 1 and record.phash is None
        segments, hashed = [], record.phash
        for s in record.segments:
            if s.kind == "image":
                assert s.payload is not None
                payload, shape, found = self._resized(s.payload, self.phash and one)
                s = replace(s, payload=payload, shape=shape, dtype=s.dtype if payload == s.payload else "jpeg")
                hashed = found if one else hashed
            segments.append(s)
        yield replace(record, segments=tuple(segments), phash=hashed)

    def _resized(self, payload: bytes, phash: bool) -> Resized:
        for before, how, known in _recent:
            if before == payload and how == self and (known[2] is not None or not phash):
                return known
        keep = ("jpeg", "png") if self.mode == "no" else ("jpeg",)
        made = still.resized(payload, self.size, self.mode, self.quality, self.upscale, self.max_pixels, keep, phash)
        _recent.append((payload, self, made))
        del _recent[:-RECENT]
        return made
