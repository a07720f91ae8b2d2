"""Raw video from files: mp4, webm, mkv, mov, avi and ts become clips of frames, one record a clip (`clips.py`).

Files of a folder, or one, or those of a list (`listed`): paths, or URLs that are fetched to scratch space for as long as their part is read.
Very large files are cut into parts by time, so that several workers can share one; of a file that is still to be fetched that is not known, so
it is one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.clips import ClipSource
from pipelines.file_source import FileSource
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listing import Input, list_files, place, runs
from pipelines.media.video import SUFFIXES, probe
from pipelines.stage import Rejected, SourcePart
from pipelines.video_files import video_at

LONG_BYTES = 1 << 30  # about an hour of good 1080p; from here on a file is cut into ranges of time


class VideoFolder(ClipSource, FileSource):
    """`path` is a folder of video files, one file, or with `listed` a list of them; the other keys are those of `clips.py`."""

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def parts(self) -> list[SourcePart]:
        if self.listed is not None:
            return FileSource.parts(self)
        out = []
        for run in runs(list_files(self.path, SUFFIXES)):
            if len(run) == 1:
                out += self.cut(run[0], place(self.path, run[0].path))
            else:
                out.append(SourcePart({"files": [f.path for f in run]}, [f.as_list() for f in run]))
        return out

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        """One file: whole, or, when it is long, by ranges of clips. One that cannot even be surveyed is one part, which will say why."""
        ranges: list[dict[str, Any]] = [{}]
        if item.bytes >= LONG_BYTES:
            try:
                with video_at(where) as f:
                    ranges = self.ranges(probe(f, self._limits).duration_s)
            except Reject:
                pass
        named = {"file": item.path} if self.listed is not None else {"files": [item.path]}
        return [SourcePart({**named, **r}, [item.as_list()]) for r in ranges]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        if self.listed is not None:
            yield from FileSource.read(self, spec, source)
            return
        for rel in spec["files"]:
            try:
                yield from self.read_file(place(self.path, rel), {**spec, "file": rel}, source)
            except Reject as e:
                yield Rejected(rel, e.reason, e.detail)

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        with video_at(where) as f:
            yield from self.clips_of(f, spec["file"], source, spec)
