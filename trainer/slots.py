"""Memory that two processes share and nobody can leave behind: a file without a name, cut into slots, one batch in each.

In: arrays by name, from a worker. Out: the same arrays in the trainer, over the same pages. The file is anonymous (memfd, or an unlinked temporary
file where there is none), passed on as an open descriptor: it is gone with its last process however that ends, and no limit of /dev/shm holds for
it. A slot has room for the largest batch there can be; pages that no batch has touched take no memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np

ALIGN = 64
Where = list[tuple[str, str, tuple[int, ...], int]]  # name, dtype, shape, offset in the slot


class Slots:
    """`count` slots of `size` bytes. `descriptor` is what a child opens them by."""

    def __init__(self, size: int, count: int, descriptor: int | None = None) -> None:
        self.size, self.count = size + -size % mmap.PAGESIZE, count
        self.descriptor = _unnamed(self.size * count) if descriptor is None else descriptor
        self._map = mmap.mmap(self.descriptor, self.size * count)

    def write(self, slot: int, arrays: dict[str, np.ndarray]) -> Where:
        """Copy arrays into a slot; what `read` needs to find them."""
        at, where = slot * self.size, []
        for name, array in arrays.items():
            at += -at % ALIGN
            stop = at + array.nbytes
            assert stop <= (slot + 1) * self.size, "a batch is larger than the largest there can be"
            np.frombuffer(self._map, array.dtype, array.size, at).reshape(array.shape)[...] = array
            where.append((name, array.dtype.str, array.shape, at - slot * self.size))
            at = stop
        return where

    def read(self, slot: int, where: Where) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays of a slot, no byte copied; and the one array that all of them keep alive: when it goes, nobody reads the slot any more."""
        whole = np.frombuffer(self._map, np.uint8, self.size, slot * self.size)
        out = {}
        for name, dtype, shape, at in where:
            kind = np.dtype(dtype)
            nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            out[name] = whole[at : at + nbytes].view(kind).reshape(shape)
        return out, whole

    def close(self) -> None:
        """Let go of the descriptor. The memory goes with the last array that lies in it."""
        os.close(self.descriptor)


def largest(rows: int, length: int, width: int) -> int:
    """Bytes of the largest batch of so many rows: every position a latent, each an image of its own."""
    positions = rows * length
    by_position = 26 + 4 * width + 8 + 4 + 18  # the flat arrays; latents, their slots and images; what stands by image
    return positions * by_position + 8 * rows + 32 * ALIGN


def _unnamed(size: int) -> int:
    if hasattr(os, "memfd_create"):
        found = os.memfd_create("batches", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            found = os.dup(file.fileno())
    os.ftruncate(found, size)
    return found


def as_where(said: list[list[Any]]) -> Where:
    """From JSON."""
    return [(name, dtype, tuple(shape), at) for name, dtype, shape, at in said]
