"""A reader of world pictures that models made: noisy, faded, blurred, a little out of place. And what a caption says, as facts that hold or do not.

In: pixels of any size, the grid. Out: shapes. `oracle.see` is strict (whole pixels must have a palette's colour): right for proving pictures and
questions true, but it goes blind where a model paints a shape well and its colour badly. Here each cell is explained as ground · (1 - m) + colour · m
for every outline m, a little shifted too, ground and colour by least squares; the outline that explains most of the variance is the shape, and its
colour is the palette's nearest. A cell is empty when no outline explains enough, or the colour found is nearer to the ground than to any of the six.
Facts are words: a sentence is never compared with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

from pipelines.world.oracle import outlines
from pipelines.world.render import RGB, Floats, Pixels
from pipelines.world.scene import COLOURS, COLUMNS, KINDS, ROWS, SIZES, Shape, place_name

UNIT = 16  # pixels of a cell in which pictures of all sizes are read
SHIFT = 2  # pixels of these by which an outline may stand beside the middle of its cell
EXPLAINED = 0.2  # of a cell's variance, at least. True shapes explain 0.5; of 1,500 scenes none is misread at 0.4, nor at 0.15; this also reads noise
FACTS = ("kind", "colour", "size", "place")


@dataclass(frozen=True, slots=True)
class Said:
    """One shape as a caption names it; what it does not say is None. `place`: "top left"."""

    kind: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None


def read(pixels: Pixels, grid: int = 2) -> list[Shape]:
    """The shapes in a picture uint8 [H, W, 3], at most one a cell, cell by cell."""
    picture = _resized(pixels.astype(np.float32), grid * UNIT)
    cells = picture.reshape(grid, UNIT, grid, UNIT, 3).transpose(0, 2, 1, 3, 4).reshape(grid * grid, UNIT * UNIT, 3)
    looks, bases = _bases()
    mean = cells.mean(axis=1, keepdims=True)
    spread = ((cells - mean) ** 2).sum(axis=(1, 2))
    found = bases @ (cells - mean)  # [cells, K, 3]
    explained = (found**2).sum(axis=2) / np.maximum(spread, 1e-6)[:, None]
    out = []
    for cell, best in enumerate(explained.argmax(axis=1).tolist()):
        if explained[cell, best] < EXPLAINED:
            continue
        (size, kind), mask = looks[best]
        weights = np.linalg.lstsq(np.stack([1 - mask, mask], axis=1), cells[cell], rcond=None)[0]
        colour = _colour(weights[1], weights[0])
        if colour is not None:
            out.append(Shape(size, colour, kind, cell))
    return out


def said(caption: str) -> list[Said]:
    """What a caption of the world (either kind, either wording) says of its shapes. ValueError where a part of it names no shape."""
    out = []
    for part in caption.replace(",", " and ").split(" and "):
        words = part.split()
        if not words:
            continue
        kind = next((w for w in words if w in KINDS), None)
        if kind is None:
            raise ValueError(f"no shape is named in {part.strip()!r}")
        row, column = (next((w for w in words if any(w in names for names in of.values())), None) for of in (ROWS, COLUMNS))
        place = f"{row} {column}" if row and column else None
        out.append(Said(kind, next((w for w in words if w in COLOURS), None), next((w for w in words if w in SIZES), None), place))
    if not out:
        raise ValueError("an empty caption says nothing")
    return out


def values(statements: Sequence[Said]) -> list[str]:
    """What is stated, word by word, in the order in which `held` answers: circle, red, large, top left, square …"""
    return [value for s in statements for f in FACTS if (value := getattr(s, f)) is not None]


def held(statements: Sequence[Said], shapes: Sequence[Shape], grid: int = 2) -> list[tuple[str, bool]]:
    """(fact, whether it holds) for every fact stated: each named shape is one of those seen, another for each, such that most holds."""
    stated = [[(f, getattr(s, f)) for f in FACTS if getattr(s, f) is not None] for s in statements]
    seen = [{"kind": s.kind, "colour": s.colour, "size": s.size, "place": place_name(grid, s.cell)} for s in shapes]
    none: dict[str, str] = {}
    chosen: list[tuple[str, bool]] = []
    for order in permutations([*seen, *[none] * len(stated)], len(stated)):
        facts = [(f, s.get(f) == v) for s, wanted in zip(order, stated, strict=True) for f, v in wanted]
        if not chosen or sum(h for _, h in facts) > sum(h for _, h in chosen):
            chosen = facts
    return chosen


def _colour(colour: Floats, ground: Floats) -> str | None:
    """The nearest colour of the palette, unless what was found is nearer to the ground."""
    away = {name: float(np.linalg.norm(colour - np.array(rgb, np.float32))) for name, rgb in RGB.items()}
    nearest = min(away, key=away.__getitem__)
    return nearest if away[nearest] < float(np.linalg.norm(colour - ground)) else None


@lru_cache(maxsize=1)
def _bases() -> tuple[list[tuple[tuple[str, str], Floats]], Floats]:
    """Every outline at every shift as a mask [P], and what spans its pictures beside the mean: float32 [K, P], of length one."""
    looks, bases = [], []
    for look, mask in outlines(UNIT).items():
        wide = np.pad(mask, SHIFT)
        for dy in range(2 * SHIFT + 1):
            for dx in range(2 * SHIFT + 1):
                shifted = wide[dy : dy + UNIT, dx : dx + UNIT].reshape(-1)
                centred = shifted - shifted.mean()
                looks.append((look, shifted))
                bases.append(centred / np.linalg.norm(centred))
    return looks, np.stack(bases).astype(np.float32)


def _resized(picture: Floats, side: int) -> Floats:
    """float32 [H, W, 3] → [side, side, 3]: each new pixel the mean of what it covers."""
    for axis in (0, 1):
        n = picture.shape[axis]
        if n != side:
            picture = np.moveaxis(np.tensordot(_covering(n, side), picture, (1, axis)), 0, axis)
    return picture


@lru_cache(maxsize=16)
def _covering(n: int, side: int) -> Floats:
    """Shares [side, n] of old pixels in new ones."""
    edges, old = np.arange(side + 1) * (n / side), np.arange(n)
    share = np.clip(np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old), 0, None)
    return (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
