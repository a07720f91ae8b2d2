"""Every valid combination of codec, rate, length of groups, container and rotation, as clips whose frames carry their number.

A stream is encoded once per codec, rate and group length, and copied packet by packet into each container and rotation: 20 encodings make 192
files. Two more kinds of copy: `hidden` moves the first frames before zero, so that an edit list (mp4) hides them; `late` lets time begin at 5 s.
"""

from __future__ import annotations

import functools
import io
import random
from dataclasses import dataclass
from itertools import product

import av

from tests.pipelines.clips import clip

FRAMES, FPS = 330, 30  # a group of 250 is followed by another one
HIDDEN = 7
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "ultrafast", "bf": "3", "x264-params": "b-pyramid=normal:ref=3:scenecut=0"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "bframes=3:b-pyramid=1:scenecut=0:log-level=none"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    "av1": ("libsvtav1", {"preset": "8", "crf": "1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
}
# x264 closes its groups unless told otherwise; x265 and mpeg4 open them.
OTHER = {
    "h264": {"x264-params": "b-pyramid=normal:ref=3:scenecut=0:open-gop=1"},
    "hevc": {"x265-params": "bframes=3:b-pyramid=1:scenecut=0:open-gop=0:log-level=none"},
    "mpeg4": {"flags": "+cgop", "sc_threshold": "1000000000"},
}
CONTAINERS = {"mp4": tuple(CODECS), "matroska": tuple(CODECS), "webm": ("vp9", "av1")}
TURNS = (0, 90, 180, 270)  # all three carry it: a matrix in mp4, a projection in matroska and webm


@dataclass(frozen=True)
class Case:
    """`rotation`: degrees counterclockwise. `shift` is "", "hidden", "late", or "other": open groups where closed ones are usual, or the reverse."""

    codec: str
    uneven: bool
    gop: int
    container: str
    rotation: int = 0
    shift: str = ""

    def __str__(self) -> str:
        rate = "variable" if self.uneven else "constant"
        return "-".join(filter(None, (self.codec, rate, f"gop{self.gop}", self.container, f"{self.rotation}", self.shift)))


def cases() -> list[Case]:
    """All valid combinations, and shifted ones of each codec."""
    streams = list(product(CODECS, (False, True), (12, 250)))
    out = [Case(*s, box, turn) for s in streams for box in CONTAINERS if s[0] in CONTAINERS[box] for turn in TURNS]
    out += [Case(*s, "mp4", 0, "hidden") for s in streams]
    out += [Case(*s, "matroska", 0, "late") for s in streams]
    return out + [Case(*s, box, 0, "other") for s in streams if s[0] in OTHER for box in ("mp4", "matroska")]


@functools.cache
def ticks(uneven: bool) -> tuple[int, ...]:
    """Milliseconds at which each frame appears: 30 a second, or steps of 11 to 90."""
    draw, out, at = random.Random(3), [], 0
    for i in range(FRAMES):
        out.append(at if uneven else round(1000 * i / FPS))
        at += draw.choice((11, 20, 33, 40, 90))
    return tuple(out)


@functools.cache
def _stream(codec: str, uneven: bool, gop: int, other: bool) -> bytes:
    name, options = CODECS[codec]
    if other:
        options = {**options, **OTHER[codec]}
    return clip(FRAMES, FPS, name, "mp4", ticks(True) if uneven else None, {**options, "g": str(gop), "keyint_min": str(gop)})


@functools.cache
def made(case: Case) -> bytes:
    """The file."""
    out = io.BytesIO()
    stream = _stream(case.codec, case.uneven, case.gop, case.shift == "other")
    with av.open(io.BytesIO(stream)) as box, av.open(out, "w", format=case.container) as copy:
        source = box.streams.video[0]
        target = copy.add_stream_from_template(source, opaque=True)
        if case.rotation:
            target.set_display_rotation(case.rotation)
        first = ticks(case.uneven)
        seconds = {"": 0.0, "other": 0.0, "late": 5.0, "hidden": -(first[HIDDEN] / 1000 if case.uneven else HIDDEN / FPS)}[case.shift]
        move = round(seconds / source.time_base)
        for packet in box.demux(source):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + move, packet.dts + move, target
                copy.mux(packet)
    return out.getvalue()


def truth(case: Case, time: float) -> int:
    """The number of the frame on screen."""
    shown = ticks(case.uneven)[HIDDEN if case.shift == "hidden" else 0 :]
    last = max(i for i, t in enumerate(shown) if t - shown[0] <= 1000 * time + 0.5)
    return last + (HIDDEN if case.shift == "hidden" else 0)


def times(case: Case) -> list[float]:
    """Seven arbitrary times, in order, none nearer than a tenth of a frame to a change: muxers round to milliseconds."""
    draw, shown = random.Random(str(case)), ticks(case.uneven)[HIDDEN if case.shift == "hidden" else 0 :]
    places = sorted(draw.sample(range(len(shown) - 1), 7))
    return [(shown[p] - shown[0] + draw.uniform(0.1, 0.9) * (shown[p + 1] - shown[p])) / 1000 for p in places]


def table() -> str:
    """The declarations of every decoder as docs/video.md shows them."""
    from pipelines.media.backends import _FLAGS, BACKENDS
    from pipelines.media.backends import CODECS as ALL

    rows = ["| | " + " | ".join(BACKENDS) + " |", "|---|" + "---|" * len(BACKENDS)]
    boxes = {"mov": "mp4, mov", "matroska": "mkv, webm", "avi": "avi", "mpegts": "ts"}
    for sniffed, name in boxes.items():
        kinds = [", ".join(c for c in ALL if (sniffed, c) in b.streams) or "refused" for b in BACKENDS.values()]
        rows.append(f"| {name} | " + " | ".join(kinds) + " |")
    for flag, what in _FLAGS.items():
        rows.append(f"| {what} | " + " | ".join("exact" if getattr(b, flag) else "refused" for b in BACKENDS.values()) + " |")
    return "\n".join(rows) + "\n"
