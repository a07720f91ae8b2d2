"""The `walker` service: a record of the little world's walks -> a simulator of that very walk. Evaluations of world models find it by its name.

In: an encoded record's origin and fields, and the side of its pictures. Out: None for records that are not of this world; else a `Walker`: poses in,
pixels out, poses advanced by actions as the data's own actions say them. So a trainer that imports nothing of this package can ask what *would* be
seen after an action nobody took. A service of another world has the same methods.

The index says the scene's number and shapes, its origin the seed; the grid is the one on whose floor the walk passes the record's poses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.world import motion, render
from pipelines.world.scene import Scene, make_scene

ORIGIN = re.compile(r"seed-(\d+)/scene-(\d+)@\d+-\d+~\d+")
ROUNDED = 1e-6  # of a pose in the index: six digits
BLOCK = 512  # poses drawn at a time: 19 MB of float32 at 32 pixels


class Walker:
    """One walk, observed at one of its frames. Poses are float64 [n, 3]: x, y in steps on the floor, yaw in radians, to the left."""

    def __init__(self, scene: Scene, size: int, frame: int) -> None:
        self.scene, self.size, self.frame = scene, size, frame
        self.side = render.CELL * scene.grid

    def walked(self, frames: Sequence[int]) -> NDArray[np.float64]:
        """The true poses at frames of the walk by number; the walk goes on as long as it is asked, beyond what was recorded."""
        return motion.walk(self.scene, max(frames) + 1)[list(frames)]

    def moved(self, poses: NDArray[np.float64], actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where actions [n, 3] (dx ahead, dy to the left, dyaw) lead from poses [n, 3]: the inverse of how the data say an action."""
        cos, sin = (np.array([f(yaw) for yaw in poses[:, 2]]) for f in (math.cos, math.sin))
        dx, dy, dyaw = np.asarray(actions, np.float64).T
        yaw = [motion.wrap(float(a)) for a in poses[:, 2] + dyaw]
        return np.stack([poses[:, 0] + cos * dx - sin * dy, poses[:, 1] + sin * dx + cos * dy, yaw], axis=1)

    def inside(self, poses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether a walker of the data may stand there: `MARGIN` away from the floor's edge."""
        x, y = poses[:, 0], poses[:, 1]
        return np.asarray((np.minimum(x, y) >= motion.MARGIN - ROUNDED) & (np.maximum(x, y) <= self.side - motion.MARGIN + ROUNDED))

    def seen(self, poses: NDArray[np.float64], noise: bool = True) -> NDArray[np.uint8]:
        """Frames uint8 [n, size, size, 3]. With `noise`, that of the walk's first frame on every one, so a frame depends on its pose alone."""
        made = []
        for start in range(0, len(poses), BLOCK):
            canvas = render.floor(self.scene, poses[start : start + BLOCK], self.size)
            if noise:
                canvas += self._grain()
            made.append(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8))
        return np.concatenate(made) if made else np.zeros((0, self.size, self.size, 3), np.uint8)

    def now(self) -> NDArray[np.uint8]:
        """The record's present frame [1, size, size, 3], as the data have it to the byte: by it a simulator is known to be the right one."""
        return self.frames([self.frame])

    def frames(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Frames of the walk by number, as the data have them to the byte."""
        return render.view(self.scene, self.walked(range(max(numbers) + 1)), self.size)[list(numbers)]

    def places(self) -> dict[str, tuple[float, float]]:
        """What stands on the floor, by what it is called ("red circle"), and where its middle is (x, y)."""
        out = {}
        for shape in self.scene.shapes:
            row, column = self.scene.place(shape.cell)
            out[f"{shape.colour} {shape.kind}"] = ((column + 0.5) * render.CELL, self.side - (row + 0.5) * render.CELL)
        return out

    def _grain(self) -> NDArray[np.float32]:
        n = self.size * self.size
        bits = np.unpackbits(self.scene.dice("view noise").octets((n + 7) // 8))[:n].reshape(self.size, self.size, 1)
        return 2 * render.NOISE * bits.astype(np.float32) - render.NOISE


def walker(origin: str, fields: dict[str, Any], size: int) -> Walker | None:
    """The service. None where the record is not a walk of this world."""
    match = ORIGIN.fullmatch(origin)
    if match is None or not {"scene", "shapes", "poses", "frame", "goal"} <= set(fields):
        return None
    seen = [*range(fields["frame"] - motion.CONTEXT + 1, fields["frame"] + 1), fields["goal"]]
    told = np.array(fields["poses"], np.float64)
    for grid in (2, 3):
        scene = make_scene(int(match[1]), int(match[2]), grid)
        if scene.symbols() == [list(s) for s in fields["shapes"]] and told.shape == (len(seen), 3):
            made = Walker(scene, size, fields["frame"])
            if np.abs(made.walked(seen) - told).max() <= ROUNDED:
                return made
    return None
