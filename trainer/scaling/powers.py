"""Power laws of the best sizes, N_opt = k C^a and D_opt = k' C^b, and what follows of data at other sizes.

    optima by budget   ──▶   a, b with intervals   ──▶   data ratio of two modalities as the model grows, dense against sparse

Intervals of a sweep of one's own come from its runs: losses about each budget's parabola are drawn again, all optima refitted, the law fitted to
each draw; where optima scatter about the line by more than that, the interval is widened to what they do. Published optima have no runs: theirs come
from residuals about the line, as a bootstrap of the t statistic, which a handful of budgets needs (Efron and Tibshirani 1993, chapter 12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.scaling.draws import LEVEL, Estimate, Floats, generator
from trainer.scaling.parabola import Optimum, optimum, resampled

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Power:
    """y = coefficient x^exponent, over `points` points from `low` to `high`."""

    coefficient: float
    exponent: Estimate
    points: int
    low: float
    high: float

    def at(self, x: Any) -> Any:
        """The law at x."""
        return self.coefficient * np.asarray(x, np.float64) ** self.exponent.value


def line(x: Any, y: Any) -> tuple[float, float, float, Floats]:
    """log y = intercept + slope log x by least squares: (intercept, slope, the slope's standard error, residuals)."""
    u, v = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    mean = u.mean()
    width = float(((u - mean) ** 2).sum())
    slope = float(((u - mean) * v).sum() / width)
    rest = v - v.mean() - slope * (u - mean)
    error = float(np.sqrt((rest**2).sum() / max(len(u) - 2, 1) / width)) if len(u) > 2 else float("nan")
    return float(v.mean() - slope * mean), slope, error, rest


def power(x: Any, y: Any, key: int = 0, draws: int = DRAWS) -> Power:
    """The power law through points, its exponent with the interval that residuals give. ValueError: fewer than two different x."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(np.unique(x)) < 2 or not ((x > 0).all() and (y > 0).all()):
        raise ValueError(f"a power law needs at least two different budgets with a value above 0; found {len(np.unique(x))}")
    intercept, slope, error, rest = line(x, y)
    exponent = Estimate(slope)
    if len(x) > 3 and error > 1e-12:
        u = np.log(x) - np.log(x).mean()
        leverage = 1 / len(x) + u**2 / (u**2).sum()
        scaled = rest / np.sqrt(1 - leverage)
        scaled -= scaled.mean()
        picks = generator(key, "line", len(x), draws).integers(0, len(x), (draws, len(x)))
        again = scaled[picks]
        slopes = (again @ u) / (u**2).sum()
        left = again - again.mean(axis=1, keepdims=True) - slopes[:, None] * u
        errors = np.sqrt((left**2).sum(axis=1) / (len(x) - 2) / (u**2).sum())
        kept = errors > 1e-3 * error  # all residuals the same: no error to speak of
        low, high = np.quantile(slopes[kept] / errors[kept], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        exponent = Estimate(slope, slope - float(high) * error, slope - float(low) * error, error)
    elif error <= 1e-12:
        exponent = Estimate(slope, slope, slope, 0.0)
    return Power(float(np.exp(intercept)), exponent, len(x), float(x.min()), float(x.max()))


@dataclass(frozen=True, slots=True)
class Frontier:
    """What a sweep says of one modality (and one family): optima by budget, and the laws through those inside. missing: budget → why it has none.
    exponents: draws of (a, b) [draws, 2], for what is made of both."""

    optima: tuple[Optimum, ...]
    size: Power | None
    tokens: Power | None
    missing: dict[float, str]
    exponents: Floats


def frontier(runs: dict[float, tuple[Any, Any, Any]], key: int = 0, draws: int = 1000) -> Frontier:
    """budget → (n, d, loss), one number a run each. Budgets without a minimum inside are left out of the laws, and named."""
    optima, missing, draws_of = [], {}, []
    for i, budget in enumerate(sorted(runs)):
        n, d, loss = runs[budget]
        try:
            found = optimum(budget, n, d, loss)
        except ValueError as e:
            missing[budget] = str(e).partition(": ")[2] or str(e)
            continue
        optima.append(found)
        if found.reason is not None:
            missing[budget] = found.reason
        else:
            draws_of.append(resampled(found, n, d, loss, draws, key + i))
    inside = [o for o in optima if o.reason is None]
    if len(inside) < 2:
        return Frontier(tuple(optima), None, None, missing, np.zeros((0, 2)))
    budgets = np.array([o.budget for o in inside])
    exponents = _exponents(budgets, np.stack(draws_of), key)
    made = [_law(budgets, np.array([getattr(o, k) for o in inside]), exponents[:, i]) for i, k in enumerate(("n", "d"))]
    return Frontier(tuple(optima), made[0], made[1], missing, exponents)


def _exponents(budgets: Floats, drawn: Floats, key: int) -> Floats:
    """(a, b) of each draw [budgets, draws, 2]. Draws in which a budget lost its minimum fit the others, as the sweep itself would have."""
    kept = np.isfinite(drawn[:, :, :1]).astype(np.float64)
    count = kept.sum(0)
    u = np.log(budgets)[:, None, None]
    u = (u - (u * kept).sum(0) / np.maximum(count, 1)) * kept
    out = (u * np.nan_to_num(drawn)).sum(0) / np.maximum((u * u).sum(0), 1e-300)
    return np.where(count >= 2, out, np.nan)


def _law(budgets: Floats, values: Floats, exponents: Floats) -> Power:
    """The law through optima. Its interval is that of the draws, widened to what the optima themselves scatter about the line."""
    intercept, slope, error, _ = line(budgets, values)
    kept = exponents[np.isfinite(exponents)]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(kept) >= 20 else (float("nan"), float("nan"))
    drawn = float(kept.std(ddof=1)) if len(kept) >= 20 else float("nan")
    wider = max(1.0, error / drawn) if drawn > 0 and np.isfinite(error) else 1.0
    exponents[:] = slope + wider * (exponents - slope)  # what is made of two modalities' draws is as wide
    interval = Estimate(slope, slope - wider * (slope - float(low)), slope + wider * (float(high) - slope), wider * drawn)
    return Power(float(np.exp(intercept)), interval, len(budgets), float(budgets.min()), float(budgets.max()))


def growth(times: float, a_first: float, a_second: float, b_first: float | None = None, b_second: float | None = None) -> float:
    """By how much the compute-optimal data of the first modality grow over those of the second while the model grows `times`: since D ~ N^(b/a), it
    is times^(b1/a1 - b2/a2), which with a + b = 1 is times^(1/a1 - 1/a2). Growth, not the ratio itself."""
    first = (1 - a_first if b_first is None else b_first) / a_first
    second = (1 - a_second if b_second is None else b_second) / a_second
    return float(times ** (first - second))


def ratio(n: float, first: tuple[Power, Power], second: tuple[Power, Power]) -> float:
    """Compute-optimal D of the first modality over the second's at model size n, each from its own (N_opt, D_opt) laws."""
    found = []
    for size, tokens in (first, second):
        budget = (n / size.coefficient) ** (1 / size.exponent.value)
        found.append(float(tokens.at(budget)))
    return found[0] / found[1]


def contrast(first: Frontier, second: Frontier, of: Callable[[Floats, Floats], Floats]) -> Estimate | None:
    """A number made of two modalities' exponents (a, b), with the interval of both's draws, paired draw by draw; None where either has no law."""
    if first.size is None or second.size is None or first.tokens is None or second.tokens is None:
        return None
    point = [np.array([[f.size.exponent.value, f.tokens.exponent.value]]) for f in (first, second)]  # type: ignore[union-attr]
    value = float(of(*point)[0])
    with np.errstate(all="ignore"):
        drawn = of(first.exponents, second.exponents)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 20:
        return Estimate(value)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), float(drawn.std(ddof=1)))
