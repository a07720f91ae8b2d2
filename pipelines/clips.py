"""An open video becomes records of frames, one a clip: what every source of raw video shares.

    films/a.mp4 ──every 1/fps s──▶ frame 0, 1, 2 … ──by frames_per_clip──▶ films/a.mp4@0-16000, films/a.mp4@16000-32000, …

What comes in: a file (open, or its bytes) under the name that origins carry. What goes out: its clips in order of time, and one reject for what
is wrong with it. Frames are taken by presentation time, resized and stored as JPEG in a guarded process. A clip begins at multiples of its own
length, so its name and content depend on nothing else in the file. A damaged file gives its good clips: a clip ends where a frame is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Image, Record
from pipelines.media.backends import Name as Backend
from pipelines.media.backends import trust_missing
from pipelines.media.resizing import Mode
from pipelines.media.video import Limits, Still, stills
from pipelines.stage import Rejected, Source
from pipelines.video_files import digest


class ClipSource(Source):
    """`fps` frames a second, at most `frames_per_clip` in a record (or as many as `clip_seconds` hold), each `size` pixels by `mode` (as
    `resize_image`; null keeps the video's own size). The last clip of a file may be shorter, down to `min_frames`.
    `backend` is who decodes (docs/video.md); decord and torchcodec open `trusted` files only."""

    data: ClassVar[str] = "video"
    fps: float = Field(default=1.0, gt=0, le=240)
    frames_per_clip: int = Field(default=16, ge=1, le=32_000)
    clip_seconds: float | None = Field(default=None, gt=0)
    min_frames: int = Field(default=1, ge=1)
    size: int | None = Field(default=224, ge=8, le=8192)
    mode: Mode = "center_crop"
    quality: int = Field(default=92, ge=1, le=100)
    max_pixels: Size = Limits().max_pixels
    max_seconds: int = Limits().max_seconds
    backend: Backend = "auto"
    trusted: bool = False
    licence: str | None = None

    @field_validator("clip_seconds")
    @classmethod
    def _whole(cls, seconds: float | None, info: Any) -> float | None:
        if seconds is not None and "fps" in info.data and seconds * info.data["fps"] < 1:
            raise ValueError(f"a clip of {seconds} s at {info.data['fps']} frames per second holds no frame")
        return seconds

    @model_validator(mode="after")
    def _decoder(self) -> ClipSource:
        if wrong := trust_missing(self.backend, self.trusted):
            raise ValueError(wrong)
        return self

    @property
    def _clip(self) -> int:
        """Frames of a full clip."""
        return int(Fraction(str(self.clip_seconds)) * Fraction(str(self.fps))) if self.clip_seconds else self.frames_per_clip

    @property
    def _limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, max_seconds=self.max_seconds)

    def clips_of(self, f: Any, origin: str, source: str, spec: dict[str, Any]) -> Iterator[Record | Rejected]:
        """All that one file gives. `spec` may hold `first` and `stop`, frame numbers at `fps`, when several parts share the file."""
        made, wrong = False, False
        try:
            for record in self._clips(f, origin, source, spec.get("first", 0), spec.get("stop")):
                made = True
                yield record
        except Reject as e:
            # Of a file that several parts share, all see that it is cut off; the last one counts it.
            if wrong := e.reason != "truncated" or spec.get("stop") is None:
                yield Rejected(origin, e.reason, e.detail)
        if not (made or wrong or spec.get("stop") or spec.get("first")):
            yield Rejected(origin, "too_short", f"not {self.min_frames} frames at {self.fps} a second")

    def _clips(self, f: Any, rel: str, source: str, first: int, stop: int | None) -> Iterator[Record]:
        group = digest(f)
        rate = Fraction(str(self.fps))
        limit = float(Fraction(stop) / rate) if stop is not None else None
        frames = stills(
            f,
            fps=self.fps,
            start=float(Fraction(first) / rate),
            stop=limit,
            size=self.size,
            mode=self.mode,
            quality=self.quality,
            limits=self._limits,
            backend=self.backend,
            trusted=self.trusted,
        )
        clip: list[Still] = []
        lost: Reject | None = None
        while True:
            try:
                still = next(frames, None)
            except Reject as e:
                still, lost = None, e
            if clip and (still is None or still.k // self._clip != clip[0].k // self._clip or still.k != clip[-1].k + 1):
                yield from self._record(clip, rel, source, group)
                clip = []
            if still is None:
                break
            if clip or still.k % self._clip == 0:  # after a loss the rest of a clip would begin in its middle
                clip.append(still)
        if lost:
            raise lost

    def _record(self, clip: list[Still], rel: str, source: str, group: str) -> Iterator[Record]:
        if len(clip) < min(self.min_frames, self._clip):
            return
        rate = Fraction(str(self.fps))
        start, stop = (round(1000 * Fraction(k) / rate) for k in (clip[0].k, clip[-1].k + 1))
        segments = [Image(s.payload, atom=i, shape=s.shape, time_s=s.time_s) for i, s in enumerate(clip)]
        fields = {"video": rel, "fps": self.fps}
        yield Record.make(source, f"{rel}@{start}-{stop}", "video", segments, group, licence=self.licence, fields=fields)
