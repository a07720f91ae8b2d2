"""What can be said from a few seeds and a thousand questions: tests, corrections, and what a design can show before it is run.

Rows are seeds, columns are items (questions, images, documents, trajectories); all arms meet the same items, so differences are paired by item
and by seed. Two spreads matter and are kept apart: the *item* error (would other items of this kind give another figure?) and the *seed* spread
(would another start give another figure?). Resampling is in `resampling.py`; here is what stands on it or needs none. Nothing here knows of arms or
files.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw
from trainer.report.resampling import DRAWS, Floats, Scores, contrast, resample, resamples

Floats32 = NDArray[np.float32]
__all__ = ["EXACT", "Difference", "Floats", "difference", "holm", "interval", "paired_sd", "sign_flip", "smallest_difference", "spread"]
LEVEL = 0.05
SIMULATED = 500  # designs, their departures spread evenly over the normal law: the power of the answer is 0.80 ± 0.015 (sd over random numbers)
MANY = 64  # things whose resampled mean is as good as normal
EXACT = 16  # sign flips are enumerated up to so many seeds


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its question error, its 95 % interval (seeds × questions) and each seed's own value; NaN where there is none. Shares,
    not percent. `n` questions."""

    mean: float
    error: float
    low: float
    high: float
    seeds: tuple[float, ...]
    n: int

    @property
    def errors(self) -> float:
        """How many standard errors (of questions) the mean is away from nothing."""
        return self.mean / self.error if self.error != 0 else (0.0 if self.mean == 0 else float("inf") * np.sign(self.mean))

    @property
    def found(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(a: Scores, b: Scores) -> Difference:
    """a − b, paired by seed and by question; questions of one record are one, in the error as in the interval."""
    drawn = resample([a, b])
    influence = (drawn.influence[0] - drawn.influence[1]).mean(axis=0)
    n = len(influence)
    error = float(influence.std(ddof=1) / np.sqrt(n)) if n > 1 else math.nan
    by_seed = a.means - b.means
    low, high = contrast(drawn, [1, -1]).interval()
    return Difference(float(by_seed.mean()), error, low, high, tuple(float(x) for x in by_seed), a.values.shape[1])


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

    It is asked of the procedure itself, since that widens the seeds' part and the items' part each for itself, which no one t distribution does. An
    interval moves with its data: where the truth is δ its lower end lies δ above where it would lie were there nothing. So the answer is the 80th
    percentile of − lower end over 500 simulated designs with no difference (normal seeds and items), with the same draws as a report's.

    seed_sd: assumed sd between paired seeds of the arms' difference of means, what seeds and items do only together among it; item_sd: sd over items
    of their difference, seeds averaged (see `paired_sd`). `items` below 2: a metric without items, seeds alone. One seed shows nothing of seed
    spread: the answer is then over items alone, `seed_sd` is not in it, and it is no promise for another start; ∞ without items. `tests`: how
    many arms are compared at once; Holm's hardest step (∞ where its p is smaller than draws can show). In the unit of the sds."""
    if seeds < 1 or items < 0 or min(seed_sd, item_sd) < 0 or tests < 1:
        raise ValueError(f"a design has seeds ≥ 1, items ≥ 0, sds ≥ 0 and tests ≥ 1, not {(seeds, items, seed_sd, item_sd, tests)}")
    if seeds < 2 and items < 2:
        return math.inf
    return _smallest(seeds, max(items, 1), seed_sd if seeds > 1 else 0.0, item_sd if items > 1 else 0.0, tests, power)


@lru_cache(maxsize=256)
def _smallest(seeds: int, items: int, seed_sd: float, item_sd: float, tests: int, power: float) -> float:
    last = math.ceil(LEVEL / 2 * (DRAWS + 1) / tests) - 2  # so many draws may lie at or below 0, for Contrast.p() · tests to be below 5 %
    if not seed_sd and not item_sd:
        return 0.0
    if last < 0:
        return math.inf
    parts = [(np.float32(sd), *_simulated(what, n)) for what, n, sd in (("seeds", seeds, seed_sd), ("items", items, item_sd)) if sd]
    draws = np.add.reduce([sd * moved for sd, _, moved in parts])
    draws.partition(last, axis=1)
    low = np.add.reduce([sd * mean for sd, mean, _ in parts]) + draws[:, last]
    return float(np.quantile(-low, power))


@lru_cache(maxsize=4)  # 20 MB each
def _simulated(what: str, n: int) -> tuple[Floats32, Floats32]:
    """(means [simulated] of n standard normal things, departures [simulated, draws] that resampling shows of them). Of many things the resampled
    mean is normal, and is drawn so."""
    random = np.random.Generator(np.random.Philox(key=draw(0, 0, "design", what, n)))
    if n <= MANY:
        taken, width = resamples(0, what, n)
        x = _normal(random, n).astype(np.float32)
        means = x.mean(axis=1)
        return means, (x - means[:, None]) @ (taken * width[:, None]).T.astype(np.float32)
    means, spreads = _normal(random, 1)[:, 0] / math.sqrt(n), np.sqrt(random.chisquare(n - 1, SIMULATED)) / n
    moved = random.standard_normal(DRAWS) * np.sqrt(n / random.chisquare(n - 1, DRAWS))
    return means.astype(np.float32), np.outer(spreads.astype(np.float32), moved.astype(np.float32))


def _normal(random: np.random.Generator, n: int) -> Floats:
    even = [NormalDist().inv_cdf((i + 0.5) / SIMULATED) for i in range(SIMULATED)]
    return np.stack([random.permutation(even) for _ in range(n)], axis=1)


def paired_sd(sd: float, correlation: float) -> float:
    """The sd of the difference of two equally spread scores with that correlation over items (or seeds): sd · √(2 (1 − ρ)). For answers that are
    right or wrong, sd = √(p (1 − p))."""
    return sd * math.sqrt(2 * (1 - correlation))
