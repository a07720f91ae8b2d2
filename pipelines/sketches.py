"""Sketches: what a picture looks like in three kilobytes, and whether two of them are of one picture.

What comes in: 32 × 32 cells of luma and two chromas, and a 64-bit perceptual hash (`media/hashing.py` makes both in one decode). What goes out:
whether two sketches show the same picture after re-encoding, resizing or JPEG compression, by how much they differ, and an index of many to ask.

The hash alone cannot do it: of 13,470 copies of real pictures some lie 24 of its bits away, while drawings on one template and shapes on plain ground
lie within 4. So it only proposes (`BITS`), and the cells decide. A copy moves edges by a fraction of a cell and shakes cells by compression; another
picture has somewhere a cell of a value that the neighbourhood in the first does not have. Hence the measure: by how many levels does a cell leave
the range of the nine cells around its place in the other sketch, both ways, in each channel. `WORST` bounds its maximum, `MEAN` its mean, and
lumas must correlate (`RELATED`). docs/decontamination.md has the table that these numbers come from.

Pictures whose shorter side has fewer than 48 pixels are compared on 16 × 16 cells, below 32 pixels on 8 × 8: a cell needs more than a pixel. Plain
pictures (`plain`: no channel spans 32 levels) all look alike, and are for bytes and pixels to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GRID, CHANNELS = 32, 3
CELLS = GRID * GRID * CHANNELS
BITS = 24  # of 64, in which hashes of one picture may differ
WORST, MEAN, RELATED = 44, 2.4, 0.88
SMALL_WORST = 56  # where pictures are compared on fewer cells: of pictures so small, a copy loses more
PLAIN = 32
_ROUGH, _APART = 4, 28  # a first look on 4 × 4 cells: copies are within 15 levels there (measured), so nothing is lost
_SOME = 4096  # sketches compared by cells at a time: 200 MB

Cells = NDArray[np.uint8]


class Sketch(NamedTuple):
    """`cells` uint8 [32, 32, 3]; `side`: pixels of the shorter side; `how`: the geometry in which the picture was sketched."""

    phash: int
    side: int
    cells: Cells
    how: str = "as_is"


class Match(NamedTuple):
    """A sketch of the index (`at`, its place) that shows the same picture: bits between the hashes, levels between the cells at worst."""

    worst: int
    bits: int
    at: int


def plain(cells: Cells) -> bool:
    """Whether there is too little in the picture to know it by."""
    return int((cells.max((0, 1)).astype(int) - cells.min((0, 1))).max()) < PLAIN


def coarser(cells: NDArray[Any], grid: int) -> NDArray[np.int32]:
    """Cells [n, 32, 32, 3] as means over larger ones, [n, grid, grid, 3], rounded half up."""
    step = GRID // grid
    sums = cells.reshape(-1, grid, step, grid, step, CHANNELS).sum((2, 4), dtype=np.int32)
    return (2 * sums + step * step) // (2 * step * step)


def grid_for(side: int) -> int:
    """Cells a side on which a picture of that shorter side can be compared."""
    return GRID if side >= 48 else GRID // 2 if side >= 32 else GRID // 4


def differences(one: NDArray[Any], many: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of cells [g, g, 3] against [n, g, g, 3]: the worst excess, the mean excess, the correlation of lumas, each [n]. Symmetric."""
    a, b = one[None].astype(np.int16), many.astype(np.int16)
    (low_a, high_a), (low_b, high_b) = _ranges(a), _ranges(b)
    excess = np.maximum(np.maximum(low_b - a, a - high_b), np.maximum(low_a - b, b - high_a))
    excess = np.maximum(excess, 0).reshape(len(b), -1)
    x, y = a[..., 0].reshape(1, -1).astype(np.int64), b[..., 0].reshape(len(b), -1).astype(np.int64)
    n = x.shape[1]
    across = n * (x * y).sum(1) - x.sum() * y.sum(1)
    spread_x, spread_y = (n * (v * v).sum(1) - v.sum(1) ** 2 for v in (x, y))
    related = across / np.sqrt(np.maximum(spread_x * spread_y.astype(np.float64), 1.0))
    return excess.max(1).astype(np.int64), excess.sum(1, dtype=np.int64) / excess.shape[1], related


def alike(a: Sketch, b: Sketch, bits: int = BITS) -> Match | None:
    """How far apart the two are, when they show one picture."""
    found = SketchIndex([b]).matches(a, 1, bits)
    return found[0] if found else None


class SketchIndex:
    """Many sketches, to be asked for those that show a given picture. 3.2 KB each."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        n = len(sketches)
        self.hashes = np.fromiter((s.phash for s in sketches), np.uint64, n)
        self.sides = np.fromiter((s.side for s in sketches), np.int64, n)
        self.cells = np.stack([s.cells for s in sketches]) if n else np.empty((0, GRID, GRID, CHANNELS), np.uint8)
        self._rough = coarser(self.cells, _ROUGH).astype(np.int16).reshape(n, _ROUGH * _ROUGH * CHANNELS)

    def matches(self, sketch: Sketch, most: int = 16, bits: int = BITS) -> list[Match]:
        """The nearest `most` sketches of the same picture, best first. Of two plain pictures none is the other's."""
        if not len(self.hashes):
            return []
        apart = np.bitwise_count(self.hashes ^ np.uint64(sketch.phash))
        near = np.flatnonzero(apart <= bits)
        rough = coarser(sketch.cells, _ROUGH).astype(np.int16).reshape(1, -1)
        near = near[np.abs(self._rough[near] - rough).max(1) <= _APART] if len(near) else near
        found = []
        grids = [grid_for(min(sketch.side, side)) for side in self.sides[near].tolist()]
        for grid in sorted(set(grids)):
            mine = near[np.array(grids) == grid]
            one = coarser(sketch.cells, grid)[0]
            for start in range(0, len(mine), _SOME):
                some = mine[start : start + _SOME]
                worst, mean, related = differences(one, coarser(self.cells[some], grid))
                good = (worst <= (WORST if grid == GRID else SMALL_WORST)) & (mean <= MEAN) & (related >= RELATED)
                found += [Match(int(w), int(apart[i]), int(i)) for i, w in zip(some[good], worst[good], strict=True)]
        if plain(sketch.cells):  # a copy of what is just not plain may just be so
            found = [m for m in found if not plain(self.cells[m.at])]
        return sorted(found)[:most]


def _ranges(cells: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Least and greatest value among the nine cells around each place: [n, g, g, 3] twice, by rows, then by columns."""
    low = high = cells
    for axis in (1, 2):
        edge = np.take(low, [0], axis), np.take(low, [-1], axis), np.take(high, [0], axis), np.take(high, [-1], axis)
        before, after = _cut(low, axis, 0, -1), _cut(low, axis, 1, None)
        least = np.minimum(np.concatenate([edge[0], before], axis), np.concatenate([after, edge[1]], axis))
        before, after = _cut(high, axis, 0, -1), _cut(high, axis, 1, None)
        most = np.maximum(np.concatenate([edge[2], before], axis), np.concatenate([after, edge[3]], axis))
        low, high = np.minimum(low, least), np.maximum(high, most)
    return low, high


def _cut(x: NDArray[np.int16], axis: int, start: int, stop: int | None) -> NDArray[np.int16]:
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]
