"""Clips with black bars: films in another frame, upright phone videos in a wide one.

Bars are what all frames of a clip have in common, as shares of height and width (`media/measures.py`). Bars of some pixels at the edges are common in
real videos and harmless: 3 % of a side is ours, there is no number of the field. The source's `crop_bars` takes them off instead.
"""

from __future__ import annotations

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.measured import field
from pipelines.stage import Filter


class Letterbox(Filter):
    """`max_bars` of the height may be bars at top and bottom together (reason `letterbox.rows`), and of the width at both sides
    (`letterbox.columns`)."""

    max_bars: Percent = 0.03

    def reason(self, record: Record) -> str | None:
        top, bottom, left, right = field(record, "bars")
        if top + bottom > self.max_bars:
            return "letterbox.rows"
        return "letterbox.columns" if left + right > self.max_bars else None
