"""Wanted frames of a trusted video through decord. Runs in a guarded child of its own kind (`backends.py`).

What comes in: a file that our survey found to be of a sort that decord gets right, and frame numbers. What goes out: RGB pixels of each.

decord has not been kept since 2021: it brings FFmpeg 4.1, cannot be told which formats to open, and leaks (hence the short life of its child).
It shows damaged pictures as they come, painted over; only our survey's own kinds of damage are refused. No path can be opened behind the walls
of the child, so the file is read into memory, and held twice.
"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from pipelines.format.errors import Reject
from pipelines.media.frames import Decoded, Found, Lose, sampled
from pipelines.media.timeline import Table, Want, places

os.environ.setdefault("PATH", "")  # decord asks for it, and the child's environment is empty
from decord import VideoReader
from decord._ffi.base import DECORDError

MAX_BYTES = 1 << 30
_BATCH = 64 << 20  # bytes of pixels in hand


def about(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """One answer: the versions that `doctor` shows."""
    yield {"found": f"{version('decord')}, FFmpeg 4.1 of its own"}, b""


def sample(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """As `frames.sample`."""

    def decode(found: Found, wants: list[Want], lose: Lose) -> Decoded:
        return _decode(file, found, wants)

    return sampled(args, file, "decord", decode)


def _decode(file: Any, found: Found, wants: list[Want]) -> Decoded:
    size = file.seek(0, 2)
    if size > MAX_BYTES:
        raise Reject("too_large", f"{size} bytes for decord, which holds the file in memory; allowed {MAX_BYTES}; backend: auto takes pyav")
    file.seek(0)
    try:
        reader = VideoReader(file, num_threads=1)
        _agree(found.table, reader)
        numbers = places(found.table, wants)
        step = max(1, _BATCH // (3 * found.info["width"] * found.info["height"]))
        for at in range(0, len(wants), step):
            batch = reader.get_batch(numbers[at : at + step]).asnumpy()
            for want, pixels in zip(wants[at : at + step], batch, strict=True):
                yield want, pixels, want.pts
    except (DECORDError, RuntimeError) as e:
        raise Reject("unreadable", f"decord: {str(e).splitlines()[0]}"[:200]) from None


def _agree(table: Table, reader: VideoReader) -> None:
    """Its frame n must be ours: as many frames, at the same times. Its times are 32-bit floats."""
    ours = (np.sort(table.pts[table.shown]) - table.first) * float(table.base)
    if len(reader) != len(ours):
        raise Reject("not_allowed", f"decord counts {len(reader)} frames of {len(ours)}; backend: auto takes pyav")
    theirs = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    off = np.abs(theirs - theirs[0] - ours)
    if (off > 1e-3 + 5e-7 * theirs).any():
        raise Reject("not_allowed", f"decord times a frame {off.max():.3f} s off; backend: auto takes pyav")
