"""Numbers, headings and words of one clock at the times of another: a table at 83 Hz beside frames at 20, mouse movements beside a video.

    nearest     the row nearest in time                                previous   the last row at or before: what was known then
    linear      between the two rows around; headings the short way around      between   all rows from this frame to the next, combined

Nothing is invented: where no row lies within `max_distance` seconds (for `linear`, where one of both neighbours does not), the answer is NaN, or None
for words, and the frame counts as one without an action. Words are never interpolated: `linear` takes the previous row's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipelines.clocks import usual_step

Align = Literal["nearest", "previous", "linear", "between"]
Combine = Literal["first", "last", "mean", "sum"]
SAME = 1e-6  # seconds: times that differ by less are one time, written by two programs


class Resampling:
    """From row times (increasing) to the times `at`. `max_distance` is by default one and a half times the rows' usual step."""

    def __init__(self, rows: np.ndarray, at: np.ndarray, align: Align, max_distance: float | None = None, combine: Combine = "mean") -> None:
        self.align, self.combine, self.rows, self.at = align, combine, rows, at
        far = max_distance if max_distance is not None else 1.5 * usual_step(rows)
        self._left = np.searchsorted(rows, at + SAME, side="right") - 1  # the last row at or before
        self._right = np.where(self._exact(), self._left, self._left + 1)
        self.before = self._close(self._left, far)
        self.after = self._close(self._right, far)

    def _exact(self) -> np.ndarray:
        inside = self._left >= 0
        return inside & (np.abs(self.rows[np.maximum(self._left, 0)] - self.at) <= SAME) if len(self.rows) else np.zeros(len(self.at), bool)

    def _close(self, index: np.ndarray, far: float) -> np.ndarray:
        """bool [n]: that row exists and is near enough."""
        there = (index >= 0) & (index < len(self.rows))
        if not len(self.rows):
            return there
        return there & (np.abs(self.rows[np.clip(index, 0, len(self.rows) - 1)] - self.at) <= far + 1e-9)

    def _picked(self) -> np.ndarray:
        """The one row that stands for each time, -1 for none."""
        if self.align != "nearest":
            return np.where(self.before, self._left, -1)
        last = max(0, len(self.rows) - 1)
        left, right = (np.abs(self.rows[np.clip(i, 0, last)] - self.at) if len(self.rows) else self.at for i in (self._left, self._right))
        return np.where(self.after & (~self.before | (right < left)), self._right, np.where(self.before, self._left, -1))

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of values [rows]."""
        if self.align == "between":
            return self._between(values)
        if self.align == "linear":
            weight, left, right = self._mix(values)
            return np.where(self.before & self.after, left + (right - left) * weight, np.nan)
        index = self._picked()
        return np.where(index >= 0, values[np.maximum(index, 0)], np.nan) if len(values) else np.full(len(self.at), np.nan)

    def headings(self, yaw: np.ndarray) -> np.ndarray:
        """Angles in radians; `linear` (and `between`: a pose is a state, not an amount) turns the short way around, at constant speed."""
        if self.align not in ("linear", "between"):
            return self.numbers(yaw)
        weight, left, right = self._mix(yaw)
        turn = np.pi - (np.pi - (right - left)) % (2 * np.pi)
        return np.where(self.before & self.after, left + turn * weight, np.nan)

    def quaternions(self, q: np.ndarray) -> np.ndarray:
        """Rotations [rows, 4] → [n, 4]: `slerp` where `headings` would turn, else the row's own."""
        if self.align not in ("linear", "between"):
            return np.stack([self.numbers(q[:, i]) for i in range(4)], axis=1)
        weight, _, _ = self._mix(q[:, 0])
        left, right = (np.clip(i, 0, max(0, len(self.rows) - 1)) for i in (self._left, self._right))
        return np.where((self.before & self.after)[:, None], slerp(q, left, right, weight), np.nan)

    def places(self, values: np.ndarray) -> np.ndarray:
        """A coordinate of a pose: like `numbers`, but `between` is linear, since a pose is a state."""
        if self.align != "between":
            return self.numbers(values)
        weight, left, right = self._mix(values)
        return np.where(self.before & self.after, left + (right - left) * weight, np.nan)

    def words(self, said: Sequence[str | None]) -> list[str | None]:
        """The word of the row that stands for each time; `between`: what held the longest, the earliest of equals."""
        if self.align == "between":
            return [_most([said[i] for i in range(a, b)]) for a, b in self._spans()]
        return [said[i] if i >= 0 else None for i in self._picked()]

    def _mix(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not len(self.rows):
            nothing = np.full(len(self.at), np.nan)
            return nothing, nothing, nothing
        left, right = (np.clip(i, 0, len(self.rows) - 1) for i in (self._left, self._right))
        span = self.rows[right] - self.rows[left]
        return np.where(span > 0, (self.at - self.rows[left]) / np.where(span > 0, span, 1.0), 0.0), values[left], values[right]

    def _spans(self) -> list[tuple[int, int]]:
        """Rows [a, b) from each time to the next; the last one is as long as the usual step."""
        ends = np.append(self.at[1:], self.at[-1:] + usual_step(self.at)) if len(self.at) else self.at
        return list(zip(np.searchsorted(self.rows, self.at - SAME).tolist(), np.searchsorted(self.rows, ends - SAME).tolist(), strict=True))

    def _between(self, values: np.ndarray) -> np.ndarray:
        return np.array([combined(values[a:b], self.combine) if b > a else np.nan for a, b in self._spans()], np.float64)


def combined(values: np.ndarray, how: Combine) -> float:
    """One number of at least one."""
    return float({"first": values[0], "last": values[-1], "mean": values.mean(), "sum": values.sum()}[how])


def slerp(quaternions: np.ndarray, left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[n, 4] between quaternions[left] and quaternions[right], along the shorter great arc (Shoemake, 1985). q and -q are one rotation."""
    a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (quaternions[left], quaternions[right]))
    cos = (a * b).sum(axis=1, keepdims=True)
    b, cos = np.where(cos < 0, -b, b), np.abs(cos)
    angle = np.arccos(np.clip(cos, -1, 1))
    w = weight[:, None]
    sin = np.sin(angle)
    near = sin < 1e-8
    safe = np.where(near, 1.0, sin)
    mixed = np.where(near, a + (b - a) * w, (np.sin((1 - w) * angle) * a + np.sin(w * angle) * b) / safe)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))


def increasing(times: np.ndarray) -> np.ndarray:
    """bool [n]: rows whose time is finite and later than every one before; the others cannot be interpolated between."""
    known = np.where(np.isfinite(times), times, -np.inf)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(known)[:-1]]) if len(times) else known
    return np.isfinite(times) & (known > before)


def _most(said: Sequence[str | None]) -> str | None:
    heard = [w for w in said if w is not None]
    return Counter(heard).most_common(1)[0][0] if heard else None
