"""Raw video from a folder: mp4, webm, mkv, mov, avi and ts files become clips of frames, one record a clip (`clips.py`).

Very large files are cut into parts by time, so that several workers can share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.clips import ClipSource
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listing import Input, list_files, runs
from pipelines.media.video import SUFFIXES, probe
from pipelines.stage import Rejected, SourcePart
from pipelines.video_files import video_file

LONG_BYTES = 1 << 30  # about an hour of good 1080p; from here on a file is cut into ranges of time


class VideoFolder(ClipSource):
    """`path` is a folder of video files, or one file; the other keys are those of `clips.py`."""

    path: str

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
                ranges = self.ranges(probe(f, self._limits).duration_s)
        except Reject:
            ranges = [{}]
        return [SourcePart({"files": [item.path], **r}, [item.as_list()]) for r in ranges]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for rel in spec["files"]:
            try:
                with video_file(self.path, rel) as f:
                    yield from self.clips_of(f, rel, source, spec)
            except Reject as e:
                yield Rejected(rel, e.reason, e.detail)
