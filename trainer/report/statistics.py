"""What can be said from a few seeds and a thousand questions: errors, paired differences, intervals.

Rows are seeds, columns are questions; all arms answer the same questions, so differences are paired by question and seed. Two spreads matter
and are kept apart: the *question* error (would other questions of this kind give another figure?) and the *seed* spread (would another start
give another figure?). The interval resamples both, seeds first, then questions (a hierarchical bootstrap); with two or three seeds its seed
part is itself a guess, which the report says. Nothing here knows of arms or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw

Floats = NDArray[np.float64]
DRAWS = 2000
POWER = 1.96 + 0.8416  # two-sided 5 %, power 80 %: the smallest true difference that would usually be found, in standard errors


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its question error, its 95 % interval (seeds × questions) and each seed's own value. Shares, not percent."""

    mean: float
    error: float
    low: float
    high: float
    seeds: tuple[float, ...]
    n: int

    @property
    def errors(self) -> float:
        """How many standard errors (of questions) the mean is away from nothing."""
        return self.mean / self.error if self.error > 0 else (0.0 if self.mean == 0 else float("inf") * np.sign(self.mean))


def difference(a: Floats, b: Floats | float, key: int = 0) -> Difference:
    """a − b for a, b of shape [seeds, questions] (b may have one row, or be one number), paired by seed and by question."""
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    assert d.ndim == 2 and d.size, d.shape
    n = d.shape[1]
    by_question = d.mean(axis=0)
    error = float(by_question.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    low, high = interval(d, key)
    return Difference(float(d.mean()), error, low, high, tuple(float(x) for x in d.mean(axis=1)), n)


def interval(d: Floats, key: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of d [seeds, questions], seeds resampled first, then questions (the same for all seeds)."""
    weights, counts = _resamples(key, *d.shape)
    means = ((weights @ d) * counts).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=32)
def _resamples(key: int, seeds: int, n: int) -> tuple[Floats, Floats]:
    # Drawn once per shape: all arms meet the same resamples, and a page needs some hundred intervals.
    random = np.random.Generator(np.random.Philox(key=draw(key, 0, "bootstrap", seeds, n)))
    weights = np.zeros((DRAWS, seeds))
    np.add.at(weights, (np.arange(DRAWS)[:, None], random.integers(0, seeds, (DRAWS, seeds))), 1.0 / seeds)
    picks = random.integers(0, n, (DRAWS, n)) + np.arange(DRAWS)[:, None] * n
    counts = np.bincount(picks.ravel(), minlength=DRAWS * n).reshape(DRAWS, n) / n
    return weights, counts


def spread(values: list[float]) -> float:
    """Largest minus smallest: the plainest statement about two or three seeds."""
    return max(values) - min(values) if values else float("nan")


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        out[i] = running
    return out


def smallest_difference(seeds: int, items: int, seed_sd: float, item_sd: float) -> float:
    """TEMPORARY until merged."""
    return POWER * (seed_sd**2 / seeds + item_sd**2 / items) ** 0.5
