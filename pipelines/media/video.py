"""Video bytes → frames by presentation time, safely: what sources call. No codec is loaded here; decoding happens in a guarded child.

What comes in: the bytes of one file (or an open file), and times or a rate. What goes out: facts (`probe`), or frames as RGB arrays or as
JPEG (`stills`). t = 0 is the first presented frame; the frame at time t is the one on screen then, the last presented at or before t.
Rotation and pixel shape are applied, edit lists obeyed.

The container is recognised by its first bytes, never by its name: text, playlists and image files called .mp4 are refused before FFmpeg sees
them. A damaged file gives the frames that decode, then a `Reject` that says where it stopped.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines.format.errors import Reject
from pipelines.media.backends import Name, chosen
from pipelines.media.child import CPU_S, WALL_S, Answer, ask, guarded
from pipelines.media.wire import believed

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts")
_HEAD = 400  # two transport-stream packets and a little
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp", b"pnot")
_STILL = (b"heic", b"heix", b"mif1", b"avif", b"msf1", b"hevc")  # brands of image files that share the video container


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may ask for before it is refused as `too_large`."""

    max_pixels: int = 8192 * 4320  # per frame
    max_seconds: int = 12 * 3600
    max_frames_in_file: int = 3_000_000  # 12 h at 60 per second, and the table stays below 100 MB


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts from the packets, not from the header. Width and height as stored, before rotation."""

    container: str
    codec: str
    width: int
    height: int
    frames: int
    duration_s: float
    fps: float
    start_s: float
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Still:
    """A frame as a finished JPEG. `k` counts wanted times from 0 (of the whole video, when sampled at a rate)."""

    k: int
    time_s: float
    payload: bytes
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames as (time in seconds, uint8 [H, W, 3]); `stopped` says why it is not all of them, or None."""

    info: VideoInfo
    frames: list[tuple[float, np.ndarray]] = field(default_factory=list)
    stopped: Reject | None = None


@dataclass(frozen=True, slots=True)
class By:
    """Which decoder, and whether the file may be given to one that is not confined (`backends.py`)."""

    backend: Name = "auto"
    trusted: bool = False


def sniff(head: bytes) -> str | None:
    """The container by its first bytes: mov, matroska, avi, mpegts, or None for anything else."""
    if head[4:8] in _BOXES:
        return None if head[4:8] == b"ftyp" and head[8:12] in _STILL else "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if len(head) >= 377 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return None


def probe(data: Any, limits: Limits = Limits()) -> VideoInfo:
    """Reads all packets, decodes nothing. Raises `Reject`."""
    answer = ask("pipelines.media.frames:probe", _args(data, limits), data, **_patience(data))
    with believed():
        return VideoInfo(**answer.meta)


def clock(data: Any, limits: Limits = Limits()) -> tuple[VideoInfo, np.ndarray]:
    """The facts of `probe`, and the presentation time of every frame in seconds from the first: float64 [frames]. Nothing is decoded."""
    answer = ask("pipelines.media.frames:clock", _args(data, limits), data, **_patience(data))
    return VideoInfo(**answer.meta), np.frombuffer(answer.blob, np.float64)


def thumbnails(data: Any, numbers: Sequence[int], size: int, limits: Limits = Limits()) -> Iterator[tuple[int, np.ndarray]]:
    """(place in `numbers`, grey uint8 [size, size]) of frames by their place, resized in the child: to look for motion in, not to keep."""
    args = {**_args(data, limits), "numbers": [int(n) for n in numbers], "size": size, "mode": "center_crop"}
    answers = guarded("pipelines.media.frames:sample", args, data, **_patience(data))
    next(answers)
    for answer in answers:
        yield int(answer.meta["k"]), _grey(answer)


def _grey(answer: Answer) -> np.ndarray:
    shape = _shape(answer.meta)
    if len(answer.blob) != shape[0] * shape[1] * shape[2]:
        raise Reject("unreadable", "the decoder answered nonsense")
    return np.frombuffer(answer.blob, np.uint8).reshape(shape).mean(axis=2).astype(np.uint8)


def frames_at(data: Any, times: Sequence[float], limits: Limits = Limits(), by: By = By()) -> Frames:
    """The frames nearest to the given times (seconds), in order of time: right for tables whose times are rounded frame times."""
    return _arrays(data, {**_args(data, limits), "at": [float(t) for t in times]}, by)


def frames_shown_at(data: Any, times: Sequence[float], limits: Limits = Limits(), by: By = By()) -> Frames:
    """The frames on screen at the given times (seconds), in order of time; none for a time before the first frame or after the last."""
    return _arrays(data, {**_args(data, limits), "shown": [float(t) for t in times]}, by)


def frames_uniform(data: Any, n: int, start: float = 0.0, stop: float | None = None, limits: Limits = Limits(), by: By = By()) -> Frames:
    """The frames on screen in the middles of `n` equal stretches of [start, stop), where stop is at most the end of the last frame."""
    return _arrays(data, {**_args(data, limits), "uniform": int(n), "start": start, "stop": stop}, by)


def frames_numbered(data: Any, numbers: Sequence[int], limits: Limits = Limits(), by: By = By()) -> Frames:
    """Frames by their place in order of presentation, from 0; none for a place beyond the end."""
    return _arrays(data, {**_args(data, limits), "numbers": [int(n) for n in numbers]}, by)


def frames_every(
    data: Any,
    fps: float = 1.0,
    start: float = 0.0,
    stop: float | None = None,
    max_frames: int | None = None,
    limits: Limits = Limits(),
    by: By = By(),
) -> Frames:
    """The frames on screen at the multiples of 1/fps in [start, stop)."""
    return _arrays(data, {**_args(data, limits), "fps": fps, "start": start, "stop": stop, "max_frames": max_frames}, by)


def stills(
    data: Any,
    *,
    fps: float | None = None,
    at: Sequence[float] | None = None,
    shown: Sequence[float] | None = None,
    numbers: Sequence[int] | None = None,
    uniform: int | None = None,
    start: float = 0.0,
    stop: float | None = None,
    size: int | None = None,
    mode: str = "center_crop",
    quality: int = 92,
    limits: Limits = Limits(),
    backend: Name = "auto",
    trusted: bool = False,
) -> Iterator[Still]:
    """Frames as JPEG, one at a time, resized and encoded in the child so that little crosses. Sampled at a rate; or nearest to the times `at`, on
    screen at the times `shown`, or by `numbers` in order of presentation: then `k` is the place in that list; or so many `uniform` ones.

    A gap in `k` is a frame that could not be decoded. Ends with a `Reject` after the good frames when anything was lost."""
    args = {**_args(data, limits), "size": size, "mode": mode, "quality": quality}
    if at is not None:
        args["at"] = [float(t) for t in at]
    elif shown is not None:
        args["shown"] = [float(t) for t in shown]
    elif numbers is not None:
        args["numbers"] = [int(n) for n in numbers]
    elif uniform is not None:
        args |= {"uniform": int(uniform), "start": start, "stop": stop}
    else:
        args |= {"fps": fps or 1.0, "start": start, "stop": stop}
    answers = _sampled(args, data, By(backend, trusted))
    next(answers)
    for answer in answers:
        with believed():
            made = Still(int(answer.meta["k"]), float(answer.meta["time_s"]), bytes(answer.blob), _shape(answer.meta))
        yield made


def _sampled(args: dict[str, Any], data: Any, by: By) -> Iterator[Answer]:
    """The facts, then the frames: no more of them than were asked for, whatever a decoder taken over would go on saying."""
    backend = chosen(by.backend, by.trusted)
    asked = next((args[name] for name in ("at", "shown", "numbers", "uniform") if args.get(name) is not None), None)
    most = asked if isinstance(asked, int) else len(asked) if asked is not None else None
    if most is None and not args.get("clips"):
        most = max(args["max_frames_in_file"], math.ceil(args["max_seconds"] * float(args["fps"])) + 1)
    said = -1
    for answer in guarded(backend.op, args, data, kind=backend.kind, **_patience(data)):
        said += 1
        k = answer.meta.get("k")
        if most is not None and said and (said > most or type(k) is not int or not 0 <= k < most):
            raise Reject("unreadable", "the decoder answered nonsense")
        yield answer
    if said < 0:
        raise Reject("unreadable", "the decoder answered nonsense")


def _arrays(data: Any, args: dict[str, Any], by: By) -> Frames:
    answers = _sampled(args, data, by)
    first = next(answers)
    with believed():
        out = Frames(VideoInfo(**first.meta))
    try:
        for answer in answers:
            with believed():
                shape = _shape(answer.meta)
                out.frames.append((float(answer.meta["time_s"]), np.frombuffer(answer.blob, np.uint8).reshape(shape)))
    except Reject as stopped:
        return Frames(out.info, out.frames, stopped)
    return out


def _shape(meta: dict[str, Any]) -> tuple[int, int, int]:
    height, width, channels = (int(n) for n in meta["shape"])
    if min(height, width) < 1 or channels != 3 or not math.isfinite(meta.get("time_s", 0)):
        raise ValueError("no picture")
    return height, width, channels


def _args(data: Any, limits: Limits) -> dict[str, Any]:
    if hasattr(data, "fileno"):
        data.seek(0)
        head = data.read(_HEAD)
    else:
        head = bytes(memoryview(data)[:_HEAD])
    container = sniff(head)
    if not head:
        raise Reject("truncated", "0 bytes")
    if container is None:
        raise Reject("not_allowed", f"not a mp4, mov, webm, mkv, avi or ts file: begins {head[:12]!r}")
    return {**asdict(limits), "container": container}


def _patience(data: Any) -> dict[str, Any]:
    """Deadlines per answer. The survey of a long file reads all of it: 20 MB/s of slow disk, and 100 MB of packets per processor second."""
    size = os.fstat(data.fileno()).st_size if hasattr(data, "fileno") else len(data)
    return {"wall_s": WALL_S + size / 20e6, "cpu_s": CPU_S + int(size / 100e6)}
