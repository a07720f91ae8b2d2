"""Video bytes → how far the codec's motion vectors reach in each clip. Runs inside the guarded child.

What comes in: an open file and the rule of `spans.py`. What goes out: per clip the mean length of its vectors, and that of the least moving of 4 × 4
patches. The measure is cosmos-curate's: lengths as shares of width + height, weighted by the block's area over the whole picture (blocks without
a vector stand still), averaged over the frames that have vectors, so not over key frames. Unlike there all frames are read, the patches are
a sixteenth of the picture and not 256 pixels wide, and small pictures are measured too.

Only h264 and mpeg4 decoders hand their vectors out; of other codecs nothing is said. All frames of all clips are decoded: without shots about
twice the work of sampling a frame a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import numpy as np
from av.codec.context import Flags2
from av.video.frame import VideoFrame

from pipelines.media.frames import _open, _survey
from pipelines.media.pyav_frames import _wanted
from pipelines.media.spans import spans
from pipelines.media.timeline import plan

GRID = 4
_EVERY = 64  # frames between two signs of life: the limits on time are per answer


def measure(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Answers {clip, vectors, vectors_min} at the end, in order; clips without any vector are left out. Frames that do not decode are passed over:
    whoever takes the clip's pictures says so."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
    if info["codec"] not in ("h264", "mpeg4"):
        return
    clips = list(spans(table, args["clips"]))
    starts, stops = (np.array([ceil(t) for t in ts], np.int64) for ts in ([c.start for c in clips], [c.stop for c in clips]))
    shown = np.sort(table.pts[table.shown])
    first, behind = np.searchsorted(stops, shown, side="right"), np.searchsorted(starts, shown, side="right")
    inside = np.flatnonzero(first < behind)  # clips first … behind hold this frame
    sums, counts = np.zeros((len(clips), GRID, GRID)), np.zeros(len(clips), int)
    wants = plan(table, [(int(n), int(shown[n])) for n in inside])
    for want, frame, _ in _wanted(lambda: _vectored(args, file), wants, info["codec"], lambda lost: None):
        lengths = _lengths(frame)
        if lengths is not None:
            sums[first[want.k] : behind[want.k]] += lengths
            counts[first[want.k] : behind[want.k]] += 1
        if want.k % _EVERY == 0:
            yield {}, b""
    for n in np.flatnonzero(counts):
        mean = sums[n] / counts[n]
        yield {"clip": int(n), "vectors": float(mean.mean()), "vectors_min": float(mean.min())}, b""


@contextmanager
def _vectored(args: dict[str, Any], file: Any) -> Iterator[tuple[Any, Any]]:
    with _open(args, file) as (container, stream):
        stream.codec_context.flags2 |= Flags2.export_mvs
        yield container, stream


def _lengths(frame: VideoFrame) -> np.ndarray | None:
    """float64 [GRID, GRID]: the mean length per patch; None for a frame without vectors. A block with two references counts half for each."""
    sides: Any = frame.side_data  # typed as a mapping, and walked as a list
    found = [d.to_ndarray() for d in sides if d.type.name == "MOTION_VECTORS"]
    if not found or not len(found[0]):
        return None
    v = found[0]
    length = np.hypot(v["motion_x"], v["motion_y"]) / np.maximum(v["motion_scale"], 1) / (frame.width + frame.height)
    area = v["w"].astype(float) * v["h"]
    row, column = (np.clip(v[d].astype(int) * GRID // side, 0, GRID - 1) for d, side in (("dst_y", frame.height), ("dst_x", frame.width)))
    patch = row * GRID + column
    covered = np.bincount(patch, area, GRID * GRID)
    moved = np.bincount(patch, area * length, GRID * GRID)
    return np.asarray(moved / np.maximum(covered, frame.width * frame.height / GRID**2)).reshape(GRID, GRID)
