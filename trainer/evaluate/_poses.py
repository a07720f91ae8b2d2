"""Where was this frame seen from? Poses read off frames by comparison with what a simulator shows.

In: a simulator, a pose to search around, frames uint8 [n, S, S, 3]. Out: moves [n, 3] from that pose (dx ahead, dy to the left, in steps; dyaw) to
the pose whose view is nearest in mean square. A grid first, rendered once for all frames of a start: 4,624 poses at the defaults (reach 4, pitch
0.5, 16 directions). Its KEPT nearest go on, since the floor's stripes repeat and the nearest of a coarse grid may be a repetition; each moves
REFINED times to the best of its 26 neighbours at half the pitch, down to an eighth of a step and 5.6 degrees. Views are compared without noise; of
noisy true frames 98 % are placed within 0.3 steps (120 of them, six walks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.format import chance
from trainer.evaluate._moves import after, wrap

REFINED, KEPT = 2, 8


class Finder:
    """The views around one pose."""

    def __init__(self, world: Any, pose: np.ndarray, reach: float, pitch: float, turns: int) -> None:
        self.world, self.pose, self.pitch, self.turn = world, pose, pitch, 2 * np.pi / turns
        n = round(reach / pitch)
        line = np.arange(-n, n + 1) * pitch
        x, y, yaw = np.meshgrid(line, line, np.arange(turns) * self.turn, indexing="ij")
        self.moves = np.stack([x.ravel(), y.ravel(), wrap(yaw.ravel())], axis=1)
        self._views = self._flat(self.moves)

    def shown(self, moves: np.ndarray) -> np.ndarray:
        """Frames uint8 after moves [n, 3], with noise as the data have it."""
        return np.asarray(self.world.seen(self._poses(moves)))

    def random(self, keys: Sequence[int]) -> np.ndarray:
        """A frame of the grid for each key."""
        return self.shown(self.moves[[int(len(self.moves) * float(chance.uniform(k))) for k in keys]])

    def found(self, frames: np.ndarray) -> np.ndarray:
        """Moves [n, 3]."""
        wanted = frames.reshape(len(frames), -1).astype(np.float32)
        views = self._views.astype(np.float32)
        far = (views**2).sum(axis=1)[:, None] - 2 * views @ wanted.T
        best = np.argsort(far, axis=0, kind="stable")[:KEPT].T
        return np.stack([self._refined(frame, self.moves[b]) for frame, b in zip(wanted, best, strict=True)])

    def _refined(self, frame: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """The best of some moves [k, 3] after each went on alone, all of them a step of the search at a time."""
        steps = np.stack(np.meshgrid(*[[0.0, -1.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(1, -1, 3)
        off = np.zeros(0)
        for i in range(1, REFINED + 1):
            near = moves[:, None] + steps * np.array([self.pitch, self.pitch, self.turn]) / 2**i
            off = ((self._flat(near.reshape(-1, 3)).astype(np.float32) - frame) ** 2).sum(axis=1).reshape(len(moves), -1)
            moves = near[np.arange(len(moves)), off.argmin(axis=1)]
        move = moves[int(off.min(axis=1).argmin())]
        return np.append(move[:2], wrap(move[2]))

    def _flat(self, moves: np.ndarray) -> np.ndarray:
        views = self.world.seen(self._poses(moves), noise=False)
        return np.asarray(views.reshape(len(moves), -1))

    def _poses(self, moves: np.ndarray) -> np.ndarray:
        return after(np.broadcast_to(self.pose, (len(moves), 3)), moves)
