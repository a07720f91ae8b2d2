"""Frames that lie as image files: loading them at the target size, and small ones to look for motion in. Shared by the sources of such folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, Reject
from pipelines.format.record import Image, Segment
from pipelines.media import still
from pipelines.trajectory import THUMB, ActionSource, Load, Thumbs

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFrames(ActionSource):
    """An `ActionSource` whose rows have a file each: row → path relative to the source."""

    def _loader(self, files: Mapping[int, str]) -> Load:
        def load(rows: Sequence[int]) -> Iterator[tuple[int, Segment | Reject]]:
            for row in rows:
                try:
                    yield row, self._frame(self._bytes(files[row]))
                except Reject as e:
                    yield row, e

        return load

    def _thumbs(self, files: Mapping[int, str]) -> Thumbs:
        def thumbs(rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            for row in rows:
                try:
                    yield row, still.thumbnail(self._bytes(files[row]), THUMB, self.max_pixels)
                except Reject:
                    continue  # said when it is loaded

        return thumbs

    def _bytes(self, rel: str) -> bytes:
        try:
            return storage.read(storage.join(self.path, rel))
        except HeadwaterError as e:
            raise Reject("unreadable", e.what) from None

    def _frame(self, data: bytes) -> Segment:
        mode = self.mode if self.size else "no"
        payload, shape, _ = still.resized(data, self.size or 1, mode, self.quality, True, self.max_pixels)
        return Image(payload, shape=shape)
