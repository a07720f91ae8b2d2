"""Clips that are black or too dark to see: leaders, fades, night.

The limits of pixel and picture are those of FFmpeg's `blackdetect` (a pixel is black up to 0.10, a picture from 98 % of such pixels on). How much
of a clip may be black, FFmpeg does not say; half is ours.
"""

from __future__ import annotations

from pydantic import Field

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.measured import frames, score
from pipelines.stage import Filter


class Black(Filter):
    """`max_share`: the largest share of a clip's frames that may be black, of whose pixels at least `picture` are black. `min_luma`: the least mean
    lightness of a clip, from 0 to 1. Reasons: `black.share`, `black.luma`."""

    max_share: Percent = 0.5
    picture: Percent = 0.98
    min_luma: float | None = Field(None, ge=0, le=1)

    def reason(self, record: Record) -> str | None:
        shares = frames(record, "black")
        if shares and sum(s >= self.picture for s in shares) > self.max_share * len(shares):
            return "black.share"
        luma = score(record, "luma")
        return "black.luma" if self.min_luma is not None and luma is not None and luma < self.min_luma else None
