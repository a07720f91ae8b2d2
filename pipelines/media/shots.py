"""Video bytes → where its shots begin and end. Runs inside the guarded child; the only importer of PySceneDetect.

What comes in: an open file, the detector and its thresholds, and which stretches of the file are asked for. What goes out: spans between cuts in
ticks of the stream's clock, each with whether it begins and ends with a cut; a `Reject` at the end when something was lost.

PySceneDetect never opens a file: it is handed frames that `pyav_frames.py` decoded, all of them, shrunk to `WIDTH` pixels (as its own reader does),
with their exact presentation times. Its merging of near cuts is off, since a clip must not cross any cut: what lies between two near ones is a
short shot, and is left out as such. A cut is the presentation time of the first frame of the new shot.

A file is looked at in stretches of `stretch` seconds with a fresh detector each: what is found in one depends on nothing outside of it, so parts
that share a long file find what one alone would, and memory stays bounded. A shot that runs over a mark is two.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from pipelines.format.errors import Reject
from pipelines.media.frames import _open, _survey
from pipelines.media.pyav_frames import _wanted
from pipelines.media.timeline import Table, Want, numbered, plan

WIDTH = 256  # pixels; PySceneDetect's thresholds are meant for frames of about this width
_EVERY = 32  # frames between two signs of life: the limits on time are per answer

cv2.setNumThreads(1)  # workers are the parallelism


def detect(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Answers {shot: [start, stop, begins with a cut, ends with a cut]} in order, among others without `shot`, which only show life."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
    shown = np.sort(table.pts[table.shown]).tolist()
    low, high = (_mark(table, s, args["stretch"]) if s is not None else None for s in (args["first"], args["stop"]))
    numbers = [n for n, pts in enumerate(shown) if (low is None or pts >= low) and (high is None or pts < high)]
    wants = plan(table, [(numbers[k], tick) for k, tick in numbered(table, numbers)])
    lost: list[tuple[Want, str]] = []
    run: _Run | None = None
    for want, frame, _ in _wanted(lambda: _open(args, file), wants, info["codec"], lost.append):
        stretch = (want.tick - table.first) * table.base // args["stretch"]
        if run is None or want.k != run.last + 1 or stretch != run.stretch:
            yield from _told(run, shown, table)
            run = _Run(args, info["fps"], table, stretch, want)
        run.see(want, frame)
        if want.k % _EVERY == 0:
            yield {}, b""
    yield from _told(run, shown, table)
    if lost:
        raise Reject("unreadable", f"{len(lost)} of {len(wants)} frames lost, the first at {_seconds(table, lost[0][0].tick):.3f} s: {lost[0][1]}")
    if table.damage:
        raise Reject("truncated", f"stops at {info['duration_s']:.3f} s: {table.damage}")


def _mark(table: Table, seconds: str, stretch: int) -> int:
    """The tick of the first mark at or after this time: a stretch belongs to the part in which it begins."""
    return table.first + ceil(ceil(Fraction(seconds) / stretch) * stretch / table.base)


def _seconds(table: Table, tick: int) -> float:
    return float((tick - table.first) * table.base)


def _told(run: "_Run | None", shown: list[int], table: Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    if run is not None:
        end = shown[run.last + 1] if run.last + 1 < len(shown) else table.end
        edges = [run.start, *run.cuts, end]
        for n, (start, stop) in enumerate(pairwise(edges)):
            yield {"shot": [start, stop, n > 0, n < len(run.cuts)]}, b""


class _Run:
    """Frames in a row, none lost: a detector and the cuts it has found."""

    def __init__(self, args: dict[str, Any], fps: float, table: Table, stretch: Any, first: Want) -> None:
        self.start, self.last, self.stretch = first.pts, first.k - 1, stretch
        self.cuts: list[int] = []
        self._base, self._zero, self._fps = table.base, table.first, Fraction(fps).limit_denominator(1001) or Fraction(1)
        self._shrink, self._seen = VideoReformatter(), -1
        if args["detector"] == "content":
            self._detector = ContentDetector(threshold=args["threshold"], min_scene_len=0)
        else:
            self._detector = AdaptiveDetector(adaptive_threshold=args["threshold"], min_scene_len=0)

    def see(self, want: Want, frame: VideoFrame) -> None:
        self.last = want.k
        pts = (frame.pts or 0) - self._zero
        if pts == self._seen:  # a packet that shows nothing new
            return
        self._seen = pts
        width = min(frame.width, WIDTH)
        height = max(1, round(frame.height * width / frame.width))
        small = self._shrink.reformat(frame, width, height, "bgr24", interpolation="AREA").to_ndarray()
        found = self._detector.process_frame(FrameTimecode(Timecode(pts, self._base), self._fps), small)
        self.cuts += [int(cut.pts) + self._zero for cut in found if int(cut.pts) + self._zero > self.start]
