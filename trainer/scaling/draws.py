"""Resamples and what is read off them: the same numbers for the same question, on every machine.

An interval is what refits to resampled runs say, never the curvature of one fit: laws bend, and five budgets are few. Resamples come from Philox,
keyed by the question, so that neither order nor worker count shows in a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw

Floats = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % interval and its standard error (NaN where nothing could be resampled; inf where there is no bound)."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    error: float = float("nan")

    def holds(self, x: float) -> bool:
        """Whether the interval holds x."""
        return self.low <= x <= self.high

    def __str__(self) -> str:
        said = f"{self.value:.4g}" if self.value < np.inf else "not told"
        if np.isnan(self.low):
            return said
        return f"{said} ({self.low:.4g} … {self.high:.4g})" if self.high < np.inf else f"{said} ({self.low:.4g} …, no bound)"


def generator(key: int, *what: int | str) -> np.random.Generator:
    """Random numbers that belong to one question."""
    return np.random.Generator(np.random.Philox(key=draw(key, 0, "scaling", *what)))


def cases(key: int, draws: int, groups: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Row numbers of `draws` resamples, whole groups at a time: runs of one arm with several seeds are no independent cases."""
    labels, inverse = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(inverse == i) for i in range(len(labels))]
    random = generator(key, "cases", draws, len(labels))
    return [np.concatenate([members[i] for i in random.integers(0, len(labels), len(labels))]) for _ in range(draws)]


def estimate(value: float, resampled: Floats) -> Estimate:
    """A value with the percentile interval of its resamples, widened to hold the value where they all lie on one side of it. Those that are not
    numbers (fits that failed) are left out."""
    kept = resampled[np.isfinite(resampled)]
    if len(kept) < 20:
        return Estimate(value)
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), float(kept.std(ddof=1)))
