"""A law of the loss, L(N, D) = E + A / N^alpha + B / D^beta, by Huber's loss on its logarithm (Hoffmann et al. 2022, arXiv 2203.15556, Approach 3).

With `other` tokens beside a modality's own it is L(N, D, O) = E + A / N^alpha + B / (D + worth x O)^beta: a token of the other modality counts as
`worth` own ones, the effective data of Hernandez et al. 2021 (arXiv 2102.01293). One more parameter, finite without own or without other
tokens, and `worth` is the exchange rate itself; below 0 the other harms. It is identified only by runs whose O / D differs: where all runs share
one mixture, `worth` and B stand for one another, and such a fit is refused, as is one whose worth resampled runs leave anywhere.

An E below a thousandth of the lowest loss is not told from 0 (the unit of Huber's loss), and is 0. Where an exponent, or an end of its interval, lies
at the edge of what is searched, no number stands there: it has no bound.

The minimum is sought from a grid of exponents; E, A and B, in which the law is linear, are solved for at each (variable projection, Golub and
Pereyra 1973): 144 solves cover what Hoffmann's 4,500 starts of L-BFGS do, and end in the same minimum. N, D in any unit: logarithms are centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.scaling.draws import Estimate, Floats, cases, estimate

DELTA = 1e-3  # Hoffmann et al.'s
EXPONENTS = np.geomspace(0.05, 1.8, 12)
EDGE = 5.0  # exponents are sought up to here; L(N, D) of real runs has .1 to 1
MOST_WORTH = 100.0
RATIOS = 1.5  # the largest O / D over the smallest that an exchange rate needs: an arm's prefix of one shared plan differs by a third
WORTHS = (0.0, 0.1, 0.5, 1.0)
NAMES = ("E", "A", "alpha", "B", "beta", "worth", "a", "b")


@dataclass(frozen=True, slots=True)
class Law:
    """The fitted law. objective: the sum of Huber losses. intervals: by NAMES, once resampled; infinite where an exponent has no bound."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    worth: float = 0.0
    objective: float = float("nan")
    runs: int = 0
    intervals: dict[str, Estimate] | None = None

    @property
    def a(self) -> float:
        """N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """D_opt ~ C^b; a + b = 1."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, n: Any, d: Any, other: Any = 0.0) -> Any:
        """Predicted loss."""
        return self.E + self.A / np.asarray(n, np.float64) ** self.alpha + self.B / (np.asarray(d, np.float64) + self.worth * other) ** self.beta

    def optimum(self, flops: float, per: float = 6.0) -> tuple[float, float]:
        """(N, D) of least loss at C = per x N x D."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return ratio * (flops / per) ** self.a, (flops / per) ** self.b / ratio


def fit(n: Any, d: Any, loss: Any, other: Any = None, delta: float = DELTA) -> Law:
    """The law that fits runs best. n, d, loss (and other): one number a run, > 0 (other >= 0). ValueError: too few runs or sizes, or a `worth` that
    cannot be told."""
    data = _Data.of(n, d, loss, other, delta)
    return data.law(data.best(data.starts()))


def fit_with_intervals(
    n: Any, d: Any, loss: Any, other: Any = None, delta: float = DELTA, draws: int = 400, groups: Sequence[int] | None = None, key: int = 0
) -> Law:
    """The same with 95 % intervals, from `draws` refits to resampled runs (whole `groups` at a time; null: each run its own). ValueError also where
    the interval of `worth` reaches the edge of what is searched."""
    data = _Data.of(n, d, loss, other, delta)
    best = data.best(data.starts())
    law = data.law(best)
    found: list[list[float]] = []
    for rows in cases(key, draws, range(data.size) if groups is None else groups):
        some = data.rows(rows)
        resampled = some.law(some.best([best]))  # from the whole's minimum: a grid for each draw would cost six times as much
        found.append([getattr(resampled, name) for name in NAMES])
    table = np.array(found)
    intervals = {name: estimate(getattr(law, name), table[:, i]) for i, name in enumerate(NAMES)}
    intervals |= {name: _without_bound(intervals[name]) for name in ("alpha", "beta")}
    worth = intervals["worth"]
    if other is not None and (max(worth.value, worth.high) > 0.99 * MOST_WORTH or min(worth.value, worth.low) < 0.99 * data.harm):
        raise ValueError("resampled runs leave the worth of other tokens open: vary the mixture more, or add runs")
    return replace(law, intervals=intervals)


def _without_bound(e: Estimate) -> Estimate:
    """The exponent with inf for what lies at the edge of the search."""
    open_ = lambda x: float("inf") if x > 0.99 * EDGE else x
    return Estimate(open_(e.value), open_(e.low), open_(e.high), float("nan") if e.high > 0.99 * EDGE else e.error)


@dataclass(frozen=True, slots=True)
class _Data:
    """Runs in logarithms, and the fit over parameters p = (log A, alpha, log B, beta, log E[, worth])."""

    log_n: Floats
    d: Floats
    log_loss: Floats
    other: Floats | None
    shift_n: float
    shift_d: float
    delta: float

    @classmethod
    def of(cls, n: Any, d: Any, loss: Any, other: Any, delta: float) -> _Data:
        n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
        if not (n.shape == d.shape == loss.shape) or n.ndim != 1:
            raise ValueError(f"one size, one number of tokens and one loss a run; found {n.shape}, {d.shape}, {loss.shape}")
        if not all(np.isfinite(x).all() and (x > 0).all() for x in (n, d, loss)):
            raise ValueError("sizes, tokens and losses must be numbers above 0")
        least = 6 if other is None else 7
        if len(n) < least or len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
            raise ValueError(f"{len(n)} runs of {len(np.unique(n))} sizes: the law needs at least {least} runs, 3 sizes and 3 numbers of tokens")
        scale = float(np.exp(np.log(d).mean()))
        if other is not None:
            other = np.asarray(other, np.float64) / scale
            ratio = other * scale / d
            if ratio.max() <= RATIOS * ratio.min() or not ratio.max():
                raise ValueError("runs hardly differ in their ratio of other to own tokens, so their worth cannot be told: vary the mixture")
        shift = float(np.log(n).mean())
        return cls(np.log(n) - shift, d / scale, np.log(loss), other, shift, float(np.log(scale)), delta)

    @property
    def size(self) -> int:
        return len(self.log_n)

    def rows(self, rows: Any) -> _Data:
        """Some runs, in the same units."""
        other = None if self.other is None else self.other[rows]
        return replace(self, log_n=self.log_n[rows], d=self.d[rows], log_loss=self.log_loss[rows], other=other)

    def log_d(self, worth: float) -> Floats:
        return np.log(self.d if self.other is None else self.d + worth * self.other)

    @property
    def harm(self) -> float:
        """The lowest worth at which every run still has data."""
        assert self.other is not None
        some = self.other > 0
        return -0.9 * float((self.d[some] / self.other[some]).min())

    def starts(self, count: int = 6) -> list[Floats]:
        """The best of the grid: exponents given, E, A, B by least squares of relative errors, none below 0."""
        from scipy.optimize import nnls

        weight = np.exp(-self.log_loss)
        found: list[tuple[float, int, Floats]] = []
        for worth in (0.0,) if self.other is None else WORTHS:
            log_d = self.log_d(worth)
            for alpha in EXPONENTS:
                for beta in EXPONENTS:
                    columns = np.stack([np.ones(self.size), np.exp(-alpha * self.log_n), np.exp(-beta * log_d)], axis=1) * weight[:, None]
                    (e, a, b), error = nnls(columns, np.ones(self.size))
                    tiny = 1e-3 / weight.max()
                    p = [np.log(max(a, tiny)), alpha, np.log(max(b, tiny)), beta, np.log(max(e, tiny))]
                    found.append((error, len(found), np.array(p if self.other is None else [*p, worth])))
        return [p for _, _, p in sorted(found, key=lambda f: f[:2])[:count]]

    def best(self, starts: list[Floats]) -> Any:
        """The lowest minimum that any start leads to."""
        from scipy.optimize import least_squares

        low, high = [-np.inf, 1e-3, -np.inf, 1e-3, -np.inf], [np.inf, EDGE, np.inf, EDGE, np.inf]
        if self.other is not None:
            low, high = [*low, self.harm], [*high, MOST_WORTH]
        results = []
        for start in starts:
            if isinstance(start, np.ndarray):
                begin = np.clip(start, np.array(low) + 1e-9, np.array(high) - 1e-9)
                results.append(least_squares(self.residual, begin, self.slope, (low, high), loss="huber", f_scale=self.delta, xtol=1e-10, ftol=1e-10))
        return min(results, key=lambda r: r.cost).x

    def terms(self, p: Floats) -> tuple[Floats, Floats]:
        """The logarithms of the three terms [3, runs], and of the data."""
        log_d = self.log_d(p[5] if len(p) > 5 else 0.0)
        return np.stack([p[0] - p[1] * self.log_n, p[2] - p[3] * log_d, np.full(self.size, p[4])]), log_d

    def residual(self, p: Floats) -> Floats:
        terms, _ = self.terms(p)
        return np.logaddexp.reduce(terms, axis=0) - self.log_loss

    def slope(self, p: Floats) -> Floats:
        """Its derivatives [runs, parameters]: each term's share of the loss times the term's own."""
        terms, log_d = self.terms(p)
        share = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        columns = [share[0], -share[0] * self.log_n, share[1], -share[1] * log_d, share[2]]
        if len(p) > 5:
            assert self.other is not None
            columns.append(-share[1] * p[3] * self.other * np.exp(-log_d))
        return np.stack(columns, axis=1)

    def law(self, p: Floats) -> Law:
        """In the units of the runs."""
        r = np.abs(self.residual(p))
        objective = float(np.where(r <= self.delta, 0.5 * r**2, self.delta * (r - 0.5 * self.delta)).sum())
        big_a, big_b = np.exp(p[0] + p[1] * self.shift_n), np.exp(p[2] + p[3] * self.shift_d)
        worth = float(p[5]) if len(p) > 5 else 0.0
        floor = float(np.exp(p[4])) if p[4] > np.log(self.delta) + self.log_loss.min() else 0.0
        return Law(floor, float(big_a), float(p[1]), float(big_b), float(p[3]), worth, objective, self.size)
