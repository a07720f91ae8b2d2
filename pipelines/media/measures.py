"""What a clip looks like in numbers: light, blackness, bars, change. Made while frames are sampled, so that filters need no pixel.

What comes in: per sampled frame a small grey copy of the whole picture, before any crop. What goes out: a list a measure for the record's `fields`
(a number a frame, so that a filter's limits can be changed and its verdicts be checked without decoding), and a clip's summaries for `scores`.

All are shares of 1. `motion` is the mean absolute difference to the sampled frame before: it depends on the rate of sampling, and a cut
counts as motion; a clip made by shots has none inside. Limits of single pixels are those of FFmpeg's filters: `blackdetect` calls a
pixel black up to 0.10 and a picture from 98 % of such pixels on; `freezedetect` calls a picture frozen below a difference of 0.001.

Cost on one busy core: 0.7 ms a frame of 720 × 480, 2.6 ms of 1920 × 1080, beside 4 and 10 ms for resizing and compressing it, and decoding up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.media.images import as_image

SIDE = 256  # pixels of the copy's longer side, about: bars are found to the 256th part
BLACK_PIXEL, BLACK_PICTURE, FROZEN = 0.10, 0.98, 0.001
GRID = 4  # patches a side, of which the least moving is told: still parts of a picture that moves elsewhere


def small(whole: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [h, w], grey, each pixel the mean of a block."""
    step = max(1, round(max(whole.shape[:2]) / SIDE))
    return np.asarray(as_image(np.ascontiguousarray(whole)).reduce(step).convert("L"))


def cropped(array: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The array without these shares of its height and width at top, bottom, left and right, to whole lines."""
    height, width = array.shape[:2]
    top, bottom, left, right = (round(s * n) for s, n in zip(shares, (height, height, width, width), strict=True))
    return array[top : height - bottom, left : width - right]


def measures(frames: Sequence[np.ndarray]) -> tuple[dict[str, Any], dict[str, float]]:
    """(fields, scores) of a clip's small frames, in order.

    fields: `frames` {luma, black (share of black pixels), motion (since the frame before; null for the first)}, a number a frame; `bars` [top,
    bottom, left, right]. scores: luma, black (share of frames that are black), bars (share of the picture), and of two frames or more: motion,
    motion_min (of the least moving of 4 × 4 patches), frozen (share of neighbours without change)."""
    luma = [float(f.mean()) / 255 for f in frames]
    black = [float((f <= 255 * BLACK_PIXEL).mean()) for f in frames]
    top, bottom, left, right = bars(frames)
    scores = {"luma": sum(luma) / len(luma), "black": sum(b >= BLACK_PICTURE for b in black) / len(black)}
    scores["bars"] = 1 - (1 - top - bottom) * (1 - left - right)
    motion: list[float] = []
    if len(frames) > 1:
        patches = np.stack([_change(a, b) for a, b in pairwise(frames)])
        motion = patches.mean(axis=(1, 2)).tolist()
        scores |= {"motion": sum(motion) / len(motion), "motion_min": float(patches.mean(axis=0).min())}
        scores["frozen"] = sum(m < FROZEN for m in motion) / len(motion)
    told = {"luma": _round(luma, 3), "black": _round(black, 3), "motion": [None, *_round(motion, 4)]}
    return {"frames": told, "bars": _round([top, bottom, left, right], 3)}, {name: float(f"{value:.4g}") for name, value in scores.items()}


def bars(frames: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """Black bars at the top, bottom, left and right that every frame has, as shares of height and width. Black pictures say nothing about
    bars; if all are black there are none. A line belongs to a bar while 98 % of it is black. Two of one size are believed (letterboxes of dark
    scenes); else a bar must end at a straight edge: half of the second line behind it is not black in some frame, or it is the night
    sky, or the margin of a title."""
    dark = [f <= 255 * BLACK_PIXEL for f in frames]
    told = np.stack([d for d in dark if d.mean() < BLACK_PICTURE] or dark)
    lit = ~told.all(axis=0)
    found: list[float] = []
    for axis in (1, 0):
        lines, bright = (told.mean(axis=axis + 1) >= BLACK_PICTURE).all(axis=0), lit.mean(axis=axis)
        first, last = _leading(lines), _leading(lines[::-1])
        if abs(first - last) > 1:
            first, last = _edged(first, bright), _edged(last, bright[::-1])
        found += [first / len(lines), last / len(lines)]
    return found[0], found[1], found[2], found[3]


def _leading(lines: np.ndarray) -> int:
    return int(np.argmin(lines)) if not lines.all() else 0


def _edged(n: int, bright: np.ndarray) -> int:
    return n if n and bright[min(n + 1, len(bright) - 1)] >= 0.5 else 0


def _change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference per patch, [GRID, GRID]. Patches are of nearly equal size."""
    difference = np.abs(a.astype(np.int16) - b) / 255
    rows, columns = (np.arange(min(GRID, n)) * n // min(GRID, n) for n in difference.shape)
    sums = np.add.reduceat(np.add.reduceat(difference, rows, axis=0), columns, axis=1)
    sizes = np.outer(*(np.diff([*starts, n]) for starts, n in zip((rows, columns), difference.shape, strict=True)))
    return np.asarray(sums / sizes)


def _round(values: Sequence[float], digits: int) -> list[float]:
    return [round(v, digits) for v in values]
