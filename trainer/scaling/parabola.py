"""The best size at one budget: a parabola in log N through the losses of its runs, and its minimum, if there is one inside.

    losses of 5 to 9 sizes at equal FLOPs   ──▶   N_opt, D_opt, the loss there; or the reason why there is none

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556). A minimum counts only where the parabola opens upward, has it between the smallest and the
largest size, and neither of these has the lowest loss: an extrapolated one says where the ladder should have gone, not where the optimum is. D_opt is
what a run of N_opt would have read, between the runs on either side, so that D need not be C / 6N.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.scaling.draws import Floats, generator

FLAT = 1e-9  # of the loss: rounding makes a curvature of about 1e-16 out of a straight line
LEAST = 4  # sizes: three determine a parabola and leave nothing to judge it by


@dataclass(frozen=True, slots=True)
class Optimum:
    """One budget, one modality. coefficients: of loss = c0 + c1 x + c2 x^2, x = log N - centre. reason: why there is no minimum inside, else None.
    n, d, loss: at the minimum (NaN without one). spread: the standard deviation of runs about the parabola, degrees of freedom counted."""

    budget: float
    coefficients: tuple[float, float, float]
    centre: float
    sizes: tuple[float, float]
    runs: int
    n: float = float("nan")
    d: float = float("nan")
    loss: float = float("nan")
    spread: float = float("nan")
    reason: str | None = None

    def at(self, n: Any) -> Any:
        """The parabola at sizes n."""
        x = np.log(n) - self.centre
        c0, c1, c2 = self.coefficients
        return c0 + c1 * x + c2 * x * x


def optimum(budget: float, n: Any, d: Any, loss: Any) -> Optimum:
    """The optimum of one budget. n, d, loss: one number a run, in any order; several runs (seeds) of a size count each. ValueError: not numbers > 0,
    or fewer than 4 sizes."""
    n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
    if not all(np.isfinite(x).all() and (x > 0).all() for x in (n, d)) or not np.isfinite(loss).all():
        raise ValueError(f"budget {budget:g}: sizes and tokens must be numbers above 0, losses numbers")
    if len(np.unique(n)) < LEAST:
        raise ValueError(f"budget {budget:g}: {len(np.unique(n))} sizes, and a parabola needs {LEAST}")
    centre = float(np.log(n).mean())
    x = np.log(n) - centre
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    c, *_ = np.linalg.lstsq(design, loss, rcond=None)
    left = len(n) - 3
    spread = float(np.sqrt(((design @ c - loss) ** 2).sum() / left)) if left else float("nan")
    found = Optimum(budget, (float(c[0]), float(c[1]), float(c[2])), centre, (float(n.min()), float(n.max())), len(n), spread=spread)
    sizes = np.unique(n)
    lowest = int(np.argmin([loss[n == s].mean() for s in sizes]))
    placed = _placed(found, n, d)
    if placed.reason is None and lowest in (0, len(sizes) - 1):
        return replace(found, reason=f"the {'smallest' if lowest == 0 else 'largest'} size has the lowest loss: nothing bounds the minimum there")
    return placed


def _placed(found: Optimum, n: Floats, d: Floats) -> Optimum:
    """The minimum, where it counts."""
    c0, c1, c2 = found.coefficients
    if c2 <= FLAT * abs(c0):
        return replace(found, reason="losses do not bend upward")
    x = -c1 / (2 * c2)
    best = found.centre + x
    if not np.log(found.sizes[0]) < best < np.log(found.sizes[1]):
        side = "below the smallest" if best <= np.log(found.sizes[0]) else "above the largest"
        return replace(found, reason=f"its minimum lies {side} size")
    sizes = np.unique(n)
    tokens = np.array([np.log(d[n == s]).mean() for s in sizes])
    return replace(found, n=float(np.exp(best)), d=float(np.exp(np.interp(best, np.log(sizes), tokens))), loss=c0 + c1 * x + c2 * x * x)


def resampled(found: Optimum, n: Any, d: Any, loss: Any, draws: int, key: int) -> Floats:
    """(log N_opt, log D_opt) [draws, 2] of refits to the parabola plus residuals drawn again, NaN where the refit has no minimum inside.

    Residuals, not runs: a resample that lacks a size would move the ladder. They are widened by sqrt(runs / (runs - 3)) for what the fit took."""
    n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
    left = len(n) - 3
    fitted = found.at(n)
    residual = (loss - fitted) * np.sqrt(len(n) / left) if left > 0 else np.zeros_like(loss)
    x = np.log(n) - found.centre
    solve = np.linalg.pinv(np.stack([np.ones_like(x), x, x * x], axis=1))
    picks = generator(key, "residuals", len(n), draws).integers(0, len(n), (draws, len(n)))
    c0, c1, c2 = solve @ (fitted + residual[picks]).T
    upward = c2 > FLAT * np.abs(c0)
    best = np.where(upward, -c1 / np.where(upward, 2 * c2, 1), np.nan) + found.centre
    best[(best <= np.log(found.sizes[0])) | (best >= np.log(found.sizes[1]))] = np.nan
    sizes = np.unique(n)
    return np.stack([best, np.interp(best, np.log(sizes), [np.log(d[n == s]).mean() for s in sizes])], axis=1)
