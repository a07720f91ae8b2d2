"""Which frames make which clip: arithmetic over the table of packets and the shots that were found, nothing else.

What comes in: the table of `timeline.py` and a rule as JSON. What goes out: clips as spans of ticks with the ticks that are to be shown of
each. Without shots the whole file is one span, so a clip begins at multiples of its own length (less the overlap); with shots each shot is cut
up from its own first frame on, and no clip reaches past it. All in whole numbers and fractions: no float is compared.

The rule: `length`, `overlap`, `least` and `crop` in seconds; `fps`, or `frames` for so many a clip; `first` and `stop` in seconds: only clips that
begin there; `shots`: [start, stop, begins with a cut, ends with a cut] in ticks, or null; `within`: [start, stop] in seconds, where a list names
a piece of the video, or null. A piece is cut up from its own beginning, as a shot is. Numbers are text, as "16/3".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from pipelines.media.timeline import Table


@dataclass(frozen=True, slots=True)
class Span:
    """A clip: [start, stop) in ticks, and the ticks of its frames. They are `step` ticks apart."""

    start: Fraction
    stop: Fraction
    step: Fraction
    ticks: tuple[int, ...]


def spans(table: Table, rule: dict[str, Any]) -> Iterator[Span]:
    """The clips in order of time."""
    length, overlap, least, crop = (Fraction(rule[name]) / table.base for name in ("length", "overlap", "least", "crop"))
    low = table.first + Fraction(rule["first"]) / table.base
    high = table.first + Fraction(rule["stop"]) / table.base if rule["stop"] is not None else None
    slack = min(Fraction(1, 2), Fraction(1, 2000) / table.base)  # as in `timeline.every`: muxers round
    shown = np.sort(table.pts[table.shown])
    whole = [table.first, table.end, False, False]
    for begin, end, opens, closes in _inside(rule["shots"] if rule["shots"] is not None else [whole], rule.get("within"), table):
        start, stop = begin + (crop if opens else 0), end - (crop if closes else 0)
        at, n = Fraction(start), 0
        while at < stop:
            until = min(at + length, Fraction(stop))
            if n and until - at <= overlap:
                break  # nothing that the clip before does not show
            if until - at + slack >= least and at >= low and (high is None or at < high):
                step, times = _times(at, until, rule, table)
                inside = int(np.searchsorted(shown, ceil(until)) - np.searchsorted(shown, ceil(at)))
                if rule["frames"] is None or inside >= rule["frames"]:
                    yield Span(at, until, step, tuple(min(floor(t + slack), ceil(end) - 1) for t in times))
            n += 1
            at = start + n * (length - overlap)


def _inside(stretches: list[list[Any]], within: list[str | None] | None, table: Table) -> Iterator[tuple[Any, Any, bool, bool]]:
    """Stretches, or what of them lies within the piece; where the piece's edge cuts one off there is no cut of the film."""
    low, high = within if within is not None else (None, None)
    first = table.first + Fraction(low) / table.base if low is not None else None
    last = table.first + Fraction(high) / table.base if high is not None else None
    for begin, end, opens, closes in stretches:
        start = begin if first is None or first <= begin else first
        stop = end if last is None or last >= end else last
        if start < stop:
            yield start, stop, opens and start == begin, closes and stop == end


def _times(at: Fraction, until: Fraction, rule: dict[str, Any], table: Table) -> tuple[Fraction, list[Fraction]]:
    """Every 1/fps from the clip's start; or the middles of so many equal pieces, which keep away from both ends."""
    if rule["frames"] is not None:
        step = (until - at) / rule["frames"]
        return step, [at + (i + Fraction(1, 2)) * step for i in range(rule["frames"])]
    step = 1 / Fraction(rule["fps"]) / table.base
    return step, [at + i * step for i in range(-floor(-(until - at) / step))]


class Wanted:
    """The same as numbered wants for the decoder, and what is to be said of each when its frame is there."""

    def __init__(self, table: Table, rule: dict[str, Any]) -> None:
        self._table, self._spans = table, list(spans(table, rule))
        self._of = [(n, i) for n, span in enumerate(self._spans) for i in range(len(span.ticks))]

    @property
    def ticks(self) -> list[tuple[int, int]]:
        """(k, tick) in order of clips."""
        return [(k, self._spans[n].ticks[i]) for k, (n, i) in enumerate(self._of)]

    def told(self, k: int) -> dict[str, Any]:
        """Which clip (counted from 0) want k belongs to, its place i in it of so many; start, stop and step in seconds, exactly."""
        n, i = self._of[k]
        span, base = self._spans[n], self._table.base
        start, stop = ((t - self._table.first) * base for t in (span.start, span.stop))
        return {"clip": n, "i": i, "of": len(span.ticks), "start": str(start), "stop": str(stop), "step": str(span.step * base)}
