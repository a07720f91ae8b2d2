"""Who may decode a video: what each decoder gets exactly right, as data that `tests/pipelines/test_frame_accuracy.py` proves.

What comes in: a decoder's name, and facts that our own survey of the packets found. What goes out: why this decoder may not have this file, or
None. No decoder is loaded here.

PyAV reads everything, and is what `auto` takes: it is exact on all that we can name, bounded, and confined to one demuxer and eight decoders.
The others see whole files by code that we cannot confine so (decord 0.6.0 brings FFmpeg 4.1 of 2018 and follows playlists; torchcodec takes
whatever FFmpeg it finds), so they open only files that a recipe calls `trusted`, behind our sniffing and survey, in a child of their own: short-
lived, because decord leaks. They are handed frame numbers, never times: which frame is on screen at a time is decided in `timeline.py` for all.
What they do not declare they are not given: `Reject("not_allowed")`, never a silent change of decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from pipelines.format.errors import HeadwaterError, InputError, Reject
from pipelines.media.child import Kind, guarded

Name = Literal["auto", "pyav", "decord", "torchcodec"]
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
CONTAINERS = ("mov", "matroska", "avi", "mpegts")  # as `video.sniff` names them: mp4 is mov, webm is matroska


@dataclass(frozen=True, slots=True)
class Backend:
    """A decoder. `streams` are the (container, codec) pairs it gets exactly right; the flags say what else it does: pictures that the container
    turns, an uneven rate, open groups, pixels that are not square, frames that an edit list hides, a damaged file, a second video stream."""

    op: str
    package: str
    kind: Kind
    streams: frozenset[tuple[str, str]]
    turned: bool = False
    uneven: bool = False
    leading: bool = False
    wide_pixels: bool = False
    hidden: bool = False
    damaged: bool = False
    several: bool = False
    trust: bool = True
    install: str = "headwater"


BACKENDS = {
    "pyav": Backend(
        "pipelines.media.frames:sample",
        "av",
        Kind(),
        frozenset((box, codec) for box in CONTAINERS for codec in CODECS),
        *(True,) * 7,
        trust=False,
    ),
    "decord": Backend(
        "pipelines.media.decord_frames:sample",
        "decord",
        Kind(memory=6 << 30, retire=200),  # it holds the file, every thread's pictures and a batch
        # Not open groups: after a seek it counts from the wrong frame, silently. Not vp9 in matroska: uneven ones it calls broken.
        frozenset({*((box, codec) for box in ("mov", "matroska") for codec in ("h264", "hevc", "mpeg4")), ("mov", "vp9")}),
        uneven=True,
        install="'headwater[video]'",
    ),
    "torchcodec": Backend(
        "pipelines.media.torchcodec_frames:sample",
        "torchcodec",
        # torch alone reserves 4 GB, and writes while it loads; where FFmpeg lies is often said by the variable.
        Kind(memory=8 << 30, retire=1000, keep=("LD_LIBRARY_PATH",), first=("torchcodec.decoders",)),
        frozenset((box, codec) for box in ("mov", "matroska") for codec in ("h264", "hevc", "vp9", "av1", "mpeg4")),
        turned=True,
        uneven=True,
        leading=True,
        install="torchcodec, and FFmpeg's shared libraries",
    ),
}
_FLAGS = {
    "turned": "pictures that the container turns",
    "uneven": "a rate that is not constant",
    "leading": "pictures shown before the key frame they follow (open groups)",
    "wide_pixels": "pixels that are not square",
    "hidden": "frames that an edit list hides",
    "damaged": "a damaged file",
    "several": "more than one video stream",
}


def refusal(name: str, facts: dict[str, Any]) -> str | None:
    """Why a file with these facts (`container`, `codec`, and the flags of `Backend`) is not for this decoder."""
    backend = BACKENDS[name]
    if (facts["container"], facts["codec"]) not in backend.streams:
        return f"{name} is not known to be exact for {facts['codec']} in {facts['container']}; backend: auto takes pyav"
    wrong = next((what for flag, what in _FLAGS.items() if facts[flag] and not getattr(backend, flag)), None)
    return wrong and f"{name} is not known to be exact for {wrong}; backend: auto takes pyav"


def installed(name: str) -> bool:
    """Whether the decoder's package is here; whether it loads is known when its child starts."""
    return find_spec(BACKENDS[name].package) is not None


def about(name: str) -> tuple[bool, str]:
    """Whether a decoder works here, and its versions or what is wrong: asked in its child, where it would run."""
    backend = BACKENDS[name]
    if not installed(name):
        return False, "not installed"
    try:
        return True, next(guarded(backend.op.replace(":sample", ":about"), {}, kind=backend.kind)).meta["found"]
    except (HeadwaterError, Reject) as e:
        return False, f"does not load: {str(getattr(e, 'found', None) or e).strip().splitlines()[0]}"


def trust_missing(name: Name, trusted: bool) -> str | None:
    """What to say when this decoder may not open what nobody vouches for."""
    wrong = name != "auto" and BACKENDS[name].trust and not trusted
    return f"{name} opens trusted files only: say trusted: true where you vouch for every file, or take backend: auto" if wrong else None


def chosen(name: Name, trusted: bool) -> Backend:
    """The decoder by that name. Raises `InputError` when the file is not trusted enough for it, or it is not installed."""
    found = "pyav" if name == "auto" else name
    if wrong := trust_missing(name, trusted):
        raise InputError(wrong, where="backend")
    if not installed(found):
        raise InputError(f"{found} is not installed", where="backend", next=f"pip install {BACKENDS[found].install}")
    return BACKENDS[found]
