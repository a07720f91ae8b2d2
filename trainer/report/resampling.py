"""The hierarchical bootstrap over seeds × items, corrected for few seeds: intervals, p values and probabilities of orders from the same draws.

    Scores an arm: values [seeds, items], weights [items]   ──resample──▶   Draws   ──contrast──▶   a − b with interval and p

Seeds and items are crossed: every seed meets the same items. A draw takes seeds with replacement and items with replacement (the same for all
arms and seeds, so everything stays paired), and adds the two departures from the mean. Three corrections, because the plain procedure is wrong
where it is most used, with few seeds (coverage of both, measured: docs/report.md):
- each departure is multiplied by √(n/χ²), χ² drawn with n − 1 degrees of freedom, n the seeds (or items): resampling n things shows (n − 1)/n of
  their variance, and that variance is itself known no better than Student's t says. With two seeds that is an honest and very wide interval;
- what seeds and items do only together (interaction) would be counted among seeds and again among items. It is left with the seeds, the
  fewer; the items' departures shrink by its share of theirs (an analysis of variance);
- items of one record (the questions on one image) are one item: they are drawn together.

Where nothing that is drawn varies (one seed, or seeds that differ equally, and no items) there is nothing to draw from: such draws are NaN, not
copies of the point, and so is a draw of a number that does not exist (the logarithm of a drawn score of 0). NaN is evidence of nothing.

Beyond 1,000 items they are dealt, in order of their names, into 1,000 groups drawn as wholes: as good, and memory is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw

Floats = NDArray[np.float64]
DRAWS = 9999  # the smallest two-sided p that can be reached is 2 / 10,000
GROUPS = 1000
SAME = 1e-12  # of scores: seeds' differences that are closer are equal but for rounding
_PART = re.compile(r"^(.+)[/#](\d+)$")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One arm on one metric: a seed's score is the mean of its row of `values` [seeds, items], weighted by `weights` [items]. `names`: the items'
    names, for which belong together. A metric without items has one column, the seeds' own scores."""

    values: Floats
    weights: Floats
    names: tuple[str, ...] = ()

    @property
    def means(self) -> Floats:
        """Each seed's weighted mean [seeds]."""
        return np.asarray(self.values @ self.weights / self.weights.sum(), np.float64)

    def sums(self) -> tuple[Floats, Floats]:
        """(weighted sums [seeds, groups], weights [groups]): what is drawn as a whole."""
        places = groups(self.names, self.values.shape[1])
        weights = np.bincount(places, self.weights).astype(np.float64)
        return np.stack([np.bincount(places, row * self.weights) for row in self.values]), weights


def groups(names: Sequence[str], n: int) -> NDArray[np.int64]:
    """Which group each of n items is in: `<record>/3` and `<record>#3` go with their record, unless that leaves too few; at most 1,000."""
    places = np.arange(n)
    if names:
        records = [m[1] if (m := _PART.match(name)) else name for name in names]
        number = {r: i for i, r in enumerate(dict.fromkeys(records))}
        if len(number) * 20 >= n:
            places = np.array([number[r] for r in records])
    return np.unique(places % GROUPS, return_inverse=True)[1] if n else places


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Draws of several arms together: `point` [arms], departures of each draw [arms, draws] over seeds and over items, and what an analysis of
    variance needs: each item's influence [arms, seeds, groups] on its seed's score."""

    point: Floats
    seeds: Floats
    items: Floats
    influence: Floats
    by_seed: Floats  # [arms, seeds], the scores themselves

    def varies(self, coefficients: Sequence[float]) -> bool:
        """Whether anything is known of how Σ coefficient · arm varies: over items, or over seeds."""
        c = np.asarray(coefficients, np.float64)
        return self.influence.shape[2] > 1 or bool(np.ptp(c @ self.by_seed) > SAME * np.max(np.abs(c) @ np.abs(self.by_seed)))

    def joint(self) -> Floats:
        """[arms, draws]: scores of all arms in each draw, for orders and curves. Items shrink by one factor, that of the arms' differences."""
        d = self.influence - self.influence.mean(axis=0, keepdims=True)
        d = self.influence if len(d) == 1 else d
        return self.point[:, None] + self.seeds + self.items * np.sqrt(_consistent(d))


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """One number and its draws. A draw is NaN where nothing is known of it, and infinite where it is beyond any number."""

    point: float
    draws: Floats

    @property
    def known(self) -> bool:
        """Whether every draw says something: only then is there an interval."""
        return not np.isnan(self.draws).any()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval; NaN unless all draws are known."""
        ends = [(1 - level) / 2, (1 + level) / 2]
        with np.errstate(invalid="ignore"):
            low, high = np.quantile(self.draws, ends)
        if self.known and not np.isfinite([low, high]).all():  # nothing lies between a number and what is beyond any
            low, high = np.quantile(self.draws, ends, method="inverted_cdf")
        return float(low), float(high)

    def beyond(self, value: float, above: bool) -> float:
        """One-sided p of the hypothesis that the truth lies at or beyond `value`: (1 + draws there) / (1 + draws). A draw that is not known
        counts as there."""
        elsewhere = self.draws < value if above else self.draws > value
        return float((1 + len(self.draws) - elsewhere.sum()) / (1 + len(self.draws)))

    def p(self) -> float:
        """Two-sided p of no difference: twice the smaller share of draws at or beyond 0, plus one: 2 (1 + min) / (1 + draws). The 95 % interval
        leaves out 0 just when p < 5 %. Never below 2 / (1 + draws)."""
        if self.point == 0 and not self.draws.any():
            return 1.0
        return min(1.0, 2 * min(self.beyond(0, True), self.beyond(0, False)))


def resample(arms: Sequence[Scores], transform: Callable[[Floats], Floats] | None = None, key: int = 0) -> Draws:
    """Draw seeds and items for arms that share both. `transform` (exp for perplexity from nats, log for ratios) is applied to a seed's score
    before seeds are averaged."""
    f = transform or (lambda x: x)
    seeds = arms[0].values.shape[0]
    assert all(a.values.shape == arms[0].values.shape for a in arms), "arms share seeds and items"
    sums, weights = zip(*(a.sums() for a in arms), strict=True)
    n = sums[0].shape[1]
    by_seed = np.stack([f(s.sum(axis=1) / w.sum()) for s, w in zip(sums, weights, strict=True)])  # [arms, seeds]
    point = by_seed.mean(axis=1)
    seed_counts, seed_width = resamples(key, "seeds", seeds)
    of_seeds = ((by_seed - point[:, None]) @ seed_counts.T.astype(np.float64)) * seed_width
    if n == 1:
        return Draws(point, of_seeds, np.zeros_like(of_seeds), np.zeros((len(arms), seeds, 1)), by_seed)
    counts, width = resamples(key, "items", n)
    of_items, influence = np.empty_like(of_seeds), np.empty((len(arms), seeds, n))
    for k, (s, w) in enumerate(zip(sums, weights, strict=True)):
        score = s.sum(axis=1) / w.sum()
        centred = (s - score[:, None] * w).astype(np.float32)  # departures, so that single precision costs nothing
        moved = score + (counts @ centred.T).astype(np.float64) / (counts @ w.astype(np.float32))[:, None]
        of_items[k] = (f(moved).mean(axis=1) - point[k]) * width
        step = 1e-6 * np.maximum(np.abs(score), 1e-6)
        slope = (f(score + step) - f(score - step)) / (2 * step)
        influence[k] = (s - score[:, None] * w) * (n / w.sum()) * slope[:, None]
    return Draws(point, of_seeds, of_items, influence, by_seed)


def contrast(draws: Draws, coefficients: Sequence[float], transform: Callable[[Floats], Floats] | None = None) -> Contrast:
    """Σ coefficient · arm, e.g. [1, −1]; `transform` (monotone, e.g. expm1 of a log ratio) is applied to the result."""
    c, f = np.asarray(coefficients, np.float64), transform or (lambda x: x)
    shrink = np.sqrt(_consistent(np.tensordot(c, draws.influence, 1)[None]))
    point = c @ draws.point
    with np.errstate(over="ignore", invalid="ignore"):  # of two seeds that differ a thousandfold, the widest draws are beyond any number
        drawn = point + c @ draws.seeds + shrink * (c @ draws.items)
        known = np.isfinite(drawn) & draws.varies(coefficients)
        return Contrast(float(f(point)), np.where(known, f(drawn), np.nan))


def _consistent(influence: Floats) -> float:
    """The share of the variance of item means [arms, seeds, items] that is the items' own: 1 − E/B, B = var(item means)/n, E = MS(residual)/(S n),
    pooled over arms; 1 for one seed, which cannot tell."""
    _, seeds, n = influence.shape
    if seeds == 1 or n == 1:
        return 1.0
    by_item = influence.mean(axis=1, keepdims=True)
    between = by_item.var(axis=2, ddof=1).sum() / n
    residual = influence - by_item - influence.mean(axis=2, keepdims=True) + influence.mean(axis=(1, 2), keepdims=True)
    together = (residual**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)
    return float(np.clip(1 - together / between, 0, 1)) if between > 0 else 0.0


def resamples(key: int, what: str, n: int) -> tuple[NDArray[np.float32], Floats]:
    """(how often each of n things is taken, as shares [draws, n]; how much wider each draw's departure is)."""
    taken, width = _taken(key, what, n)
    return taken.astype(np.float32) / np.float32(n), width


@lru_cache(maxsize=16)  # 10 MB each at most
def _taken(key: int, what: str, n: int) -> tuple[NDArray[np.uint8], Floats]:
    # Made once a size: all arms meet the same draws, and a page needs some hundred intervals.
    random = np.random.Generator(np.random.Philox(key=draw(key, 0, "bootstrap", what, n)))
    picks = random.integers(0, n, (DRAWS, n)) + np.arange(DRAWS)[:, None] * n
    taken = np.bincount(picks.ravel(), minlength=DRAWS * n).reshape(DRAWS, n).astype(np.uint8)  # one thing 256 times in 1,000 does not happen
    width = np.sqrt(n / random.chisquare(n - 1, DRAWS)) if n > 1 else np.zeros(DRAWS)
    return taken, width
