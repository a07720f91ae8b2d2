"""Video bytes → the frames that were asked for, by presentation time. Runs inside the guarded child; with its neighbour the only importer of PyAV.

What comes in: an open file of untrusted bytes, a container name that our own sniffing found (`video.py`), and wanted times. What goes out:
facts about the video, then one frame per wanted time, as RGB pixels or as a finished JPEG.

Two passes. The first reads packets without decoding and makes the table of `timeline.py`: so the true duration is known whatever the header
claims; B-frames, variable rates and edit lists are exact; and what has to be decoded is known before anything is. The second decodes just
that (`pyav_frames.py`), or hands frame numbers to another decoder (`backends.py`). What was lost is said at the end.

FFmpeg is given one demuxer, an allow-list of decoders, no protocol, and an opener that refuses: a file cannot make it read another file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np

from pipelines.format.errors import Reject
from pipelines.media import images, measures, pyav_frames, resizing
from pipelines.media.backends import CODECS, refusal
from pipelines.media.spans import Wanted
from pipelines.media.timeline import Table, Want, plan, wanted

_DECODERS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,mjpeg"
_SHORT_S = 0.5  # a video this much shorter than its header says was cut off; less is rounding of headers


def about(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """One answer: the versions that `doctor` shows."""
    yield {"found": f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}"}, b""


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


def versions(args: dict[str, Any], file: Any) -> tuple[dict[str, Any], bytes]:
    """Of the FFmpeg that decodes."""
    return {"ffmpeg": av.ffmpeg_version_info}, b""


def sample(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Facts first, then an answer {k, time_s, shape} with its buffer per wanted time that could be shown. What is wanted: `timeline.wanted`, or
    the frames of `clips` (a rule of `spans.py`, whose sayings join the answer). With `look` the small copy of `measures.py` goes before the
    buffer, and its shape and the whole picture's are `small` and `whole`; `crops` says by clip which bars to take off. Ends with a Reject when
    something was lost on the way."""

    def decode(found: Found, wants: list[Want], lose: Lose) -> Decoded:
        return pyav_frames.decode(lambda: _open(args, file), wants, found.info["codec"], lose, args["max_pixels"])

    return sampled(args, file, "pyav", decode)


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey found: the facts of `video.VideoInfo`, the table of packets, and which stream it is."""

    info: dict[str, Any]
    table: Table
    stream: int


Lose = Callable[[tuple[Want, str]], None]
Decoded = Iterator[tuple[Want, np.ndarray, int]]


def sampled(args: dict[str, Any], file: Any, name: str, decode: Callable[[Found, list[Want], Lose], Decoded]) -> Iterator[tuple[dict[str, Any], Any]]:
    """`sample` by any decoder of `backends.py`, after our own survey."""
    with _open(args, file) as (container, stream):
        info, table = _survey(container, stream, args)
        found, ratio, videos = Found(info, table, stream.index), stream.sample_aspect_ratio, len(_videos(container))
    if name != "pyav":
        with _open(args, file) as (container, stream):
            turned = any(frame.rotation for frame in islice(container.decode(stream), 1))
        wide = bool(ratio and abs(ratio - 1) > pyav_frames.WIDE)
        facts = {**info, "turned": turned, "uneven": table.uneven, "leading": table.leading, "wide_pixels": wide, "several": videos > 1}
        why = refusal(name, {**facts, "hidden": not table.shown.all(), "damaged": table.damage is not None})
        if why:
            raise Reject("not_allowed", why)
    yield info, b""
    clips = Wanted(table, args["clips"]) if args.get("clips") else None
    wants = sorted(plan(table, clips.ticks if clips else wanted(table, args)), key=lambda w: (w.tick, w.k))
    lost: list[tuple[Want, str]] = []
    for want, pixels, tick in decode(found, wants, lost.append):
        meta = {"k": want.k, "time_s": float((tick - table.first) * table.base), **(clips.told(want.k) if clips else {})}
        before = b""
        if args.get("look"):
            small = measures.small(pixels)
            pixels = measures.cropped(pixels, args.get("crops", {}).get(str(meta.get("clip")), (0, 0, 0, 0)))
            meta |= {"small": list(small.shape), "whole": list(pixels.shape[:2])}
            before = small.tobytes()
        if args.get("size"):
            pixels = resizing.resize(np.ascontiguousarray(pixels), args["size"], args["mode"])
        meta["shape"] = list(pixels.shape)
        if args.get("look") == "only":
            yield meta, before
            continue
        buffer = images.encode_jpeg(pixels, args["quality"]) if args.get("quality") else np.ascontiguousarray(pixels)
        yield meta, before + bytes(buffer) if before else buffer
    if lost:
        want, why = lost[0]
        at = float((want.tick - table.first) * table.base)
        raise Reject("unreadable", f"{len(lost)} of {len(wants)} frames lost, the first at {at:.3f} s: {why}")
    if table.damage:
        raise Reject("truncated", f"stops at {info['duration_s']:.3f} s: {table.damage}")


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
        videos = _videos(container)
        if not videos:
            raise Reject("unreadable", "no video stream")
        stream = videos[0]
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
        if codec not in CODECS:
            raise Reject("not_allowed", f"codec {codec}; allowed: {', '.join(CODECS)}")
        pyav_frames.check_size(stream.codec_context.width, stream.codec_context.height, args["max_pixels"])
        # explode: stop at damage instead of painting over it with whatever the buffer pool holds, which differs from run to run.
        stream.codec_context.options = {"max_pixels": str(args["max_pixels"]), "err_detect": "explode"}
        # Workers are the parallelism. But FFmpeg's vp8 decoder drops its own errors when it runs on one thread (8.1, measured).
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 2 if codec == "vp8" else 1
        yield container, stream


def _videos(container: Any) -> list[Any]:
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _refuse(url: str, *_: Any) -> Any:
    raise PermissionError("a video file may not open another one")


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
    begins = first * base if args["container"] != "matroska" else Fraction(0)  # there durations count from zero, wherever the first frame lies
    if damage is None and said is not None and said - max(seconds, end * base - begins, others - begins) > _SHORT_S:
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
