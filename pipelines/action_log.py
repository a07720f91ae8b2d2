"""What the rows of a trajectory say: times, numbers, words and poses by the names a template uses, read once and asked many things.

    table ──read──▶ Log ──at (another clock)──▶ Log          is every row sound?  does it do anything?  how much?

`actions` are columns of numbers (a column of lists becomes name0, name1, …), `words` columns of text or of lists of keys, and a pose is columns of
its own. A row is sound when every number in it is finite and every word is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pipelines.action_text import NOTHING
from pipelines.actions import Pose, heading
from pipelines.columns import Columns, numbers, widths
from pipelines.columns import words as spoken
from pipelines.resample import Resampling, increasing

Idle = Literal["zero", "same"]
_STILL = 1e-3  # of a spacing, or radians: a pose that moved less stood still


@dataclass(frozen=True)
class Log:
    """`times` [n] seconds, `values` name → float64 [n], `words` name → n words or None, `poses` [n, 3], `rotation` the quaternions [n, 4] that
    the poses' yaw came from, `noted` columns that go into fields."""

    times: np.ndarray
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    words: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    poses: np.ndarray | None = None
    rotation: np.ndarray | None = None
    noted: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, table: Columns, times: np.ndarray, actions: Mapping[str, str], words: Mapping[str, str], pose: Pose | None) -> Log:
        """The columns that a source names. Raises `Reject` for one that is not there."""
        values: dict[str, np.ndarray] = {}
        for name, column in actions.items():
            wide = widths(table, column)
            values |= {f"{name}{i}": numbers(table, f"{column}[{i}]") for i in range(wide)} if wide else {name: numbers(table, column)}
        poses = pose.read(lambda name: numbers(table, name)) if pose else None
        rotation = pose.rotation(lambda name: numbers(table, name)) if pose and pose.quaternion else None
        return cls(times, values, {name: spoken(table, column) for name, column in words.items()}, poses, rotation)

    def __len__(self) -> int:
        return len(self.times)

    def on(self, at: np.ndarray, how: Callable[[np.ndarray, np.ndarray], Resampling]) -> Log:
        """The same log on another clock: `how(row times, at)` makes the resampling. Rows that are not later than all before are left out first."""
        keep = increasing(self.times)
        r = how(self.times[keep], at)
        index = np.flatnonzero(keep).tolist()
        rotation = r.quaternions(self.rotation[keep]) if self.rotation is not None else None
        poses = None
        if self.poses is not None:
            yaw = heading(rotation) if rotation is not None else r.headings(self.poses[keep, 2])
            poses = np.stack([r.places(self.poses[keep, 0]), r.places(self.poses[keep, 1]), yaw], axis=1)
        return replace(
            self,
            times=at,
            values={name: r.numbers(v[keep]) for name, v in self.values.items()},
            words={name: r.words([w[i] for i in index]) for name, w in self.words.items()},
            noted={name: r.words([c[i] for i in index]) for name, c in self.noted.items()},
            poses=poses,
            rotation=rotation,
        )

    def sound(self) -> np.ndarray:
        """bool [n]: every number is finite and every word is there."""
        out = np.ones(len(self), bool)
        for column in (*self.values.values(), *(self.poses.T if self.poses is not None else ())):
            out &= np.isfinite(column)
        for said in self.words.values():
            out &= np.array([w is not None for w in said], bool)
        return out

    def still(self, idle: Idle, spacing: float) -> np.ndarray:
        """bool [n]: nothing moves and nothing is pressed. Numbers are still when they are zero (velocities, mouse) or when they are the row
        before's (`same`: joint targets); words when they say none; a pose when it is where it was in the row before."""
        out = np.ones(len(self), bool)
        for column in self.values.values():
            before = np.concatenate([column[:1], column[:-1]])
            out &= np.abs(column - (before if idle == "same" else 0)) < 1e-6
        for said in self.words.values():
            out &= np.array([w == NOTHING for w in said], bool)
        if self.poses is not None:
            away = self._travelled(spacing)
            out &= np.concatenate([away[:1], away]) < _STILL if len(self) > 1 else out
        return out

    def effort(self, spacing: float) -> np.ndarray | None:
        """float64 [n]: how much row i does until the next one; by the poses where there are any, else by numbers and words. None without either."""
        if self.poses is not None:
            away = self._travelled(spacing)
            return np.concatenate([away, away[-1:]])
        amounts = [np.abs(column - np.nanmedian(column)) for column in self.values.values() if np.isfinite(column).any()]
        scaled = [a / (np.nanmean(a) or 1.0) for a in amounts]
        scaled += [np.array([0.0 if w in (None, NOTHING) else 1.0 for w in said]) for said in self.words.values()]
        return np.sum(scaled, axis=0) if scaled else None

    def _travelled(self, spacing: float) -> np.ndarray:
        """float64 [n - 1]: from each pose to the next, in spacings, turns in radians."""
        assert self.poses is not None
        step = np.diff(self.poses, axis=0)
        turn = np.pi - (np.pi - step[:, 2]) % (2 * np.pi)
        return np.asarray(np.hypot(step[:, 0], step[:, 1]) / spacing + np.abs(turn))
