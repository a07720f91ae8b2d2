"""Motion: shapes that slide, and an agent that turns and walks. Positions and poses only; `render.py` makes the pictures.

**Clips.** At t = 0 a clip shows the scene's own picture. Each shape in turn may slide to a free neighbouring cell, at constant speed, and
arrive with the last frame; no cell is used twice, so shapes never cover one another, and two frames tell all the later ones.

**Walks.** The scene lies on a floor of `grid` × `grid` cells of 4 × 4 steps. One frame is one second and about one step, so positions are in
steps: the waypoint units of Bar et al., "Navigation World Models" (2025), whose sampling of goals this follows. A goal is a frame at an offset
drawn within ±`horizon`, `rel_t` = offset / 128, and dx, dy, dyaw are the goal's pose in the frame of the current pose (x forward, y left, yaw
to the left, radians, wrapped to (−π, π]).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw
from pipelines.world.render import CELL
from pipelines.world.scene import Scene

Poses = NDArray[np.float64]
CONTEXT = 4  # frames before and including the current one
REL_T = 128  # offset that makes rel_t = 1
MARGIN = 1.0  # steps that the agent keeps from the floor's edge
TURN_SHARE = 0.15  # of steps that are quarter turns on the spot
MOVE_SHARE = 0.7  # of shapes that slide when they can


def slides(scene: Scene) -> list[tuple[int, int]]:
    """(first cell, last cell) of each shape. At least one shape moves."""
    dice = scene.dice("slides")
    cells = [s.cell for s in scene.shapes]
    taken, last = set(cells), list(cells)

    def slide(i: int, chance: float) -> None:
        free = [c for c in _neighbours(scene, cells[i]) if c not in taken]
        if free and dice.share() < chance:
            last[i] = dice.pick(free)
            taken.add(last[i])

    turns = dice.sample(range(len(cells)), len(cells))
    for i in turns:
        slide(i, MOVE_SHARE)
    for i in turns:
        if last == cells:  # a clip in which nothing moves teaches nothing
            slide(i, 1.0)
    return list(zip(cells, last, strict=True))


def slide_centres(scene: Scene, moves: list[tuple[int, int]], frames: int, size: int) -> list[list[tuple[float, float]]]:
    """Centres (x, y) in pixels of each shape in each of `frames` ≥ 2 frames, for `render.frames`."""
    unit = size / scene.grid
    ends = [(scene.place(a), scene.place(b)) for a, b in moves]
    times = [i / (frames - 1) for i in range(frames)]
    return [[((c0 + (c1 - c0) * t + 0.5) * unit, (r0 + (r1 - r0) * t + 0.5) * unit) for (r0, c0), (r1, c1) in ends] for t in times]


def walk(scene: Scene, steps: int) -> Poses:
    """Poses [steps, 3] (x, y in steps, yaw in radians) of one walk over the scene's floor, one a second.

    A step is a quarter turn on the spot (share `TURN_SHARE`, left or right), or 0.5 to 1.5 forward after a turn of up to ±0.3 rad.
    A walker who would come within `MARGIN` of the edge makes a quarter turn instead, towards the side where the middle lies."""
    dice = scene.dice("walk")
    side = CELL * scene.grid
    x, y = dice.between(0.3 * side, 0.7 * side), dice.between(0.3 * side, 0.7 * side)
    yaw = dice.between(-math.pi, math.pi)
    poses = np.empty((steps, 3))
    for i in range(steps):
        poses[i] = x, y, yaw
        turn, pace, quarter = dice.between(-0.3, 0.3), dice.between(0.5, 1.5), dice.pick((-1, 1))
        nx, ny = x + pace * math.cos(yaw + turn), y + pace * math.sin(yaw + turn)
        if not (MARGIN <= nx <= side - MARGIN and MARGIN <= ny <= side - MARGIN):
            to_middle = math.cos(yaw) * (side / 2 - y) - math.sin(yaw) * (side / 2 - x)
            yaw = wrap(yaw + math.copysign(math.pi / 2, to_middle))
        elif dice.share() < TURN_SHARE:
            yaw = wrap(yaw + quarter * math.pi / 2)
        else:
            x, y, yaw = nx, ny, wrap(yaw + turn)
    return poses


def goal_offset(h: int, seed: int, k: int, t: int, steps: int, horizon: int) -> int:
    """Offset in frames, not 0, of the k-th goal of the observation with hash `h` at frame `t`: uniform over ±`horizon` inside the walk."""
    allowed = [d for d in range(-horizon, horizon + 1) if d and 0 <= t + d < steps]
    return allowed[(draw(h, seed, "goal", k) * len(allowed)) >> 64]


def relative(origin: NDArray[np.float64], goal: NDArray[np.float64]) -> tuple[float, float, float]:
    """(dx, dy, dyaw) of pose `goal` in the frame of pose `origin`: dx forward, dy left, dyaw to the left in (−π, π]."""
    east, north, yaw = float(goal[0] - origin[0]), float(goal[1] - origin[1]), float(origin[2])
    dx = math.cos(yaw) * east + math.sin(yaw) * north
    dy = math.cos(yaw) * north - math.sin(yaw) * east
    return dx, dy, wrap(float(goal[2]) - yaw)


def action_text(dx: float, dy: float, dyaw: float, offset: int) -> str:
    """The action in words: "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031"."""
    # Adding 0.0 turns a rounded -0.0 into +0.0, so that one value has one spelling.
    values = [f"{name}={round(v, 3) + 0.0:+.3f}" for name, v in (("dx", dx), ("dy", dy), ("dyaw", dyaw), ("rel_t", offset / REL_T))]
    return "action: " + ", ".join(values)


def wrap(angle: float) -> float:
    """The angle in (−π, π]."""
    return math.pi - (math.pi - angle) % (2 * math.pi)


def _neighbours(scene: Scene, cell: int) -> list[int]:
    row, column = scene.place(cell)
    around = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [r * scene.grid + c for r, c in around if 0 <= r < scene.grid and 0 <= c < scene.grid]
