"""The `scene` service: what a picture of the world holds, and what of its caption holds in it. The trainer finds it by its entry point.

    scene(grid)            -> Scenes
    scenes.said(caption)   -> statements       ValueError for a caption that is not of the world
    scenes.read(pixels)    -> shapes           uint8 [H, W, 3] of any size
    scenes.held(statements, shapes) -> [(fact, holds)]      fact: kind, colour, size or place
    scenes.values(statements)       -> [word]               what those facts say, in the same order

Statements and shapes are this module's own; whoever asks hands them back as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.world import reading
from pipelines.world.reading import FACTS, Said
from pipelines.world.render import Pixels
from pipelines.world.scene import Shape


@dataclass(frozen=True, slots=True)
class Scenes:
    """Reads pictures of one grid."""

    grid: int
    facts: tuple[str, ...] = FACTS

    def said(self, caption: str) -> list[Said]:
        """See reading.said."""
        return reading.said(caption)

    def read(self, pixels: Pixels) -> list[Shape]:
        """See reading.read."""
        return reading.read(pixels, self.grid)

    def values(self, statements: Sequence[Said]) -> list[str]:
        """See reading.values."""
        return reading.values(statements)

    def held(self, statements: Sequence[Said], shapes: Sequence[Shape]) -> list[tuple[str, bool]]:
        """See reading.held."""
        return reading.held(statements, shapes, self.grid)


def scene(grid: int = 2) -> Scenes:
    """The service, for pictures of `grid` × `grid` cells."""
    return Scenes(grid)
