"""Wanted frames of a video through PyAV: the decoder that everything else is measured by. Runs inside the guarded child.

What comes in: a way to open the file, the table of its packets, and the wanted frames with the packets they need (`timeline.py`). What goes out: each
wanted frame as upright RGB pixels, in order of time.

Groups of pictures without a wanted frame are passed over, and in h264 so are pictures that no other picture refers to (nal_ref_idc 0), about half
of a usual stream. A packet that does not decode costs the times that need it; decoding goes on at the next key frame.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from pipelines.format.errors import Reject
from pipelines.media.timeline import Want

_HIDDEN = ("vp8", "vp9")  # packets that show nothing exist here, so the table's times are only upper bounds


def decode(
    opener: Callable[[], AbstractContextManager[Any]], wants: list[Want], codec: str, lose: Callable[[tuple[Want, str]], None], max_pixels: int
) -> Iterator[tuple[Want, np.ndarray, int]]:
    """(want, uint8 [H, W, 3], presentation tick) of what could be had; the rest is handed to `lose` with the reason."""
    size: tuple[int, int] | None = None
    for want, frame, stream in _wanted(opener, wants, codec, lose):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise Reject("not_allowed", f"pictures change from {size[0]} × {size[1]} to {frame.width} × {frame.height}")
        yield want, pixels(frame, stream.sample_aspect_ratio, max_pixels), frame.pts or 0


def pixels(frame: VideoFrame, ratio: Any, max_pixels: int) -> np.ndarray:
    """RGB as a player shows it: the shape of its pixels and rotation applied."""
    width = round(frame.width * ratio) if ratio and abs(ratio - 1) > WIDE else frame.width
    check_size(width, frame.height, max_pixels)
    array = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    return np.rot90(array, round(frame.rotation / 90) % 4)  # both count counterclockwise


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Reject("too_large", f"{width} × {height} pixels, allowed {max_pixels}")


WIDE = 0.02  # pixels less out of square than this are taken as square: headers round


def _wanted(
    opener: Callable[[], AbstractContextManager[Any]], wants: list[Want], codec: str, lose: Callable[[tuple[Want, str]], None]
) -> Iterator[tuple[Want, VideoFrame, Any]]:
    """Wanted frames in order of time, with their stream; what could not be had is handed to `lose` with the reason.

    A key frame is believed to be one until decoding from it fails: some h264 files mark pictures that still lean on older ones (open groups
    with pyramids). Then everything left is decoded from the start of the file, once, and only what fails there too is lost."""
    waiting = deque(wants)
    believe, from_start = True, False
    while waiting:
        with opener() as (container, stream):
            packets = _packets(container, stream)
            while waiting:
                run = [waiting.popleft()]
                while waiting and (from_start or waiting[0].low <= run[-1].high + 1):
                    run.append(waiting.popleft())
                low = 0 if from_start else min(w.low for w in run)
                failure: list[tuple[int, str]] = []
                pictures = {w.pts for w in run} if codec == "h264" else None
                frames = _feed(stream.codec_context, packets, low, max(w.high for w in run), pictures, failure)
                where, why = 1 << 62, "the decoder gave no picture for this time"
                left: list[Want] = []
                for want, frame in _match(frames, deque(run)):
                    where, why = failure[0] if failure else (where, why)
                    if want.high < where and frame is not None and _on_screen(frame, want, codec):
                        yield want, frame, stream
                    elif want.low > where or (believe and low > 0):
                        left.append(want)  # it begins at a later key frame, or is tried again from the start
                    else:
                        lose((want, why))
                again = believe and low > 0 and bool(left)
                waiting.extendleft(reversed(left))
                believe, from_start = believe and not again, again
                if again:
                    break


def _on_screen(frame: VideoFrame, want: Want, codec: str) -> bool:
    return frame.pts == want.pts or (codec in _HIDDEN and frame.pts is not None and frame.pts <= want.tick)


def _match(frames: Iterator[VideoFrame], wants: deque[Want]) -> Iterator[tuple[Want, VideoFrame | None]]:
    """Each want with the last frame presented at or before it; frames come in order of presentation."""
    last: VideoFrame | None = None
    for frame in frames:
        while wants and wants[0].tick < (frame.pts or 0):
            yield wants.popleft(), last
        last = frame
    for want in wants:
        yield want, last


def _feed(
    context: Any, packets: Iterator[tuple[int, Any]], low: int, high: int, pictures: set[int] | None, failure: list[tuple[int, str]]
) -> Iterator[VideoFrame]:
    """The frames of packets low … high. Stops at the first packet that does not decode, and says so in `failure`."""
    index, key = low, None
    try:
        for index, packet in packets:
            key = packet.pts if index == low else key
            leads = low > 0 and packet.pts is not None and key is not None and packet.pts < key  # needs pictures from before our key frame
            if index >= low and not leads:
                if packet.is_corrupt:
                    raise ValueError("a packet is cut off")
                if pictures is not None:
                    context.skip_frame = "DEFAULT" if packet.pts in pictures else "NONREF"
                yield from _whole(context.decode(packet))
            if index >= high:
                break
        yield from _whole(context.decode(None))
    except (av.FFmpegError, ValueError) as e:
        failure.append((index, f"{type(e).__name__}: {e}"[:200]))
    context.flush_buffers()


def _whole(frames: list[VideoFrame]) -> Iterator[VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise ValueError("a picture is damaged")
        if frame.pts is not None:
            yield frame


def _packets(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """Packets with their place in decoding order, as the table numbers them; a file that breaks off simply ends here too."""
    index = 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield index, packet
                index += 1
    except av.FFmpegError:
        return
