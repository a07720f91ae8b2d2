"""Do the frames move when the actions say so? A shift by a frame or two between a log and its video, found by correlation.

What comes in: small grey frames in order, and how much each row's action does (the distance of poses, the size of the numbers, a key that is held).
What goes out: the lag at which both agree best, and how sure that is. A log one row late shows lag +1: its row i+1 belongs to frame i.

Motion is the mean absolute difference of neighbouring frames. Both series are taken in logarithms, without their slow trend, so that neither a bright
scene nor a long straight road decides. A lag counts only when it agrees clearly (`FAIR`), clearly better than no lag (`MARGIN`), and in nearly all
of eight pieces of the trajectory, each for itself: one coincidence is not evidence.
A controller's real delay is such a lag too: a real car's steering (donkeycar, 20 Hz) shows in its frames 3 rows later, at a correlation of 0.52
against 0.04 without a lag. Commands may rightly run ahead, poses may not: so this warns or rejects only where it is asked to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

REACH = 5  # frames either way
FAIR, MARGIN = 0.3, 0.1  # correlation at the best lag, and how much better than at none
PIECES, AGREE = 8, 7
SHORTEST = 64  # frames; fewer say nothing
TREND = 31  # rows of the moving mean that is taken off


@dataclass(frozen=True)
class Lag:
    """`best` frames with correlation `at_best`; `sure` when the evidence is clear that it is not 0."""

    best: int
    at_best: float
    at_zero: float
    sure: bool


def motion(frames: np.ndarray) -> np.ndarray:
    """float64 [n - 1]: how much changes from each frame to the next; frames are [n, H, W] in any unit."""
    f = frames.astype(np.float32)
    return np.abs(np.diff(f, axis=0)).mean(axis=(1, 2)).astype(np.float64)


def find_lag(moved: np.ndarray, acted: np.ndarray) -> Lag | None:
    """The lag between what the frames show, moved[i] from frame i to i + 1, and acted[i], what row i's action does. None when there is too little
    to judge by: too few rows, or one of both never changes."""
    n = min(len(moved), len(acted))
    if n < SHORTEST:
        return None
    a, b = _flat(moved[:n]), _flat(acted[:n])
    if a.std() < 1e-9 or b.std() < 1e-9:
        return None
    lags = range(-REACH, REACH + 1)
    found = {lag: _agreement(a, b, lag) for lag in lags}
    best = max(lags, key=lambda lag: (found[lag], -abs(lag)))
    edges = np.linspace(0, n, PIECES + 1).astype(int)
    pieces = [(a[i:j], b[i:j]) for i, j in pairwise(edges.tolist())]
    wins = sum(_agreement(x, y, best) > _agreement(x, y, 0) for x, y in pieces)
    sure = best != 0 and found[best] >= FAIR and found[best] - found[0] >= MARGIN and wins >= AGREE
    return Lag(best, round(found[best], 3), round(found[0], 3), sure)


def _flat(series: np.ndarray) -> np.ndarray:
    """Logarithm without its slow trend, with zero mean; what is no number counts as the usual."""
    x = np.where(np.isfinite(series), series, np.nanmedian(series) if np.isfinite(series).any() else 0.0)
    floor = float(np.median(np.abs(x))) * 0.1 + 1e-9
    x = np.log(np.abs(x) + floor)
    pad = np.pad(x, TREND // 2, mode="edge")
    return np.asarray(x - np.convolve(pad, np.ones(TREND) / TREND, mode="valid"))


def _agreement(moved: np.ndarray, acted: np.ndarray, lag: int) -> float:
    """Correlation of moved[i] with acted[i + lag]."""
    a = moved[max(0, -lag) : len(moved) - max(0, lag)]
    b = acted[max(0, lag) : len(acted) + min(0, lag)]
    a, b = a - a.mean(), b - b.mean()
    both = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / both if both > 1e-12 else 0.0
