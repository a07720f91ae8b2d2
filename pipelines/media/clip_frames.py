"""An open video → its clips as finished frames, safely: what `clips.py` calls. Decoding, and looking for shots, happen in the guarded child.

What comes in: an open file (or bytes), the rule of `spans.py`, and how pictures are to be stored. What goes out: clips in order of time, each with
its exact span and the frames that could be had from its beginning on, without a gap. Ends with one `Reject` when anything was lost.

By shots the file is decoded twice: once whole, shrunk, to find cuts; then, like without, up to the frames that are stored.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np

from pipelines.extra import need
from pipelines.format.errors import Reject
from pipelines.media.child import Answer, guarded
from pipelines.media.measures import bars
from pipelines.media.video import By, Limits, Still, _args, _patience, _sampled, _shape
from pipelines.media.wire import believed, ratio


@dataclass(frozen=True, slots=True)
class Pictures:
    """How frames are stored (as `resizing.resize`), and whether they are looked at on the way (`measures.py`). `crop_bars` takes off the black bars
    that all of a clip's frames have, before the resize; the file is then sampled twice. `vectors` also measures the codec's motion vectors;
    `files` {side, crf, max_bytes} makes each clip a file too (`cutting.py`)."""

    size: int | None
    mode: str
    quality: int
    look: bool = True
    crop_bars: bool = False
    vectors: bool = False
    files: dict[str, Any] | None = None


@dataclass(slots=True)
class Clip:
    """Clip `n` of its file: [start, stop) in seconds from the first frame of the video; frames are `step` apart. `small` and `whole` (height, width
    as shown) are there where the pictures were looked at. Of `of` frames those before the first that was lost are here."""

    n: int
    start: Fraction
    stop: Fraction
    step: Fraction
    of: int
    frames: list[Still] = field(default_factory=list)
    small: list[np.ndarray] = field(default_factory=list)
    whole: tuple[int, int] | None = None
    cropped: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # shares taken off: top, bottom, left, right
    vectors: dict[str, float] = field(default_factory=dict)  # as `vectors.py` measures them, where the codec has any
    file: bytes | None = None
    file_shape: tuple[int, int, int] = (0, 0, 0)
    no_file: Reject | None = None  # why the rest of the files could not be made

    @property
    def complete(self) -> bool:
        return len(self.frames) == self.of


def clips(data: Any, rule: dict[str, Any], detector: dict[str, Any] | None, pictures: Pictures, limits: Limits, by: By = By()) -> Iterator[Clip]:
    """The clips of one file; with a `detector` {detector, threshold, stretch} they lie between cuts. These are always found by PyAV; `by` decodes
    what is stored."""
    stopped: Reject | None = None
    shots = None
    if detector is not None:
        shots, stopped = _shots(data, {**detector, "first": rule["first"], "stop": rule["stop"]}, limits)
        rule = {**rule, "first": "0", "stop": None}  # the stretches were chosen already
    if shots != []:
        args = {**_args(data, limits), "clips": {**rule, "shots": shots}, "size": pictures.size, "mode": pictures.mode}
        crops = _bars(data, args, by) if pictures.crop_bars else {}
        args |= {"crops": crops, "quality": pictures.quality, "look": pictures.look or pictures.crop_bars}
        vectors = _vectors(data, args) if pictures.vectors else {}
        wrong: list[Reject] = []
        with closing(_files(data, args, pictures.files, wrong)) as files:
            file = next(files, None)
            for clip in _grouped(_sampled(args, data, by), crops):
                clip.vectors = vectors.get(clip.n, {})
                while file is not None and file.meta["clip"] < clip.n:
                    file = next(files, None)
                if file is not None and file.meta["clip"] == clip.n:
                    with believed():
                        clip.file, clip.file_shape = bytes(file.blob), _shape(file.meta)
                clip.no_file = wrong[0] if wrong else None
                yield clip
            deque(files, maxlen=0)  # to its end: a child that is left in the middle has to be killed
    if stopped:
        raise stopped


def _shots(data: Any, asked: dict[str, Any], limits: Limits) -> tuple[list[list[int]], Reject | None]:
    """[start, stop, begins with a cut, ends with a cut] in ticks, and why it is not all of them."""
    if not (find_spec("scenedetect") and find_spec("cv2")):
        need("scenedetect.detectors", "shots", "video")  # here, where it can be said; loaded only in the child
    found: list[list[int]] = []
    try:
        for answer in guarded("pipelines.media.shots:detect", {**_args(data, limits), **asked}, data, **_patience(data)):
            with believed():
                if "shot" in answer.meta:
                    start, stop, opens, closes = answer.meta["shot"]
                    found.append([int(start), int(stop), bool(opens), bool(closes)])
    except Reject as stopped:
        return found, stopped
    return found, None


def _bars(data: Any, args: dict[str, Any], by: By) -> dict[str, list[float]]:
    """What to take off of each clip that has bars, by its number, as shares: a line more than was found, since an edge rarely lies between two.
    Of a picture that bars leave less than a quarter of, nothing is taken."""
    crops: dict[str, list[float]] = {}
    try:
        for clip in _grouped(_sampled({**args, "look": "only"}, data, by), {}):
            shares = bars(clip.small)
            height, width = clip.small[0].shape
            taken = [s and s + 1 / n for s, n in zip(shares, (height, height, width, width), strict=True)]
            if any(taken) and taken[0] + taken[1] <= 0.75 and taken[2] + taken[3] <= 0.75:
                crops[str(clip.n)] = taken
    except Reject:
        pass  # it is met again, and said, when the frames are taken
    return crops


def _vectors(data: Any, args: dict[str, Any]) -> dict[int, dict[str, float]]:
    try:
        answers = [a.meta for a in guarded("pipelines.media.vectors:measure", args, data, **_patience(data)) if "clip" in a.meta]
        with believed():
            return {int(m["clip"]): {name: float(m[name]) for name in ("vectors", "vectors_min")} for m in answers}
    except Reject:
        return {}  # met again when the frames are taken


def _files(data: Any, args: dict[str, Any], how: dict[str, Any] | None, wrong: list[Reject]) -> Generator[Answer, None, None]:
    """Clips as files, in order, from a second child that runs beside the one that samples. What goes wrong there costs the files it had not made."""
    if how is None:
        return
    try:
        with _opened_again(data) as apart:
            for answer in guarded("pipelines.media.cutting:cut", {**args, **how}, apart, **_patience(data)):
                if "clip" in answer.meta:
                    yield answer
    except Reject as e:
        wrong.append(e)


@contextmanager
def _opened_again(data: Any) -> Iterator[Any]:
    """The same file with a place of its own: two children that were handed one open file would move each other's."""
    if not hasattr(data, "fileno"):
        yield data
        return
    path = f"/proc/self/fd/{data.fileno()}"
    with open(path if os.path.exists(path) else data.name, "rb") as again:
        yield again


def _grouped(answers: Any, crops: dict[str, list[float]]) -> Iterator[Clip]:
    """Frames come in order of time, and clips may overlap: one is finished when it has all its frames, or a frame from behind its end comes."""
    open_: deque[Clip] = deque()
    next(answers)
    lost: Reject | None = None
    while True:
        try:
            answer = next(answers, None)
        except Reject as e:
            answer, lost = None, e
        if answer is None:
            break
        with believed():
            meta = answer.meta
            start = ratio(meta["start"])
            if not open_ or meta["clip"] > open_[-1].n:
                clip = Clip(int(meta["clip"]), start, ratio(meta["stop"]), ratio(meta["step"]), int(meta["of"]))
                top, bottom, left, right = crops.get(str(clip.n), clip.cropped)
                clip.cropped = (top, bottom, left, right)
                open_.append(clip)
            at = start + meta["i"] * ratio(meta["step"])
            for clip in open_:
                if clip.n == meta["clip"] and len(clip.frames) == meta["i"]:  # after a loss the rest would begin in the clip's middle
                    _add(clip, meta, answer.blob)
        while open_ and (open_[0].complete or at >= open_[0].stop):
            yield from _begun(open_.popleft())
    for clip in open_:
        yield from _begun(clip)
    if lost:
        raise lost


def _begun(clip: Clip) -> Iterator[Clip]:
    if clip.frames:  # else its first one was lost
        yield clip


def _add(clip: Clip, meta: dict[str, Any], blob: bytearray) -> None:
    skip = 0
    if "small" in meta:
        height, width = (int(n) for n in meta["small"])
        skip = height * width
        if skip > len(blob):
            raise Reject("unreadable", "the decoder answered nonsense")
        clip.small.append(np.frombuffer(bytes(blob[:skip]), np.uint8).reshape(height, width))
        clip.whole = (int(meta["whole"][0]), int(meta["whole"][1]))
    clip.frames.append(Still(int(meta["i"]), float(meta["time_s"]), bytes(blob[skip:]), _shape(meta)))
