"""An open video becomes records of frames, one a clip: what every source of raw video shares.

    films/a.mp4 ──every 1/fps s──▶ frame 0, 1, 2 … ──by frames_per_clip──▶ films/a.mp4@0-16000, films/a.mp4@16000-32000, …
                ──cuts──▶ shots ──by frames_per_clip──▶ films/a.mp4@0-4640, films/a.mp4@4640-20640, films/a.mp4@20640-25120, …

What comes in: a file (open, or its bytes) under the name that origins carry. What goes out: its clips in order of time, and one reject for what
is wrong with it. Frames are taken by presentation time, resized and stored as JPEG in a guarded process. A clip begins at multiples of its own
length (less the overlap), or by them from its shot's first frame on; so its name and content depend on the file alone. Frames are
sampled from the clip's beginning. A damaged file gives its good clips: a clip ends where a frame is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.format.document import Document, Size
from pipelines.format.errors import Reject
from pipelines.format.record import Image, Record, Video
from pipelines.media import clip_frames
from pipelines.media.backends import Name as Backend
from pipelines.media.backends import trust_missing
from pipelines.media.clip_frames import Clip, Pictures
from pipelines.media.measures import cropped, measures
from pipelines.media.resizing import Mode
from pipelines.media.video import By, Limits
from pipelines.stage import Rejected, Source
from pipelines.video_files import digest

RANGE_CLIPS = 64  # of a file that several parts share, so many clips a part; by shots, the ten-minute stretches that begin there
STRETCH_S = 600  # seconds of a file that are looked at for shots on their own; a shot that runs over such a mark is two
SHORT_SHOT_S = 2.0  # cosmos-curate's least


class Shots(Document):
    """Cuts by PySceneDetect's detectors (`headwater[video]`): `content` compares neighbouring frames in hue, saturation and light, `adaptive` each
    change with those around it, which forgives camera movement. `threshold`: 27 and 3 unless given, as theirs. `crop_seconds` are left out beside
    each cut, for fades; cosmos-curate leaves out 0.5."""

    detector: Literal["content", "adaptive"] = "content"
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    crop_seconds: float = Field(default=0.0, ge=0, le=60)

    def as_args(self) -> dict[str, Any]:
        return {"detector": self.detector, "threshold": self.threshold or {"content": 27.0, "adaptive": 3.0}[self.detector], "stretch": STRETCH_S}


@dataclass(frozen=True, slots=True)
class About:
    """What a source knows of a file beside its frames: its sha256 if that is known, the URL it came from, whose it is, fields for every record, and
    the piece [start, stop) in seconds that is meant, if not all of it."""

    group: str | None = None
    url: str | None = None
    licence: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    within: tuple[Fraction, Fraction | None] | None = None


class KeepClip(Document):
    """How a clip is stored as a file: no longer than `side` pixels (null: as shown), at x264's `crf` (23 is its own; less is better and larger).
    A clip of more than `max_bytes` is rejected."""

    side: int | None = Field(default=None, ge=16)
    crf: int = Field(default=23, ge=0, le=51)
    max_bytes: Size = 128 << 20


class ClipSource(Source):
    """`fps` frames a second, at most `frames_per_clip` in a record (or as many as `clip_seconds` hold); or `frames`, so many evenly over each clip of
    at most `clip_seconds`. Neighbouring clips share `overlap` seconds. With `shots` no clip crosses a cut. Each picture is `size` pixels by
    `mode` (as `resize_image`; null keeps the video's own size). Clips of less than `min_frames` or `min_seconds` (2 by shots, else 0) are
    not made. `crop_bars` takes off the black bars that a clip's frames share, before the resize. `measure` notes how clips look and move, for
    filters; `motion_vectors` also what the codec says of motion. `keep_clip` stores each clip as an mp4 too. `backend` is who decodes
    (docs/video.md); decord and torchcodec open `trusted` files only."""

    version: ClassVar[int] = 2  # 2: measures
    data: ClassVar[str] = "video"
    fps: float = Field(default=1.0, gt=0, le=240)
    frames: int | None = Field(default=None, ge=1, le=32_000)
    frames_per_clip: int = Field(default=16, ge=1, le=32_000)
    clip_seconds: float | None = Field(default=None, gt=0)
    overlap: float = Field(default=0.0, ge=0)
    shots: Shots | None = None
    min_frames: int = Field(default=1, ge=1)
    min_seconds: float | None = Field(default=None, ge=0)
    size: int | None = Field(default=224, ge=8, le=8192)
    mode: Mode = "center_crop"
    quality: int = Field(default=92, ge=1, le=100)
    crop_bars: bool = False
    measure: bool = True
    motion_vectors: bool = False
    keep_clip: bool | KeepClip = False
    max_pixels: Size = Limits().max_pixels
    max_seconds: int = Limits().max_seconds
    backend: Backend = "auto"
    trusted: bool = False
    licence: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> ClipSource:
        if self.frames is not None and self.clip_seconds is None:
            raise ValueError("`frames` are spread over a clip: give its longest length as `clip_seconds`")
        if self.frames is None and self.clip_seconds is not None and self.clip_seconds * self.fps < 1:
            raise ValueError(f"a clip of {self.clip_seconds} s at {self.fps} frames per second holds no frame")
        if wrong := trust_missing(self.backend, self.trusted):
            raise ValueError(wrong)
        if _exact(self.overlap) >= self._length:
            raise ValueError(f"an overlap of {self.overlap} s leaves nothing of a clip of {float(self._length):g} s")
        return self

    @property
    def _clip(self) -> int:
        """Frames of a full clip."""
        if self.frames is not None:
            return self.frames
        return int(_exact(self.clip_seconds) * _exact(self.fps)) if self.clip_seconds else self.frames_per_clip

    @property
    def _length(self) -> Fraction:
        """Seconds of a full clip."""
        if self.frames is not None:
            return _exact(self.clip_seconds or 0)
        return Fraction(self._clip) / _exact(self.fps)

    @property
    def _limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, max_seconds=self.max_seconds)

    def ranges(self, seconds: float) -> list[dict[str, Any]]:
        """`first` and `stop` for parts that share a file of this length. A clip, or by shots a stretch of ten minutes, belongs to the part in
        which it begins, so any such cut gives the same records."""
        step = RANGE_CLIPS * max(1, int(self._length * _exact(self.fps)))
        step = max(step, ceil(STRETCH_S * _exact(self.fps))) if self.shots else step
        frames = int(_exact(seconds) * _exact(self.fps)) + 1
        return [{"first": k, "stop": k + step if k + step < frames else None} for k in range(0, frames, step)]

    def clips_of(self, f: Any, origin: str, source: str, spec: dict[str, Any], about: About = About()) -> Iterator[Record | Rejected]:
        """All that one file gives. `spec` may hold `first` and `stop`, times in 1/fps seconds, when several parts share the file."""
        made, wrong = False, False
        try:
            for record in self._clips(f, origin, source, spec.get("first", 0), spec.get("stop"), about):
                made = True
                yield record
        except Reject as e:
            # Of a file that several parts share, all see that it is cut off; the last one counts it.
            if wrong := e.reason != "truncated" or spec.get("stop") is None:
                yield Rejected(origin, e.reason, e.detail)
        if not (made or wrong or spec.get("stop") or spec.get("first")):
            what = f"{self.min_frames} frames at {self.fps} a second" if self.frames is None else f"{self.frames} frames"
            yield Rejected(origin, "too_short", f"not {what} in {self._least:g} s or more{' between cuts' if self.shots else ''}")

    @property
    def _least(self) -> float:
        return self.min_seconds if self.min_seconds is not None else SHORT_SHOT_S if self.shots else 0.0

    def _clips(self, f: Any, rel: str, source: str, first: int, stop: int | None, about: About) -> Iterator[Record | Rejected]:
        about = about if about.group is not None else replace(about, group=digest(f))
        rate = _exact(self.fps)
        rule = {
            "fps": str(rate),
            "frames": self.frames,
            "length": str(self._length),
            "overlap": str(_exact(self.overlap)),
            "least": str(_exact(self._least)),
            "crop": str(_exact(self.shots.crop_seconds if self.shots else 0)),
            "first": str(Fraction(first) / rate),
            "stop": str(Fraction(stop) / rate) if stop is not None else None,
            "within": [None if t is None else str(t) for t in about.within] if about.within else None,
        }
        keep = KeepClip() if self.keep_clip is True else self.keep_clip or None
        files = keep.model_dump() if keep else None
        pictures = Pictures(self.size, self.mode, self.quality, self.measure, self.crop_bars, self.motion_vectors, files)
        detector = self.shots.as_args() if self.shots else None
        for clip in clip_frames.clips(f, rule, detector, pictures, self._limits, By(self.backend, self.trusted)):
            if len(clip.frames) >= min(self.min_frames, self._clip):
                record = self._record(clip, rel, source, about)
                lost = keep is not None and clip.file is None
                why = clip.no_file.detail if clip.no_file else f"its first frame does not decode, or it is more than {keep and keep.max_bytes} bytes"
                yield Rejected(record.origin, "no_clip", why) if lost else record

    def _record(self, clip: Clip, rel: str, source: str, about: About) -> Record:
        stop = clip.start + len(clip.frames) * clip.step
        if self.shots or about.within:
            stop = min(stop, clip.stop)
        start_ms, stop_ms = round(1000 * clip.start), round(1000 * stop)
        segments = [Image(s.payload, atom=i, shape=s.shape, time_s=s.time_s) for i, s in enumerate(clip.frames)]
        if clip.file is not None:
            segments.append(Video(clip.file, clip.file_shape, float(clip.start)))
        fields: dict[str, Any] = {"video": rel, **about.fields, "seconds": round(float(stop - clip.start), 3)}
        fields |= {"fps": self.fps} if self.frames is None else {}
        scores: dict[str, float] = {}
        if self.measure and clip.whole:
            told, scores = measures([cropped(s, clip.cropped) for s in clip.small])
            told |= {"cropped": [round(s, 3) for s in clip.cropped]} if any(clip.cropped) else {}
            fields |= {"shown": [clip.whole[1], clip.whole[0]], **told}
        scores |= {name: float(f"{value:.4g}") for name, value in clip.vectors.items()}
        rest = {"licence": about.licence or self.licence, "url": about.url, "fields": fields, "scores": scores}
        return Record.make(source, f"{rel}@{start_ms}-{stop_ms}", "video", segments, about.group, **rest)


def _exact(x: Any) -> Fraction:
    return Fraction(str(x))
