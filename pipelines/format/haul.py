"""One fetch as a file: pieces of a remote file that were brought, and checked, together.

    piece | piece | … | (start, stop) of each piece in the remote file, uint64 LE | their number, uint64 LE          <crc32>-<hash of the table>

Only what somebody asked for is kept: what lay between, and came along in the same ranged read, is dropped, since nothing has checked it. Four
megabytes of short texts of which a plan takes every other are one file so, not two thousand. The name says the CRC-32 of the whole (3.9 GiB/s
here): that is against rot and torn writes; what arrives has passed a better hash before.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pieces = Sequence[tuple[int, bytes | memoryview]]


class Haul(NamedTuple):
    """Where the pieces of one file lie: [start, stop) in the remote file, ascending and apart, and their place `at` in this one."""

    name: str
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    at: NDArray[np.int64]

    def find(self, start: int, stop: int) -> int:
        """The place of bytes [start, stop) of the remote file; -1 when no piece holds them all."""
        if not len(self.start) or start < self.start[0] or stop > self.stop[-1]:
            return -1
        k = int(np.searchsorted(self.start, start, "right")) - 1
        return int(self.at[k]) + start - int(self.start[k]) if stop <= self.stop[k] else -1

    def holds(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For many ranges, whether they are here."""
        if not len(self.start):
            return np.zeros(len(start), np.bool_)
        k = np.searchsorted(self.start, start, "right") - 1
        return (k >= 0) & (stop <= self.stop[np.maximum(k, 0)])


def packed(pieces: Pieces) -> tuple[str, list[bytes | memoryview], Haul]:
    """(name, what to write, what it holds) of pieces in ascending order that do not overlap."""
    table = np.array([(start, start + len(data)) for start, data in pieces], "<u8").tobytes() + struct.pack("<Q", len(pieces))
    crc = 0
    for part in (*(data for _, data in pieces), table):
        crc = zlib.crc32(part, crc)
    name = f"{crc:08x}-{blake2b(table, digest_size=8).hexdigest()}"
    return name, [*(data for _, data in pieces), table], _haul(name, table)


def read_table(path: str) -> Haul | None:
    """What a file holds, as its end says; None when it is gone or makes no sense. Its content is not looked at."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - 8, 0))
            (n,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if 16 * n + 8 > size:
                return None
            file.seek(size - 8 - 16 * n)
            found = _haul(os.path.basename(path), file.read(16 * n + 8))
    except FileNotFoundError:
        return None
    return found if len(found.at) and (found.stop > found.start).all() and int(found.at[-1] + found.stop[-1] - found.start[-1]) <= size else None


def open_checked(path: str) -> memoryview | None:
    """A whole file, mapped; None when it is gone or its bytes are not those that its name says."""
    try:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError):  # gone, or empty
        return None
    return view if f"{zlib.crc32(view):08x}" == os.path.basename(path).partition("-")[0] else None


def _haul(name: str, table: bytes) -> Haul:
    edges = np.frombuffer(table[:-8], "<u8").astype(np.int64).reshape(-1, 2)
    start, stop = np.ascontiguousarray(edges[:, 0]), np.ascontiguousarray(edges[:, 1])
    return Haul(name, start, stop, np.cumsum(stop - start) - (stop - start))
