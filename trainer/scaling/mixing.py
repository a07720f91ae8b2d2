"""What a mixture does to each loss, from the arms that were trained: a law of loss over tokens by source, and the mixture to try next.

    x_j = an arm's tokens of source j over the arms' mean total                      (equal totals: x are shares)

    effective     L = E + exp(k - beta log sum_j w_j x_j)      a token of source j counts w_j: L(D) of scaling laws with effective data
    exponential   L = E + exp(k + sum_j t_j x_j)               Data Mixing Laws (Ye et al. 2024, arXiv 2403.16952)

Every loss (a domain, a source's held-out text, flow loss) has a law of its own; which form it takes is decided by cross-validation over arms.
Linear regression on shares ranks RegMix's published runs (arXiv 2407.01492) at Spearman .83 in the mean, these forms at .97 and .98
(docs/scaling.md): losses fall steeply at a source's first per cent and flatten after. A source's weight that the arms hardly show is drawn to the
middle by a faint ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainer.scaling.draws import Floats, generator

Form = Literal["effective", "exponential"]
FORMS: tuple[Form, ...] = ("effective", "exponential")
RIDGE = 1e-2  # of the residuals' unit, for each logarithm of a weight: what an arm or two of evidence outweighs
FAR = 12.0  # weights within e^12 of one another


@dataclass(frozen=True, slots=True)
class MixingLaw:
    """One loss as a function of the mixture. parameters: E, k, then for `effective` log beta and log w by source, for `exponential` t by source.
    error: cross-validated root mean square, in the loss's unit; null: that of predicting the mean; rank: cross-validated Spearman correlation."""

    form: Form
    parameters: Floats
    error: float
    null: float
    rank: float

    def at(self, x: Any) -> Floats:
        """The loss at mixtures x [..., sources]."""
        return loss_at(self.form, self.parameters, np.atleast_2d(np.asarray(x, np.float64)))

    @property
    def worth(self) -> Floats:
        """By source, what one more token changes next to the best source's: weights over the largest (effective), or t over the lowest t."""
        if self.form == "effective":
            return np.exp(self.parameters[3:] - self.parameters[3:].max())
        t = self.parameters[2:]
        return t / t.min() if t.min() < 0 else t


def fit(x: Any, loss: Any, form: Form | None = None, groups: Sequence[int] | None = None, key: int = 0, folds: int = 5) -> MixingLaw:
    """The law of one loss. x: [arms, sources] tokens over a common unit, loss: [arms]; rows of one group (seeds of an arm) stay together in
    cross-validation. ValueError: fewer different mixtures than sources + 2."""
    x, loss = _checked(x, loss)
    held = _folds(np.arange(len(x)) if groups is None else np.asarray(groups), folds, key)
    best: MixingLaw | None = None
    for name in FORMS if form is None else (form,):
        predicted = np.full(len(x), np.nan)
        mean = np.full(len(x), np.nan)
        for fold in range(held.max() + 1):
            own = held != fold
            predicted[~own] = loss_at(name, fitted(name, x[own], loss[own]), x[~own])
            mean[~own] = loss[own].mean()
        error = float(np.sqrt(((predicted - loss) ** 2).mean()))
        if best is None or error < best.error:
            best = MixingLaw(name, np.zeros(0), error, float(np.sqrt(((mean - loss) ** 2).mean())), spearman(predicted, loss))
    assert best is not None
    return MixingLaw(best.form, fitted(best.form, x, loss), best.error, best.null, best.rank)


def _checked(x: Any, loss: Any) -> tuple[Floats, Floats]:
    x, loss = np.asarray(x, np.float64), np.asarray(loss, np.float64)
    if x.ndim != 2 or loss.shape != x.shape[:1] or not (np.isfinite(x).all() and np.isfinite(loss).all()) or (x < 0).any() or (x.sum(1) <= 0).any():
        raise ValueError("mixtures are [arms, sources] of tokens >= 0, not all 0, with one loss each")
    different = len(np.unique(x.round(12), axis=0))
    if different < x.shape[1] + 2:
        raise ValueError(f"{different} different mixtures of {x.shape[1]} sources: a law of mixtures needs at least {x.shape[1] + 2}")
    return x, loss


def _folds(groups: Any, folds: int, key: int) -> Any:
    """The fold of each row: whole groups, shuffled, dealt out evenly."""
    labels, inverse = np.unique(groups, return_inverse=True)
    folds = min(folds, len(labels))
    order = generator(key, "folds", len(labels)).permutation(len(labels))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold[inverse]


def loss_at(form: Form, p: Floats, x: Floats) -> Floats:
    """The loss at mixtures x [rows, sources]."""
    return np.asarray(p[0] + np.exp(_exponent(form, p, x)))


def _exponent(form: Form, p: Floats, x: Floats) -> Floats:
    if form == "exponential":
        return np.asarray(p[1] + x @ p[2:])
    return np.asarray(p[1] - np.exp(p[2]) * np.log(x @ np.exp(p[3:]) + 1e-12))


def fitted(form: Form, x: Floats, loss: Floats, begin: Floats | None = None) -> Floats:
    """Parameters of least squares with a faint ridge, from a few starts or from `begin`. Losses are brought to unit spread first, so that the ridge
    means the same in any unit."""
    from scipy.optimize import least_squares

    spread = float(loss.std()) or 1.0
    floor, sources = float(loss.min()), x.shape[1]
    y = (loss - floor) / spread  # 0 to a few; E may lie below 0 here
    first = 3 if form == "effective" else 2

    def residual(p: Floats) -> Floats:
        w = p[first:]
        return np.concatenate([loss_at(form, p, x) - y, RIDGE * (w - w.mean()) if form == "effective" else RIDGE * w])

    def slope(p: Floats) -> Floats:
        value = np.exp(_exponent(form, p, x))
        out = np.zeros((len(x) + sources, len(p)))
        out[: len(x), 0], out[: len(x), 1] = 1, value
        if form == "exponential":
            out[: len(x), first:] = value[:, None] * x
            out[len(x) :, first:] = RIDGE * np.eye(sources)
            return out
        w, beta = np.exp(p[first:]), np.exp(p[2])
        effective = x @ w + 1e-12
        out[: len(x), 2] = -value * beta * np.log(effective)
        out[: len(x), first:] = -(value * beta / effective)[:, None] * x * w
        out[len(x) :, first:] = RIDGE * (np.eye(sources) - 1 / sources)
        return out

    high = np.r_[np.full(first, 20.0), np.full(sources, FAR)]
    low = -high
    if form == "effective":
        low[2], high[2] = np.log(0.02), np.log(4.0)
    starts = _starts(form, y, sources)
    if begin is not None:
        starts = [np.clip(np.r_[(begin[0] - floor) / spread, begin[1] - np.log(spread), begin[2:]], low + 1e-9, high - 1e-9)]
    results = [least_squares(residual, s, slope, (low, high), xtol=1e-8, ftol=1e-8, max_nfev=400) for s in starts]
    p = min(results, key=lambda r: r.cost).x.copy()
    p[0] = floor + spread * p[0]
    p[1] += np.log(spread)
    return np.asarray(p)


def _starts(form: Form, y: Floats, sources: int) -> list[Floats]:
    """E a little below the lowest loss, and no source before another."""
    height = np.log(max(float(np.median(y)), 1e-3) + 0.5)
    if form == "exponential":
        return [np.r_[-0.5, height, np.zeros(sources)]]
    return [np.r_[-0.5, height, np.log(beta), np.zeros(sources)] for beta in (0.1, 0.4)]


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one of them is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else float("nan")
