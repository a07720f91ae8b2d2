"""The cross-entropy method over straight plans, and how far a plan ends from the truth. Arithmetic only: no model, no picture.

In: a prior over (dx, dy, yaw) and a function that says what plans cost. Out: the plan that the method settles on, its poses, and its errors. After
the planning code of Navigation World Models (Bar et al., arXiv 2412.03572; github.com/facebookresearch/nwm, planning_eval.py, commit 3f6cd8e):

- A plan of `steps` steps is one displacement (dx, dy), said in the frame of the first pose and repeated, and a final yaw. Its poses lie on a
  straight line; the first step turns towards where it goes, atan2(dy, dx), and the last adds the final yaw.
- `samples` plans are drawn from a normal distribution without correlations, costs of `repeats` imagined ends are averaged, and the mean and deviation
  (n - 1) of the `top` cheapest are the next distribution; after `optimisation_steps` of this its mean is the plan.
- Errors: absolute trajectory error, the root of the mean square distance between positions of one time, and relative pose error, the same of their
  displacements over one frame, both without alignment or scale, as `evo` 1.38 computes `translation_part` where orientations are not told.

Two things differ, and neither touches positions where headings are small. There the model is told (dx, dy) unturned at every step, though the agent
has turned with the first; here each step is told in the frame it is taken in, so a perfect model follows the very line that is scored. And there the
final yaw is multiplied by pi once more when the elites become the mean; here it stays in radians. Yaws are averaged on the circle, around the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.format import chance
from trainer.evaluate._moves import between, wrap

# Displacements are normalised there to [-1, 1] by these bounds (config/data_config.yaml), in waypoint units; yaws are in units of pi.
LOW, HIGH = np.array([-2.5, -4.0]), np.array([5.0, 4.0])
RELEASED = {  # config/data_hyperparams_plan.yaml: mean, deviation
    "recon": ((-0.1, 0.0, 0.0), (0.02, 0.1, 0.1)),
    "tartan": ((0.5, 0.0, 0.0), (0.07, 0.1, 0.1)),
    "scand": ((-0.25, 0.0, 0.0), (0.04, 0.1, 0.1)),
    "sacson": ((-0.33, 0.0, 0.0), (0.03, 0.1, 0.1)),
}
# The little world's walks from frame 3 to frame 11, over scenes 9M to 9M + 1999 of seed 0: displacement / 8 has mean (-0.04, 0.01) and deviation
# (0.30, 0.33) steps; the final yaw, seen from where the displacement goes, is all but uniform (deviation 1.48). No recipe here takes those.
WORLD = ((0.0, 0.0, 0.0), (0.3, 0.33, 1.5))


@dataclass(frozen=True)
class Prior:
    """Mean and deviation of (dx, dy, final yaw): units of the action text, radians."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def named(cls, name: str) -> Prior:
        """`world`, or one of the released data sets', turned into units of the text."""
        if name == "world":
            return cls(*map(np.array, WORLD))
        mean, deviation = map(np.array, RELEASED[name])
        half = (HIGH - LOW) / 2
        return cls(np.append((mean[:2] + 1) * half + LOW, mean[2] * np.pi), np.append(deviation[:2] * half, deviation[2] * np.pi))

    def draw(self, key: int, n: int) -> np.ndarray:
        """float64 [n, 3]: a pure function of the key."""
        return np.asarray(self.mean + self.deviation * chance.noise(key, (n, 3)), np.float64)


def poses_of(plans: np.ndarray, steps: int) -> np.ndarray:
    """float64 [n, steps + 1, 3]: poses of plans [n, 3] from (0, 0, 0) on, in units of the text."""
    k = np.arange(steps + 1)
    heading = np.where((plans[:, 0] != 0) | (plans[:, 1] != 0), np.arctan2(plans[:, 1], plans[:, 0]), 0.0)
    yaw = np.where(k > 0, heading[:, None], 0.0)
    yaw[:, -1] = wrap(yaw[:, -1] + plans[:, 2])
    return np.stack([plans[:, :1] * k, plans[:, 1:2] * k, yaw], axis=2)


def moves_of(plans: np.ndarray, steps: int) -> np.ndarray:
    """float64 [n, steps, 3]: what each step is told, in the frame it is taken in."""
    poses = poses_of(plans, steps)
    return between(poses[:, :-1], poses[:, 1:])


def planned(prior: Prior, cost: Callable[[np.ndarray, int], np.ndarray], key: int, samples: int, top: int, rounds: int) -> np.ndarray:
    """The plan [3] that the method settles on. `cost(plans [n, 3], round)` says [n]; of equal costs the first drawn is better."""
    for i in range(rounds):
        drawn = prior.draw(int(chance.draw(key, 0, "cem", i)), samples)
        best = drawn[np.argsort(cost(drawn, i), kind="stable")[:top]].copy()
        best[:, 2] = best[0, 2] + wrap(best[:, 2] - best[0, 2])
        prior = Prior(best.mean(axis=0), best.std(axis=0, ddof=1) if top > 1 else prior.deviation)
    return prior.mean


def errors(plan: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """ate, rpe, position (units of the text) and yaw (radians) of a plan [3] against true poses [steps + 1, 3], of which the first is where both
    begin.

    Like the released code, trajectories hold the positions after each step, not the common first one."""
    steps = len(truth) - 1
    mine, true = poses_of(plan[None], steps)[0][1:], between(truth[:1], truth)[1:]
    off = mine - true
    drift = np.diff(off[:, :2], axis=0) if steps > 1 else np.zeros((1, 2))
    rms = lambda x: float(np.sqrt((x**2).sum(axis=1).mean()))
    return {"ate": rms(off[:, :2]), "rpe": rms(drift), "position": float(np.hypot(*off[-1, :2])), "yaw": abs(float(wrap(off[-1, 2])))}
