"""The little world's facts: scene number n of seed s, as symbols.

What comes in: (seed, number). What goes out: one to three shapes, each of a size, a colour and a kind, in cells of a grid. All else in this
folder (pictures, words, motion) reads a `Scene` and nothing else, so the five kinds of data tell of the same world.

Chance is a `Dice`: one Philox stream per (seed, number, purpose), keyed by `chance.draw`. Only raw 64-bit words are taken from it, and
turned into choices here, because numpy promises the words of Philox for ever but not the algorithms of its distributions.

The group of a scene is its *cast*: which shapes there are, wherever they stand. So held-out casts are never seen in training by any kind of
data, seed, grid or background, nor later in a clip when the shapes have moved. Kinds of shape do not repeat within a scene, so that
"the circle" always names one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipelines.format.chance import draw

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
COUNTS = (1, 2, 2, 3, 3)  # shapes in a scene: 20 %, 40 %, 40 %; a lone shape is the easiest picture and has the fewest casts (48)
ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
COLUMNS = {2: ("left", "right"), 3: ("left", "center", "right")}

T = TypeVar("T")


class Dice:
    """A stream of choices that depends on nothing but (seed, number, purpose)."""

    def __init__(self, seed: int, number: int, purpose: str) -> None:
        self._words = np.random.Philox(key=draw(number, seed, "world", purpose))

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return (int(self._words.random_raw()) * n) >> 64

    def share(self) -> float:
        """A number in [0, 1) with 53 bits."""
        return (int(self._words.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.share()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], n: int) -> list[T]:
        """`n` different options in random order (the first n steps of a Fisher-Yates shuffle)."""
        pool = list(options)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def octets(self, n: int) -> np.ndarray:
        """`n` bytes, uint8 [n]."""
        return self._words.random_raw((n + 7) // 8).astype("<u8").view(np.uint8)[:n]


@dataclass(frozen=True, slots=True)
class Shape:
    """One thing in a scene. `cell` counts row by row from the top left."""

    size: str
    colour: str
    kind: str
    cell: int

    @property
    def look(self) -> str:
        """What stays the same when the shape moves: "large red circle"."""
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes in the cells of a `grid` × `grid` picture. `seed` and `number` key the chance of whatever is made of it."""

    seed: int
    number: int
    grid: int
    shapes: tuple[Shape, ...]

    @property
    def group(self) -> str:
        """The cast, "world:large red circle+small blue square": what decides between training and held-out (see docs/world.md)."""
        return "world:" + "+".join(sorted(s.look for s in self.shapes))

    def dice(self, purpose: str) -> Dice:
        """The scene's stream for one purpose; different purposes do not disturb one another."""
        return Dice(self.seed, self.number, purpose)

    def place(self, cell: int) -> tuple[int, int]:
        """(row, column) of a cell."""
        return divmod(cell, self.grid)

    def symbols(self) -> list[list[str | int]]:
        """The shapes as plain values [size, colour, kind, cell], for a record's `fields`."""
        return [[s.size, s.colour, s.kind, s.cell] for s in self.shapes]


def make_scene(seed: int, number: int, grid: int = 2) -> Scene:
    """Scene `number` of the world of `seed`. The cast is drawn first, so it does not depend on the grid."""
    dice = Dice(seed, number, "scene")
    kinds = dice.sample(KINDS, dice.pick(COUNTS))
    cast = [(dice.pick(SIZES), dice.pick(COLOURS), kind) for kind in kinds]
    cells = dice.sample(range(grid * grid), len(cast))
    return Scene(seed, number, grid, tuple(Shape(*look, cell) for look, cell in zip(cast, cells, strict=True)))


def place_name(grid: int, cell: int) -> str:
    """Where a cell is, in words: "top left"."""
    row, column = divmod(cell, grid)
    return f"{ROWS[grid][row]} {COLUMNS[grid][column]}"
