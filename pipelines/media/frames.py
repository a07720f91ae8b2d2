"""Video bytes → the frames that were asked for, by presentation time. Runs inside the guarded child; the only importer of PyAV.

What comes in: an open file of untrusted bytes, a container name that our own sniffing found (`video.py`), and wanted times. What goes out:
facts about the video, then one frame per wanted time, as RGB pixels or as a finished JPEG.

Two passes. The first reads packets without decoding and makes the table of `timeline.py`: so the true duration is known whatever the header
claims; B-frames, variable rates and edit lists are exact; and what has to be decoded is known before anything is. The second decodes just
that: groups of pictures without a wanted frame are passed over, and in h264 so are pictures that no other picture refers to (nal_ref_idc 0),
about half of a usual stream.

A packet that does not decode costs the times that need it; decoding goes on at the next key frame. What was lost is said at the end.
FFmpeg is given one demuxer, an allow-list of decoders, no protocol, and an opener that refuses: a file cannot make it read another file.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from pipelines.format.errors import Reject
from pipelines.media import images, resizing
from pipelines.media.timeline import Table, Want, every, nearest, numbered, plan

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
_DECODERS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,mjpeg"
_HIDDEN = ("vp8", "vp9")  # packets that show nothing exist here, so the table's times are only upper bounds
_SHORT_S = 0.5  # a video this much shorter than its header says was cut off; less is rounding of headers


def probe(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """One answer: the facts of `video.VideoInfo`."""
    with _open(args, file) as (container, stream):
        info, _ = _survey(container, stream, args)
    yield info, b""


def clock(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """One answer: the same facts, and when each frame is presented, in seconds from the first: float64 [frames], increasing."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
    yield info, (np.sort(table.pts[table.shown]) - table.first) * float(table.base)


def sample(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Facts first, then an answer {k, time_s, shape} with its buffer per wanted time that could be shown. Wanted: `at` (the nearest frame to
    each, a list in seconds), `numbers` (frames by their place), or every 1/`fps` seconds in [start, stop). Ends with a Reject when something
    was lost on the way."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
    yield info, b""
    if args.get("at") is not None:
        ticks = nearest(table, args["at"])
    else:
        ticks = numbered(table, args["numbers"]) if args.get("numbers") is not None else every(table, args)
    wants = plan(table, ticks)
    lost: list[tuple[Want, str]] = []
    size: tuple[int, int] | None = None
    for want, frame, stream in _decode(lambda: _open(args, file), wants, info["codec"], lost.append):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise Reject("not_allowed", f"pictures change from {size[0]} × {size[1]} to {frame.width} × {frame.height}")
        pixels = _pixels(frame, stream, args)
        meta = {"k": want.k, "time_s": float(((frame.pts or 0) - table.first) * table.base), "shape": list(pixels.shape)}
        yield meta, images.encode_jpeg(pixels, args["quality"]) if args.get("quality") else pixels
    if lost:
        want, why = lost[0]
        at = float((want.tick - table.first) * table.base)
        raise Reject("unreadable", f"{len(lost)} of {len(wants)} frames lost, the first at {at:.3f} s: {why}")
    if table.damage:
        raise Reject("truncated", f"stops at {info['duration_s']:.3f} s: {table.damage}")


# ---- decoding ----------------------------------------------------------------------------------------------------------------------------


def _decode(
    opener: Callable[[], AbstractContextManager[Any]], wants: list[Want], codec: str, lose: Callable[[tuple[Want, str]], None]
) -> Iterator[tuple[Want, VideoFrame, Any]]:
    """Wanted frames in order of time, with their stream; what could not be had is handed to `lose` with the reason.

    A key frame is believed to be one until decoding from it fails: some h264 files mark pictures that still lean on older ones (open groups
    with pyramids). Then everything left is decoded from the start of the file, once, and only what fails there too is lost."""
    waiting = deque(sorted(wants, key=lambda w: (w.tick, w.k)))
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


def _pixels(frame: VideoFrame, stream: Any, args: dict[str, Any]) -> np.ndarray:
    """RGB as a player shows it: pixel aspect ratio and rotation applied, then our own resize."""
    ratio = stream.sample_aspect_ratio
    width = round(frame.width * ratio) if ratio and abs(ratio - 1) > 0.02 else frame.width
    _check_size(width, frame.height, args)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    turned = np.rot90(pixels, round(frame.rotation / 90) % 4)  # both count counterclockwise
    return np.ascontiguousarray(resizing.resize(turned, args["size"], args["mode"]) if args.get("size") else turned)


# ---- opening -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _open(args: dict[str, Any], file: Any) -> Iterator[tuple[Any, Any]]:
    """The container and its first real video stream, vetted."""
    file.seek(0)
    options = {
        "format_whitelist": "mov,matroska,webm,mpegts,avi",
        "protocol_whitelist": "",
        "codec_whitelist": _DECODERS,
        "enable_drefs": "0",  # a QuickTime file may say that its pictures lie in another file
        "max_streams": "64",
    }
    try:
        container = av.open(file, format=args["container"], container_options=options, io_open=_refuse, buffer_size=1 << 18)
    except av.FFmpegError as e:
        file.seek(0)
        if b"encv" in file.read(1 << 20):
            raise Reject("not_allowed", "encrypted") from None
        raise Reject("unreadable", f"{type(e).__name__}: {e}"[:200]) from None
    with container:
        videos = [s for s in container.streams.video if not s.disposition & _COVER]
        if not videos:
            raise Reject("unreadable", "no video stream")
        stream = videos[0]
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
        if codec not in CODECS:
            raise Reject("not_allowed", f"codec {codec}; allowed: {', '.join(CODECS)}")
        _check_size(stream.codec_context.width, stream.codec_context.height, args)
        # explode: stop at damage instead of painting over it with whatever the buffer pool holds, which differs from run to run.
        stream.codec_context.options = {"max_pixels": str(args["max_pixels"]), "err_detect": "explode"}
        # Workers are the parallelism. But FFmpeg's vp8 decoder drops its own errors when it runs on one thread (8.1, measured).
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 2 if codec == "vp8" else 1
        yield container, stream


_COVER = av.stream.Disposition.attached_pic


def _refuse(url: str, *_: Any) -> Any:
    raise PermissionError("a video file may not open another one")


def _check_size(width: int, height: int, args: dict[str, Any]) -> None:
    if width * height > args["max_pixels"]:
        raise Reject("too_large", f"{width} × {height} pixels, allowed {args['max_pixels']}")


def _survey(container: Any, stream: Any, args: dict[str, Any]) -> tuple[dict[str, Any], Table]:
    """The first pass: the table, and the facts for `video.VideoInfo`. Nothing is decoded."""
    rows: list[tuple[int, bool, bool, int]] = []
    damage, others = None, Fraction(0)
    try:
        for packet in container.demux():
            if packet.stream is not stream:
                if packet.pts is not None and packet.time_base:
                    others = max(others, (packet.pts + (packet.duration or 0)) * packet.time_base)
            elif packet.size:
                pts = packet.pts if packet.pts is not None else packet.dts
                rows.append((pts if pts is not None else rows[-1][0] + 1 if rows else 0, packet.is_keyframe, packet.is_discard, packet.duration or 0))
                if len(rows) > args["max_frames_in_file"]:
                    raise Reject("too_large", f"more than {args['max_frames_in_file']} frames")
    except av.FFmpegError as e:
        damage = f"{type(e).__name__}: {e}"[:200]
    shown = np.array([not r[2] for r in rows], bool)
    if not shown.any():
        raise Reject("truncated" if damage else "unreadable", damage or "no frames")
    pts = np.array([r[0] for r in rows], np.int64)
    times = np.sort(pts[shown])
    last = int(np.argmax(np.where(shown, pts, times[0])))
    gap = int(np.median(np.diff(times))) if len(times) > 1 else 1
    base = Fraction(stream.time_base)
    first, end = int(times[0]), int(times[-1]) + (rows[last][3] or gap)
    seconds = (end - first) * base
    if seconds > args["max_seconds"]:
        raise Reject("too_large", f"{float(seconds):.0f} s, allowed {args['max_seconds']}")
    said = _declared(container, stream, args["container"])
    if damage is None and said is not None and said - max(seconds, others - first * base) > _SHORT_S:
        damage = f"the header says {float(said):.3f} s"
    context = stream.codec_context
    info = {
        "container": args["container"],
        "codec": context.codec.canonical_name,
        "width": context.width,
        "height": context.height,
        "frames": len(times),
        "duration_s": float(seconds),
        "fps": float(len(times) / seconds) if seconds else 0.0,
        "start_s": float(first * base),
        "damage": damage,
    }
    return info, Table(pts, np.array([r[1] for r in rows], bool), shown, base, first, end, damage)


def _declared(container: Any, stream: Any, name: str) -> Fraction | None:
    """The duration that the header promises, where that says anything: transport streams have no header."""
    if name == "mpegts":
        return None
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    return Fraction(container.duration, 1_000_000) if container.duration else None
