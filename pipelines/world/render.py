"""Scenes → pixels: `uint8 [n, S, S, 3]`, plain numpy, about a tenth of a millisecond a picture at S = 32.

A shape's soft edge is a signed distance in pixels, cut off at half a pixel on either side, so a shape can stand anywhere and be turned; one
function serves pictures, clips and the walker's view. Shapes are large (radius 0.425 or 0.275 of a cell: 6.8 and 4.4 px at S = 32, grid 2):
a model of some hundred thousand weights did not learn to see one that covers a single 8 × 8 patch.

Backgrounds are muted stripes whose tone, direction, width and phase belong to the scene; all six colours stand well away from any tone.
Noise is one bit a pixel (±6 of 255 on all channels): enough that no two pictures have equal bytes, little enough that a lossless PNG of 32 × 32
is smaller than its JPEG (0.9 against 1.1 kB, of which 0.6 kB are tables) and has no colour bled between 8 × 8 patches. It costs 0.18 ms to
write, JPEG 0.08; with two bits of noise it cost 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.world.scene import Dice, Scene, Shape

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

RGB = {
    "red": (214, 44, 44),
    "green": (40, 164, 64),
    "blue": (48, 84, 220),
    "yellow": (236, 210, 48),
    "purple": (150, 56, 178),
    "white": (244, 244, 244),
}
RADIUS = {"small": 0.275, "large": 0.425}  # of a cell
CELL = 4.0  # side of a cell of the floor, in steps of the walker
VIEW, BEHIND = 8.0, 2.0  # a view shows VIEW × VIEW steps, of which BEHIND lie behind the walker: the scale of a picture with grid 2
OUTSIDE = 0.45  # brightness of the ground beyond the floor's edge: the edge shows, and so does movement out there
NOISE = 6  # of 255


def coverage(kind: str, u: Floats, v: Floats, r: float) -> Floats:
    """How much of each pixel a shape of radius `r` covers, 0 to 1. `u` right and `v` down are offsets from its centre, in pixels."""
    if kind == "circle":
        distance = np.sqrt(u * u + v * v) - r  # not hypot: square roots are exact on every processor
    elif kind == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.88 * r
    elif kind == "triangle":  # apex up; width 1.9 r at the base, height 1.8 r
        side = (np.abs(u) - 0.528 * (v + r)) / 1.131
        distance = np.maximum(side, v - 0.8 * r)
    else:  # a cross of two bars, a third as wide as long
        a, b, w = np.abs(u), np.abs(v), 0.34 * r
        distance = np.minimum(np.maximum(a - w, b - r), np.maximum(b - w, a - r))
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32, copy=False)


def picture(scene: Scene, size: int = 32) -> Pixels:
    """The scene as it stands, uint8 [size, size, 3]."""
    cell = size / scene.grid
    rows_columns = [scene.place(s.cell) for s in scene.shapes]
    centres = [((column + 0.5) * cell, (row + 0.5) * cell) for row, column in rows_columns]
    return frames(scene, [centres], size)[0]


def frames(scene: Scene, centres: Sequence[Sequence[tuple[float, float]]], size: int = 32) -> Pixels:
    """Pictures uint8 [n, size, size, 3] of the scene with its shapes at `centres[i][k]` = (x, y) in pixels from the top left corner."""
    x, y = _grid(size)
    unit = size / scene.grid
    canvas = np.repeat(_stripes(scene, x * (32 / size), y * (32 / size))[None], len(centres), axis=0)
    for image, places in zip(canvas, centres, strict=True):
        for shape, (cx, cy) in zip(scene.shapes, places, strict=True):
            r = RADIUS[shape.size] * unit
            x0, x1 = max(0, int(cx - r - 1)), min(size, int(cx + r + 2))
            y0, y1 = max(0, int(cy - r - 1)), min(size, int(cy + r + 2))
            _paint(image[y0:y1, x0:x1], shape, _mask(shape.kind, x0 - cx, x1 - x0, y0 - cy, y1 - y0, r))
    return _with_noise(canvas, scene.dice("noise"))


def view(scene: Scene, poses: NDArray[np.float64], size: int = 32) -> Pixels:
    """What a walker on the scene's floor sees from poses [n, 3] (x, y in steps, yaw in radians): uint8 [n, size, size, 3]."""
    return _with_noise(floor(scene, poses, size), scene.dice("view noise"))


def floor(scene: Scene, poses: NDArray[np.float64], size: int = 32) -> Floats:
    """The same before noise falls on it, float32 [n, size, size, 3].

    The view looks straight down and turns with the walker: forward is up, the walker stands at the middle column, `BEHIND` steps above
    the lower edge, and sees `VIEW` × `VIEW` steps; a cell of the floor is `CELL` steps wide. x points right and y up on the floor, whose
    corner (0, 0) is the scene's bottom left; yaw turns left from x."""
    x, y = _grid(size)
    step = size / VIEW
    forward, left = (VIEW - BEHIND) - (y + 0.5) / step, VIEW / 2 - (x + 0.5) / step
    turned = [(math.cos(yaw), math.sin(yaw)) for yaw in poses[:, 2]]  # not numpy's, which differ between processors
    cos, sin = np.array(turned, np.float32).T[..., None, None]
    at_x, at_y = poses[:, :2].astype(np.float32).T[..., None, None]
    wx = at_x + cos * forward - sin * left
    wy = at_y + sin * forward + cos * left
    canvas = _stripes(scene, wx * step, wy * step, checks=True)
    side = CELL * scene.grid
    for shape in scene.shapes:
        row, column = scene.place(shape.cell)
        u, v = wx - (column + 0.5) * CELL, (side - (row + 0.5) * CELL) - wy
        _paint(canvas, shape, coverage(shape.kind, u * step, v * step, RADIUS[shape.size] * CELL * step))
    inside = (wx >= 0) & (wy >= 0) & (wx <= side) & (wy <= side)
    canvas *= np.where(inside, np.float32(1), np.float32(OUTSIDE))[..., None]
    return canvas


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


@lru_cache(maxsize=4096)
def _mask(kind: str, left: float, width: int, top: float, height: int, r: float) -> Floats:
    # Shapes at rest stand in few places, so almost every picture finds its masks here.
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    return coverage(kind, u + np.float32(left + 0.5), v + np.float32(top + 0.5), r)


def _paint(image: Floats, shape: Shape, mask: Floats) -> None:
    image += mask[..., None] * (np.array(RGB[shape.colour], np.float32) - image)


def _stripes(scene: Scene, x: Floats, y: Floats, checks: bool = False) -> Floats:
    """The scene's background at points x, y (in pixels of a 32-pixel picture): float32 [..., 3] between 74 and 142.

    `checks` adds a second family of stripes across the first, so that a walker sees every movement of the floor."""
    dice = scene.dice("background")
    channels = [dice.between(88, 128) for _ in range(3)]
    grey = sum(channels) / 3
    tone = np.array([grey + 0.4 * (c - grey) for c in channels], np.float32)
    across, down = dice.pick(((1, 0), (0, 1), (0.7, 0.7), (0.7, -0.7)))
    period, phase = dice.between(5, 11), dice.share()
    wave = _square(x * across + y * down, period, phase) * 14
    if checks:
        wave = wave * 0.7 + _square(y * across - x * down, 1.6 * period, phase) * 7
    return tone + wave[..., None]


def _square(z: Floats, period: float, phase: float) -> Floats:
    turns = z * np.float32(1 / period) + np.float32(phase)
    return np.where(turns - np.floor(turns) < 0.5, np.float32(1), np.float32(-1))


def _with_noise(canvas: Floats, dice: Dice) -> Pixels:
    n = canvas[..., 0].size
    bits = np.unpackbits(dice.octets((n + 7) // 8))[:n].reshape(*canvas.shape[:-1], 1)
    canvas += 2 * NOISE * bits.astype(np.float32) - NOISE
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
