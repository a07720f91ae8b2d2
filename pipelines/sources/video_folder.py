"""Raw video from a folder: mp4, webm, mkv, mov, avi and ts files become clips of frames, one record a clip.

    films/a.mp4 ──every 1/fps s──▶ frame 0, 1, 2 … ──by frames_per_clip──▶ films/a.mp4@0-16000, films/a.mp4@16000-32000, …

Frames are taken by presentation time, resized and stored as JPEG in a guarded process. A clip begins at multiples of its own length, so its name
and content depend on nothing else in the file. A damaged file gives its good clips (a clip ends where a frame is lost) and one reject.
Very large files are cut into parts by time, so that several workers can share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from hashlib import sha256
from typing import Any, ClassVar

from pydantic import Field, field_validator

from pipelines.format import storage
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Image, Record
from pipelines.listing import Input, list_files, place, runs
from pipelines.media.resizing import Mode
from pipelines.media.video import SUFFIXES, Limits, Still, probe, stills
from pipelines.stage import Rejected, Source, SourcePart

LONG_BYTES = 1 << 30  # about an hour of good 1080p; from here on a file is cut into ranges of time
RANGE_CLIPS = 64
MAX_REMOTE = 4 << 30  # what is not on a disk is held in memory while it is read


class VideoFolder(Source):
    """`fps` frames a second, at most `frames_per_clip` in a record (or as many as `clip_seconds` hold), each `size` pixels by `mode` (as
    `resize_image`; null keeps the video's own size). The last clip of a file may be shorter, down to `min_frames`."""

    data: ClassVar[str] = "video"
    path: str
    fps: float = Field(default=1.0, gt=0, le=240)
    frames_per_clip: int = Field(default=16, ge=1, le=32_000)
    clip_seconds: float | None = Field(default=None, gt=0)
    min_frames: int = Field(default=1, ge=1)
    size: int | None = Field(default=224, ge=8, le=8192)
    mode: Mode = "center_crop"
    quality: int = Field(default=92, ge=1, le=100)
    max_pixels: Size = Limits().max_pixels
    max_seconds: int = Limits().max_seconds
    licence: str | None = None

    @field_validator("clip_seconds")
    @classmethod
    def _whole(cls, seconds: float | None, info: Any) -> float | None:
        if seconds is not None and "fps" in info.data and seconds * info.data["fps"] < 1:
            raise ValueError(f"a clip of {seconds} s at {info.data['fps']} frames per second holds no frame")
        return seconds

    @property
    def _clip(self) -> int:
        """Frames of a full clip."""
        return int(Fraction(str(self.clip_seconds)) * Fraction(str(self.fps))) if self.clip_seconds else self.frames_per_clip

    def parts(self) -> list[SourcePart]:
        out = []
        for run in runs(list_files(self.path, SUFFIXES)):
            if len(run) == 1 and run[0].bytes >= LONG_BYTES:
                out += self._ranges(run[0])
            else:
                out.append(SourcePart({"files": [f.path for f in run]}, [f.as_list() for f in run]))
        return out

    def _ranges(self, item: Input) -> list[SourcePart]:
        """Parts of one long file: runs of whole clips. A file that cannot even be surveyed is one part, which will say why."""
        try:
            with video_file(self.path, item.path) as f:
                seconds = Fraction(str(probe(f, self._limits).duration_s))
        except Reject:
            return [SourcePart({"files": [item.path]}, [item.as_list()])]
        step = RANGE_CLIPS * self._clip
        frames = int(seconds * Fraction(str(self.fps))) + 1
        starts = range(0, frames, step)
        return [SourcePart({"files": [item.path], "first": k, "stop": k + step if k + step < frames else None}, [item.as_list()]) for k in starts]

    @property
    def _limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, max_seconds=self.max_seconds)

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for rel in spec["files"]:
            made, wrong = False, False
            try:
                with video_file(self.path, rel) as f:
                    for record in self._clips(f, rel, source, spec.get("first", 0), spec.get("stop")):
                        made = True
                        yield record
            except Reject as e:
                # Of a file that several parts share, all see that it is cut off; the last one counts it.
                if wrong := e.reason != "truncated" or spec.get("stop") is None:
                    yield Rejected(rel, e.reason, e.detail)
            if not (made or wrong or spec.get("stop") or spec.get("first")):
                yield Rejected(rel, "too_short", f"not {self.min_frames} frames at {self.fps} a second")

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


@contextmanager
def video_file(root: str, rel: str) -> Iterator[Any]:
    """A video as an open local file, or as its bytes when it lies in an object store."""
    path = place(root, rel)
    if storage.is_local(path):
        with storage.open_read(path) as f:
            yield f
    elif storage.size(path) > MAX_REMOTE:
        raise Reject("too_large", f"{storage.size(path)} bytes in an object store, allowed {MAX_REMOTE}: copy it to a disk")
    else:
        yield storage.read(path)


def digest(data: Any) -> str:
    """sha256 of the bytes, or of a whole open file."""
    if not hasattr(data, "fileno"):
        return sha256(data).hexdigest()
    out = sha256()
    data.seek(0)
    while block := data.read(1 << 20):
        out.update(block)
    return out.hexdigest()
