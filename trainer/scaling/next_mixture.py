"""The mixture to try next: the least weighted loss that the laws predict, where the arms vouch for them.

`hull` searches mixtures of the arms' own mixtures (their convex hull), where a law interpolates; `bounds` searches a box of shares, and says how far
the answer lies outside that hull. A prediction is compared with an arm by refits to resampled arms: how often is it better, and by how much. That
arm is the best of those that were trained on as many tokens. Where none was, it is the best of the arms' shares at as many: what an arm read in all
says nothing of its mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.scaling.draws import Estimate, Floats, cases, estimate
from trainer.scaling.mixing import MixingLaw, fitted, loss_at

STEPS = 3000
SAME_TOTAL = 0.02  # totals so near are one: runs end with a whole step


@dataclass(frozen=True, slots=True)
class Proposal:
    """shares sum to 1. predicted, best: weighted loss there and at the shares of `arm`, both by the laws at one total. gain: best - predicted, with
    its interval; chance: how often resampled laws say it is above 0, NaN where the shares are the arm's own. trained: whether that arm read as many
    tokens as are asked for. inside: whether shares lie in the hull of the arms'."""

    shares: Floats
    predicted: float
    best: float
    arm: int
    gain: Estimate
    chance: float
    inside: bool
    trained: bool


def propose(
    laws: list[MixingLaw], x: Any, losses: Any, weights: Any = None, total: float | None = None, bounds: Any = None,
    groups: Any = None, draws: int = 100, key: int = 0,
) -> Proposal:  # fmt: skip
    """The next mixture. x [arms, sources] and losses [arms, laws] are what the laws were fitted to; weights: of the losses (null: equal, each over
    its own spread); total: tokens in the unit of x (null: the arms' largest); bounds: [sources, 2] of shares, to search a box instead of the hull.
    ValueError: bounds that hold no mixture, weights that are all 0."""
    x, losses = np.asarray(x, np.float64), np.asarray(losses, np.float64)
    weigh = (1 / np.where(losses.std(0) > 0, losses.std(0), 1) if weights is None else np.asarray(weights, np.float64)).astype(np.float64)
    if not weigh.any():
        raise ValueError("no loss has a weight, so every mixture is as good")
    shares = x / x.sum(1, keepdims=True)
    total = float(x.sum(1).max()) if total is None else total
    forms, parameters = [law.form for law in laws], [law.parameters for law in laws]
    at = lambda p, r: np.stack([loss_at(f, q, np.atleast_2d(r) * total) for f, q in zip(forms, p, strict=True)], 1) @ weigh
    own, as_many = at(parameters, shares), np.abs(x.sum(1) / total - 1) < SAME_TOTAL
    start, arm = int(own.argmin()), int(np.where(as_many | ~as_many.any(), own, np.inf).argmin())
    found = _in_hull(parameters, at, shares, start) if bounds is None else _in_box(parameters, at, shares, np.asarray(bounds, np.float64), start)
    predicted, best = float(at(parameters, found)[0]), float(own[arm])
    gains = []
    for rows in cases(key, draws, np.arange(len(x)) if groups is None else groups):
        if len(np.unique(x[rows].round(12), axis=0)) < x.shape[1] + 2:
            continue
        again = [fitted(f, x[rows], losses[rows, i], q) for i, (f, q) in enumerate(zip(forms, parameters, strict=True))]
        gains.append(float((at(again, shares[arm]) - at(again, found))[0]))
    gain = estimate(best - predicted, np.array(gains))
    chance = float((np.array(gains) > 0).mean()) if len(gains) >= 20 and not np.allclose(found, shares[arm], atol=1e-3) else float("nan")
    return Proposal(found, predicted, best, arm, gain, chance, inside_hull(shares, found), bool(as_many.any()))


def _in_hull(parameters: Any, at: Any, shares: Floats, arm: int) -> Floats:
    """The least over mixtures of arms, by exponentiated gradient (Kivinen and Warmuth 1997) from the middle and from the best arm: a simplex of
    hundreds of arms is no work for it, and every step stays inside."""
    best = shares[arm]
    for begin in (np.full(len(shares), 1 / len(shares)), np.where(np.arange(len(shares)) == arm, 0.9, 0.1 / max(len(shares) - 1, 1))):
        lam = begin / begin.sum()
        for step in range(STEPS):
            slope = shares @ _gradient(parameters, at, lam @ shares)
            slope -= slope.min()
            if slope.max() < 1e-9 or lam @ slope < 1e-9:
                break
            lam = lam * np.exp(-slope / slope.max() * (2.0 / np.sqrt(1 + step / 20)))
            lam /= lam.sum()
            if at(parameters, lam @ shares)[0] < at(parameters, best)[0]:
                best = lam @ shares
    return np.asarray(best)


def _gradient(parameters: Any, at: Any, r: Floats) -> Floats:
    """Central differences: sources are few, and one call takes them all."""
    h = 1e-5
    step = h * np.eye(len(r))
    low = np.maximum(r - step, 0)
    return np.asarray((at(parameters, r + step) - at(parameters, low)) / (r + step - low).sum(1))


def _in_box(parameters: Any, at: Any, shares: Floats, bounds: Floats, arm: int) -> Floats:
    """The least over shares within bounds that sum to 1, by sequential quadratic programming from several arms and the middle."""
    from scipy.optimize import minimize

    if bounds.shape != (shares.shape[1], 2) or (bounds[:, 0] > bounds[:, 1]).any() or not bounds[:, 0].sum() <= 1 <= bounds[:, 1].sum():
        raise ValueError(f"bounds hold no mixture: the lowest shares add up to {bounds[:, 0].sum():g}, the highest to {bounds[:, 1].sum():g}")
    starts = [shares[arm], shares.mean(0), bounds.mean(1) / bounds.mean(1).sum()]
    found = []
    for start in starts:
        begin = np.clip(start, bounds[:, 0], bounds[:, 1])
        result = minimize(
            lambda r: float(at(parameters, np.maximum(r, 0))[0]), begin, jac=lambda r: _gradient(parameters, at, np.maximum(r, 0)), method="SLSQP",
            bounds=list(map(tuple, bounds)), constraints=[{"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones_like(r)}],
            options={"maxiter": 500, "ftol": 1e-10},
        )  # fmt: skip
        r = np.clip(result.x, bounds[:, 0], bounds[:, 1])
        if abs(r.sum() - 1) < 1e-6:
            found.append(r)
    assert found, "the sum of bounds was checked"
    return np.asarray(min(found, key=lambda r: float(at(parameters, r)[0])))


def inside_hull(shares: Floats, r: Floats, slack: float = 1e-6) -> bool:
    """Whether r is a mixture of the rows of shares, to within `slack` of each share."""
    from scipy.optimize import linprog

    both = np.concatenate([shares.T, -shares.T])
    result = linprog(np.zeros(len(shares)), both, np.concatenate([r + slack, slack - r]), np.ones((1, len(shares))), [1.0], bounds=(0, None))
    return bool(result.success)
