"""What can be said from a few seeds and a thousand questions: tests, corrections, and what a design can show before it is run.

Rows are seeds, columns are items (questions, images, documents, trajectories); all arms meet the same items, so differences are paired by item
and by seed. Two spreads matter and are kept apart: the *item* error (would other items of this kind give another figure?) and the *seed* spread
(would another start give another figure?). Resampling is in `resampling.py`; here is what needs none. Nothing here knows of arms or files.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from trainer.report.resampling import Floats, Scores, contrast, resample

__all__ = ["EXACT", "POWER", "Difference", "Floats", "difference", "holm", "interval", "paired_sd", "sign_flip", "smallest_difference", "spread"]
POWER = 1.96 + 0.8416  # two-sided 5 %, power 80 %: the smallest true difference that would usually be found, in standard errors
EXACT = 16  # sign flips are enumerated up to so many seeds


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

    @property
    def found(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


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
    """The 95 % interval of the mean of d [seeds, questions]: seeds and questions resampled (see `resampling`)."""
    scores = Scores(d, np.ones(d.shape[1]))
    return contrast(resample([scores], key=key), [1.0]).interval()


def spread(values: list[float]) -> float:
    """Largest minus smallest: the plainest statement about two or three seeds."""
    return max(values) - min(values) if values else float("nan")


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics 6, 1979): any of them ≤ 5 % keeps the chance of one false finding
    among all below 5 %, whatever their dependence."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        out[i] = running
    return out


def sign_flip(seeds: list[float]) -> float | None:
    """Exact two-sided p of paired seed differences: the share of all 2^S choices of signs whose sum is as far from 0 as the one seen.

    Assumes only that a seed's difference is as likely to have either sign if arms are equal (items held fixed). Its smallest value is 2/2^S:
    with 6 seeds 1/32, with 4 it can never reach 5 %. None for one seed, or more than 16."""
    if not 2 <= len(seeds) <= EXACT:
        return None
    d = np.asarray(seeds, np.float64)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
    sums = np.abs(signs @ d)
    return float((sums >= abs(d.sum()) * (1 - 1e-9) - 1e-15).mean())


def smallest_difference(seeds: int, items: int, seed_sd: float, item_sd: float, tests: int = 1, power: float = 0.8) -> float:
    """The smallest true difference of two arms that a paired design finds with 80 % power at two-sided 5 %, before it is run.

        SE² = seed_sd² / seeds + item_sd² / items,        answer = (t(1 − .05 / 2·tests; ν) + t(power; ν)) · SE

    seed_sd: assumed sd between paired seeds of the arms' difference of means; item_sd: sd over items of their difference, seeds averaged (see
    `paired_sd`). ν are Satterthwaite's degrees of freedom of SE², seeds − 1 and items − 1 of its parts: few seeds cost twice, in SE and in t. One
    seed shows nothing of seed spread: it is then taken as known to be `seed_sd` (normal quantiles). `items=0`: a metric without items, seeds alone.
    `tests`: how many arms are compared at once; Holm's hardest step. In the unit of the sds."""
    from scipy.stats import norm, t

    if seeds < 1 or items < 0 or min(seed_sd, item_sd) < 0 or tests < 1:
        raise ValueError(f"a design has seeds ≥ 1, items ≥ 0, sds ≥ 0 and tests ≥ 1, not {(seeds, items, seed_sd, item_sd, tests)}")
    of_seeds = seed_sd**2 / seeds
    of_items = item_sd**2 / items if items else 0.0
    error2 = of_seeds + of_items
    if error2 == 0:
        return 0.0
    loss = (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0) + (of_items**2 / (items - 1) if items > 1 else 0.0)
    tail = 1 - 0.025 / tests
    law = t(error2**2 / loss) if loss > 0 else norm()
    return float((law.ppf(tail) + law.ppf(power)) * math.sqrt(error2))


def paired_sd(sd: float, correlation: float) -> float:
    """The sd of the difference of two equally spread scores with that correlation over items (or seeds): sd · √(2 (1 − ρ)). For answers that are
    right or wrong, sd = √(p (1 − p))."""
    return sd * math.sqrt(2 * (1 - correlation))
