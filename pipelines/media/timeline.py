"""Which packets of a video must be decoded to show it at given times: arithmetic over the table of its packets, nothing else.

What comes in: a table with the presentation time of every packet in decoding order, and wanted times. What goes out: per wanted time the frame
that is on screen then, and the packets low … high that have to pass through the decoder to get it.

The frame on screen at time t is the last one presented at or before t. It is decoded from the newest key frame presented at or before t:
everything shown from a key frame on needs nothing older, while pictures that *lead* a key frame (decoded after it, shown before it) belong to
the one before. Exact arithmetic in ticks of the stream's own clock; no float is compared. Half a millisecond (at most half a
tick) is allowed for, since muxers round: in Matroska the third frame at 30 a second lies at 67 ms, and is the one on screen at 2/30 s.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Table:
    """One row per packet in decoding order, times in ticks of `base` seconds."""

    pts: np.ndarray
    key: np.ndarray
    shown: np.ndarray
    base: Fraction
    first: int  # presentation time of the first frame: t = 0
    end: int  # when the last frame leaves the screen
    damage: str | None  # why reading stopped early

    @property
    def uneven(self) -> bool:
        """Whether frames stay on screen for different times, by more than muxers round."""
        steps = np.diff(np.sort(self.pts[self.shown]))
        return bool(len(steps) and int(steps.max() - steps.min()) * self.base > Fraction(2, 1000))

    @property
    def leading(self) -> bool:
        """Whether pictures are shown before the key frame that they follow in the file: open groups."""
        newest = np.maximum.accumulate(np.where(self.key, self.pts, self.pts.min()))
        return bool((self.pts < newest).any())


@dataclass(frozen=True, slots=True)
class Want:
    """The frame shown at `tick`: packets low to high must be decoded, and the one presented at `pts` is it."""

    k: int
    tick: int
    pts: int
    low: int
    high: int


def wanted(table: Table, args: dict[str, Any]) -> list[tuple[int, int]]:
    """(k, tick) of what was asked for: `at` (nearest), `shown` (on screen), `numbers`, `uniform` of them, or every 1/`fps` s."""
    if args.get("at") is not None:
        return nearest(table, args["at"])
    if args.get("shown") is not None:
        return on_screen(table, args["shown"])
    if args.get("numbers") is not None:
        return numbered(table, args["numbers"])
    return uniform(table, args) if args.get("uniform") is not None else every(table, args)


def every(table: Table, args: dict[str, Any]) -> list[tuple[int, int]]:
    """(k, tick) of the times start + k/fps that lie before `stop` and before the end; k counts from the start of the video."""
    step = 1 / Fraction(str(args["fps"]))
    start, stop = _range(table, args)
    k = -floor(-start / step)
    out: list[tuple[int, int]] = []
    while k * step < stop and (args.get("max_frames") is None or len(out) < args["max_frames"]):
        out.append((k, _tick(table, k * step)))
        k += 1
    return out


def uniform(table: Table, args: dict[str, Any]) -> list[tuple[int, int]]:
    """(k, tick) of `uniform` times: the middles of so many equal stretches of [start, stop). No time is the very first or last moment, where
    black frames and fades are; one frame asked for is the middle one. Short videos show a frame more than once rather than give fewer."""
    n = int(args["uniform"])
    start, stop = _range(table, args)
    return [(k, _tick(table, start + (stop - start) * Fraction(2 * k + 1, 2 * n))) for k in range(n)] if start < stop else []


def on_screen(table: Table, times: list[float]) -> list[tuple[int, int]]:
    """(k, tick) of times at which something is on screen: from 0 on and before the last frame leaves."""
    end = (table.end - table.first) * table.base
    ticks = [(k, _tick(table, Fraction(time))) for k, time in enumerate(times) if Fraction(time) < end]
    return [(k, tick) for k, tick in ticks if tick >= table.first]


def _range(table: Table, args: dict[str, Any]) -> tuple[Fraction, Fraction]:
    """`start` and `stop` in seconds, within the video."""
    end = (table.end - table.first) * table.base
    start = max(Fraction(0), Fraction(str(args.get("start") or 0)))
    return start, min(end, Fraction(str(args["stop"]))) if args.get("stop") is not None else end


def _tick(table: Table, time: Fraction) -> int:
    slack = min(Fraction(1, 2), Fraction(1, 2000) / table.base)
    return table.first + floor(time / table.base + slack)


def places(table: Table, wants: list[Want]) -> list[int]:
    """The number of each wanted frame in order of presentation, from 0: what decoders that count frames are asked for."""
    shown = np.sort(table.pts[table.shown])
    return [int(n) for n in np.searchsorted(shown, [want.pts for want in wants])]


def nearest(table: Table, times: list[float]) -> list[tuple[int, int]]:
    """(k, tick) of the presented frame nearest to each time; the earlier one when two are as near."""
    shown = np.sort(table.pts[table.shown]).tolist()  # Python's integers: numpy's overflow against a Fraction's
    out = []
    for k, time in enumerate(times):
        tick = Fraction(time) / table.base + table.first
        after = min(bisect_right(shown, tick), len(shown) - 1)
        near = [shown[max(0, after - 1)], shown[after]]
        out.append((k, near[1] if abs(near[1] - tick) < abs(near[0] - tick) else near[0]))
    return out


def numbered(table: Table, numbers: list[int]) -> list[tuple[int, int]]:
    """(k, tick) of frames by their place in order of presentation, from 0; places beyond the end are left out."""
    shown = np.sort(table.pts[table.shown]).tolist()
    return [(k, shown[n]) for k, n in enumerate(numbers) if 0 <= n < len(shown)]


def plan(table: Table, ticks: Iterable[tuple[int, int]]) -> list[Want]:
    """For each tick the packets it needs, in decoding order. Pictures that lead a key frame (decoded after it, shown before it) make `high`
    reach past that key frame while `low` stays before it: exact for open groups of pictures too."""
    order = np.argsort(table.pts, kind="stable")
    shown = order[table.shown[order]]
    sorted_pts, reach = table.pts[shown], np.maximum.accumulate(shown)
    keys = order[table.key[order]]
    key_pts, key_at = table.pts[keys], np.maximum.accumulate(keys) if len(keys) else keys
    out = []
    for k, tick in ticks:
        at = int(np.searchsorted(sorted_pts, tick, side="right")) - 1
        if at < 0:
            continue
        key = int(np.searchsorted(key_pts, tick, side="right")) - 1
        out.append(Want(k, tick, int(sorted_pts[at]), int(key_at[key]) if key >= 0 else 0, int(reach[at])))
    return out
