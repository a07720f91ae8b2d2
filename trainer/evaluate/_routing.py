"""What counts of choices say about a router: rates, scores, classes, and how alike two conditions are. Arithmetic alone, no model.

Counts are [.., L, E]: how often tokens of some kind chose expert e of layer l, k choices a token. Rate R = C / (N k), so that the rates of a layer
add up to 1 and an even router has 1/E each. The specialisation score is the paper's (arXiv 2603.03276 section 4), S = (R_text - R_image) /
(R_text + R_image) in [-1, 1]; where it draws the lines between classes is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw

Floats = NDArray[np.float64]
ONE = 1 - 1e-12
TEXT, MULTIMODAL, VISION, IDLE = CLASSES = ("text", "multimodal", "vision", "idle")


def rates(counts: Floats) -> Floats:
    """[.., L, E] → the same, each layer's adding up to 1 (0 where nothing was chosen)."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


def scores(text: Floats, image: Floats) -> Floats:
    """S of each expert from its two rates; nan for one that neither chose."""
    both = text + image
    return np.divide(text - image, both, out=np.full(both.shape, np.nan), where=both > 0)


def classes(text: Floats, image: Floats, threshold: float, idle_below: float) -> NDArray[np.str_]:
    """The class of each expert: text where S >= threshold, vision where S <= -threshold, else multimodal; idle where both rates are under
    `idle_below` of an even router's, of which S would say next to nothing."""
    idle = np.maximum(text, image) < idle_below / text.shape[-1]
    s = np.nan_to_num(scores(text, image))
    named = np.where(s >= threshold, TEXT, np.where(s <= -threshold, VISION, MULTIMODAL))
    return np.where(idle | (text + image == 0), IDLE, named)


def load(counts: Floats) -> dict[str, Floats]:
    """By layer: the busiest expert over the mean, the entropy of choices over that of an even router, and the share of experts without a token."""
    p, experts = rates(counts), counts.shape[-1]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1) / np.log(max(experts, 2))
    return {"load": p.max(axis=-1) * experts, "entropy": entropy, "dead": (counts == 0).mean(axis=-1)}


def correlation(a: Floats, b: Floats) -> Floats:
    """Pearson's r over the last axis; nan where one side does not vary."""
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), size, out=np.full(size.shape, np.nan), where=size > 1e-15)


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike two conditions choose, by layer: r, its 95 % interval, and the r that sampling alone would leave of two equal conditions. r is that
    of as many records: with fewer, of the same routing, it is lower, and so is the ceiling."""

    r: Floats
    low: Floats
    high: Floats
    ceiling: Floats


def alike(one: Floats, two: Floats, draws: int = 300, splits: int = 20) -> Alike:
    """Of counts [D, L, E] of the same D records in two conditions.

    The interval is symmetric about r in Fisher's z, with the standard error of resampled records, both conditions together: resampling adds its noise
    once more, so that resampled r's lie lower than r and their quantiles may leave it out. The ceiling splits the records in halves within a
    condition: the mean r of `splits` splits, stepped up to all records by Spearman and Brown's 2 r / (1 + r), is that condition's reliability, and
    the root of the product of both bounds what two conditions of one routing could show (Spearman's attenuation)."""
    n, shape = len(one), one.shape[1:]
    flat = [x.reshape(n, -1) for x in (one, two)]
    sums = lambda weights: [rates((weights @ x).reshape(-1, *shape)) for x in flat]
    found = correlation(*sums(np.ones((1, n))))[0]
    random = np.random.Generator(np.random.Philox(key=draw(n, 0, "experts")))
    resampled = correlation(*sums(random.multinomial(n, np.full(n, 1 / n), draws).astype(float)))
    half = np.stack([random.permutation(n) < n // 2 for _ in range(splits)]).astype(float)
    with np.errstate(invalid="ignore"):
        reliable = [spearman_brown(correlation(a, b).mean(axis=0)) for a, b in zip(sums(half), sums(1 - half), strict=True)]
        error = np.std(np.arctanh(np.clip(resampled, -ONE, ONE)), axis=0, ddof=1)
        z = np.arctanh(np.clip(found, -ONE, ONE))
    return Alike(found, np.tanh(z - 1.96 * error), np.tanh(z + 1.96 * error), np.sqrt(reliable[0] * reliable[1]))


def spearman_brown(r: Floats) -> Floats:
    """The reliability of the whole from the r of its halves; none below 0."""
    return np.where(r > 0, 2 * r / (1 + r), np.where(np.isnan(r), np.nan, 0.0))


def by_time(counts: Floats, tokens: Floats, bins: NDArray[np.int64], n: int, k: int) -> Floats:
    """Rates [n, L, E] in each of n bins of time, from counts [I, L, E], tokens [I] and the bin [I] of each image."""
    member = (bins == np.arange(n)[:, None]).astype(float)
    summed = (member @ counts.reshape(len(counts), -1)).reshape(n, *counts.shape[1:])
    return summed / np.maximum(member @ tokens * k, 1)[:, None, None]


def variation(rate: Floats) -> Floats:
    """By layer: the coefficient of variation of an expert's rate over bins [n, L, E], on average over the experts that were chosen at all."""
    mean = rate.mean(axis=0)
    cv = np.divide(rate.std(axis=0), mean, out=np.full(mean.shape, np.nan), where=mean > 0)
    return np.nanmean(cv, axis=-1)


def variation_by_chance(counts: Floats, tokens: Floats, bins: NDArray[np.int64], n: int, k: int, draws: int = 100) -> Floats:
    """`variation` [draws, L] with the bins dealt to other images at random: what it is when time does not matter."""
    random = np.random.Generator(np.random.Philox(key=draw(len(bins), n, "experts")))
    return np.stack([variation(by_time(counts, tokens, random.permutation(bins), n, k)) for _ in range(draws)])
