"""Clips that stand still: title cards, slides, frozen cameras. Where one slide follows another the mean has motion; it is found all the same.

A frame is still when it differs from the sampled frame before by less than `noise`: FFmpeg's `freezedetect` says 0.001 (−60 dB), of the mean absolute
difference too. How much of a clip may stand still, FFmpeg does not say; half is ours. Clips of one frame are kept.
"""

from __future__ import annotations

from pydantic import Field

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.measured import frames
from pipelines.stage import Filter


class Static(Filter):
    """`max_share`: the largest share of a clip's sampled frames that may be still, each compared with the one before."""

    max_share: Percent = 0.5
    noise: float = Field(0.001, ge=0, le=1)

    def reason(self, record: Record) -> str | None:
        changes = frames(record, "motion")
        return "static" if changes and sum(c < self.noise for c in changes) > self.max_share * len(changes) else None
