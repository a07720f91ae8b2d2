"""An independent reader of the world: pixels → shapes, and shapes + question text → answer.

It shares no geometry with the renderer and no sentence with the language: it looks for the six colours in a picture, tests which outline
explains what it finds, and parses a question's words. What the two sides agree on is therefore right for two reasons. Tests use it to prove questions
answerable from pixels alone; it also reads pictures that a model made (`see` finds nothing where nothing is recognisable).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipelines.world.render import RADIUS, RGB, Floats, Pixels
from pipelines.world.scene import COLOURS, KINDS, SIZES, Shape

NEAR = 48.0  # distance in RGB within which a pixel has a colour; noise is 6 √3 = 10, the muted backgrounds are ≥ 70 away from all six
LEAST = 0.06  # share of a cell that has its shape's colour at least; the least there is, a small cross, has 0.1
FIT = 0.5  # what an outline may leave unexplained, as a share of its own area; drawn shapes leave under 0.3
FINE = 8  # points a pixel side at which outlines are tested
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def see(pixels: Pixels, grid: int = 2) -> list[Shape]:
    """The shapes in a picture uint8 [S, S, 3], cell by cell: the colour with most pixels, and the outline that explains them best.

    Holds for shapes at rest in their cells, and S a multiple of the grid. A cell whose best outline fits badly counts as empty."""
    unit = pixels.shape[0] // grid
    colours = np.array([RGB[c] for c in COLOURS], np.float32)
    found = []
    for cell in range(grid * grid):
        row, column = divmod(cell, grid)
        part = pixels[row * unit : (row + 1) * unit, column * unit : (column + 1) * unit].astype(np.float32)
        area = (np.linalg.norm(part[:, :, None] - colours, axis=-1) < NEAR).sum(axis=(0, 1))
        best = int(area.argmax())
        if area[best] < LEAST * unit * unit:
            continue
        ring = np.concatenate([part[0], part[-1], part[1:-1, 0], part[1:-1, -1]])  # no shape reaches the outermost pixels of its cell
        ground = ring.mean(axis=0)
        way = colours[best] - ground
        filled = (part - ground) @ way / (way @ way)
        left_over = {look: float(((filled - o) ** 2).sum() / o.sum()) for look, o in outlines(unit).items()}
        size, kind = min(left_over, key=left_over.__getitem__)
        if left_over[size, kind] < FIT:
            found.append(Shape(size, COLOURS[best], kind, cell))
    return found


@lru_cache(maxsize=8)
def outlines(unit: int) -> dict[tuple[str, str], Floats]:
    """Every (size, kind) in a cell of `unit` pixels, float32 [unit, unit]: shares of points that lie inside, as docs/world.md defines it."""
    v, u = (np.mgrid[0 : unit * FINE, 0 : unit * FINE] + 0.5) / FINE - unit / 2
    out = {}
    for size in SIZES:
        x, y = u / (RADIUS[size] * unit), v / (RADIUS[size] * unit)
        bar = (abs(x) < 0.34) & (abs(y) < 1)
        inside = {
            "circle": x * x + y * y < 1,
            "square": (abs(x) < 0.88) & (abs(y) < 0.88),
            "triangle": (y < 0.8) & (abs(x) < 0.95 * (y + 1) / 1.8),
            "cross": bar | ((abs(y) < 0.34) & (abs(x) < 1)),
        }
        for kind, points in inside.items():
            out[size, kind] = points.reshape(unit, FINE, unit, FINE).mean(axis=(1, 3)).astype(np.float32)
    return out


def answer(shapes: Sequence[Shape], grid: int, question: str) -> str:
    """The right answer to a question of `questions.py`, from its words. ValueError when the words are not understood or nothing fits."""
    text, *options = re.split(r" [abc] (?=\w+(?:,|$))", question.removeprefix("Question: ").removesuffix(" Answer:"))
    direct = _answer(shapes, grid, text.rstrip("?"))
    if not options:
        return direct
    return "abc"[[o.rstrip(",") for o in options].index(direct)]


def _answer(shapes: Sequence[Shape], grid: int, text: str) -> str:
    words = text.replace(",", "").split()
    named = [w for w in words if w in KINDS]
    colour = next((w for w in words if w in COLOURS), None)
    by_kind = {s.kind: s for s in shapes}
    if "how many" in text or "number" in words:
        wanted = colour or next((w for w in words if w in SIZES), None)
        return _NUMBERS[sum(wanted in (None, s.size, s.colour) for s in shapes)]
    if "larger" in words:
        return max((by_kind[k] for k in named), key=lambda s: SIZES.index(s.size)).kind
    if colour and named:
        return "yes" if by_kind[named[0]].colour == colour else "no"
    if colour:
        return _only([s.kind for s in shapes if s.colour == colour], text)
    row, column = divmod(by_kind[named[0]].cell, grid)
    if "where" in words or "place" in words:
        down, along = ("top", "bottom") if grid == 2 else ("top", "middle", "bottom"), ("left", "center", "right")
        return f"{down[row]} {along[column if grid == 3 else 2 * column]}"
    if "colour" in words:
        return by_kind[named[0]].colour
    side = next((w for w in words if w in ("left", "right", "above", "below")), None)
    if side is None:
        raise ValueError(f"a question that the oracle does not understand: {text!r}")
    standing = {
        "left": [s.kind for s in shapes if s.cell % grid < column],
        "right": [s.kind for s in shapes if s.cell % grid > column],
        "above": [s.kind for s in shapes if s.cell // grid < row],
        "below": [s.kind for s in shapes if s.cell // grid > row],
    }
    return _only(standing[side], text)


def _only(kinds: list[str], text: str) -> str:
    if len(kinds) != 1:
        raise ValueError(f"{len(kinds)} answers to {text!r}")
    return kinds[0]
