"""Video bytes → its clips as small mp4 files. Runs inside the guarded child.

What comes in: an open file and the rule of `spans.py`. What goes out: per clip an mp4 of the frames on screen in it, h264, upright, square pixels, no
other stream. It begins with the clip's first moment, keeps the frames' own times, and ends where a frame is lost.

Always encoded anew, never copied: a copy has to begin at a key frame before the clip and needs a player that obeys edit lists; it hands a
stranger's bits on to whoever opens the dataset; and seven codecs in four containers would have to be read there. The price is time (the
encoder's and one whole decode) and a second loss. One thread: the same bytes for any number of workers, with one build of the encoder.
"""

import io
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any

import av
import numpy as np

from pipelines.format.errors import Reject
from pipelines.media import resizing
from pipelines.media.frames import _open, _survey
from pipelines.media.pyav_frames import _wanted, pixels
from pipelines.media.spans import Span, spans
from pipelines.media.timeline import Table, plan

_EVERY = 8  # frames between two signs of life: the limits on time are per answer
_PRESET = {"preset": "veryfast", "threads": "1", "rc-lookahead": "10"}  # a shorter lookahead: an hour's memory is that of ten frames


def cut(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Answers {clip, frames, shape: [height, width, 3]} with the file, in order; clips whose first frame does not decode, or that pass
    `max_bytes`, are left out. Other answers only show life."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
    shown = np.sort(table.pts[table.shown])
    waiting = deque(_Cut(n, span, shown, table, args) for n, span in enumerate(spans(table, args["clips"])))
    inside = np.zeros(len(shown), bool)
    for clip in waiting:
        inside[clip.first : clip.behind] = True
    wants = plan(table, [(int(k), int(shown[k])) for k in np.flatnonzero(inside)])
    running: deque[_Cut] = deque()
    for want, frame, stream in _wanted(lambda: _open(args, file), wants, info["codec"], lambda lost: None):
        while running and want.k >= running[0].behind:
            yield from running.popleft().finished()
        while waiting and waiting[0].first <= want.k:
            running.append(waiting.popleft())
        array = pixels(frame, stream.sample_aspect_ratio, args["max_pixels"])
        for clip in running:
            clip.add(want.k, int(shown[want.k]), array)
        if want.k % _EVERY == 0:
            yield {}, b""
    for clip in running:
        yield from clip.finished()


class _Cut:
    """One clip being written: frames `first` to `behind` in order of presentation, of which the first is on screen when the clip begins."""

    def __init__(self, n: int, span: Span, shown: np.ndarray, table: Table, args: dict[str, Any]) -> None:
        self.n, self._base, self._args = n, table.base, args
        self._start = max(table.first, ceil(span.start))
        self.first = max(0, int(np.searchsorted(shown, self._start, side="right")) - 1)
        self.behind = int(np.searchsorted(shown, ceil(span.stop)))
        self._next, self._last, self._bytes = self.first, -1, io.BytesIO()
        self._box: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def add(self, k: int, pts: int, array: np.ndarray) -> None:
        if k != self._next or k >= self.behind or self._bytes.tell() > self._args["max_bytes"]:
            return
        self._next += 1
        at = max(0, pts - self._start)
        if at <= self._last:  # a packet that shows nothing has the time of another one
            return
        self._last = at
        array = _even(array, self._args["side"])
        if self._box is None:
            self._open(array)
        if array.shape != self._shape:
            raise Reject("not_allowed", f"pictures change from {self._shape} to {array.shape}")
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        frame.time_base, frame.pts = self._base, at
        self._box.mux(self._stream.encode(frame))

    def finished(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        if self._box is None:
            return
        self._box.mux(self._stream.encode(None))
        self._box.close()
        data = self._bytes.getvalue()
        if len(data) <= self._args["max_bytes"]:
            yield {"clip": self.n, "frames": self._next - self.first, "shape": list(self._shape)}, data

    def _open(self, array: np.ndarray) -> None:
        self._shape = array.shape
        self._box = av.open(self._bytes, "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream = self._box.add_stream("libx264", rate=Fraction(30), options={**_PRESET, "crf": str(self._args["crf"])})
        context = self._stream.codec_context
        context.height, context.width, context.pix_fmt = *array.shape[:2], "yuv420p"
        context.time_base, context.colorspace, context.color_range = self._base, 5, 1  # BT.601 in limited range, as converted to
        context.thread_count = 1


def _even(array: np.ndarray, side: int | None) -> np.ndarray:
    """No longer than `side`, and an even number of lines and columns, as 4:2:0 needs."""
    if side is not None and max(array.shape[:2]) > side:
        array = resizing.resize(np.ascontiguousarray(array), side, "keep_ratio_largest")
    height, width = (n - n % 2 for n in array.shape[:2])
    if not height or not width:
        raise Reject("not_allowed", f"{array.shape[1]} × {array.shape[0]} pixels are too few for a clip of their own")
    return np.ascontiguousarray(array[:height, :width])
