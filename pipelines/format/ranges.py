"""Slices of remote files through a small cache of blocks: one ranged read brings many samples, since plans go block by block.

In: a path and a byte range. Out: a view of the bytes. Blocks are 4 MiB (the locality that plans keep); the newest 64 stay (256 MiB a process).
Data files are named by their content and never change, so a block that was read once stays right.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import Lock

from pipelines.format import storage

BLOCK = 4 << 20
KEPT = 64


class Ranges:
    """A reader of slices. Safe to share between threads; a copy in another process starts empty."""

    def __init__(self, block: int = BLOCK, kept: int = KEPT) -> None:
        self.block, self.kept = block, kept
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = Lock()

    def read(self, path: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of a file, fewer where it ends earlier."""
        first, last = start // self.block, max(stop - 1, start) // self.block
        parts = [self._block(path, k) for k in range(first, last + 1)]
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        at = start - first * self.block
        return memoryview(whole)[at : at + stop - start]

    def _block(self, path: str, k: int) -> bytes:
        key = (path, k)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        data = storage.read(path, k * self.block, (k + 1) * self.block)
        with self._lock:
            self._blocks[key] = data
            while len(self._blocks) > self.kept:
                self._blocks.popitem(last=False)
        return data

    def __reduce__(self) -> tuple[type[Ranges], tuple[int, int]]:
        return Ranges, (self.block, self.kept)


class RangedFile(io.RawIOBase):
    """A file of known length as a seekable one that fetches exactly what is read: for readers that jump, such as Parquet's of one flat column."""

    def __init__(self, path: str, nbytes: int) -> None:
        super().__init__()
        self._path, self._nbytes, self._at = path, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0 if whence == io.SEEK_SET else self._at if whence == io.SEEK_CUR else self._nbytes)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._nbytes if size is None or size < 0 else min(self._at + size, self._nbytes)
        data = storage.read(self._path, self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data
