"""One arm's value of one metric with its interval: what every figure draws, computed in one place.

    measured(evidence, arm, metric, split)      → Measured(mean, by seed, low, high, resampled) or None

The interval is the hierarchical bootstrap of `resampling` over seeds × items where the run kept the items whose weighted mean the value is
(trainer/evaluate/_items.py; answers of an older run serve for `vqa`), else over seeds alone: `resampled` says which, and captions repeat it. With two
or three seeds it is honest and very wide. Items whose mean is not the row's value are not believed. What is not a number was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.report.evidence import Evidence
from trainer.report.resampling import Scores, contrast, resample

NATS = {"text_perplexity": "text_nats"}  # metric → the items whose mean is its logarithm
BOTH, ITEMS, SEEDS, NOTHING = "seeds and held-out items", "held-out items (one seed)", "seeds", "nothing"


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over seeds with the 95 % interval over what was `resampled`; NaN bounds when there was one seed and no items."""

    mean: float
    seeds: tuple[float, ...]
    low: float
    high: float
    resampled: str


def measured(evidence: Evidence, arm: str, metric: str, split: str = "held_out") -> Measured | None:
    """The value of an arm, or None when no seed has a number for it."""
    values = [v for v in evidence.values(arm, metric, split) if math.isfinite(v)]
    if not values:
        return None
    low, high, of = _bounds(evidence, arm, metric, split, values)
    return Measured(float(np.mean(values)), tuple(values), low, high, of)


def control(evidence: Evidence, arm: str, metric: str, name: str, split: str = "held_out") -> float | None:
    """The mean of an arm's control row `<metric>.<name>`; None when none of its seeds has a number."""
    values = [v for v in evidence.values(arm, f"{metric}.{name}", split) if math.isfinite(v)]
    return float(np.mean(values)) if values else None


def _bounds(evidence: Evidence, arm: str, metric: str, split: str, values: list[float]) -> tuple[float, float, str]:
    scores = items(evidence, arm, metric, split)
    if scores is not None and len(scores.values) == len(values):
        back = np.exp if metric in NATS else None
        if np.allclose(scores.means if back is None else back(scores.means), values, rtol=1e-3, atol=1e-6):
            return *contrast(resample([scores], back), [1.0]).interval(), BOTH if len(values) > 1 else ITEMS
    if len(values) > 1:
        return *contrast(resample([Scores(np.array(values)[:, None], np.ones(1))]), [1.0]).interval(), SEEDS
    return math.nan, math.nan, NOTHING


def items(evidence: Evidence, arm: str, metric: str, split: str) -> Scores | None:
    """The items behind a row; those of `held_out` are all of the held-out set. None unless all seeds have the same."""
    found, name = [], NATS.get(metric, metric)
    for seed in evidence.seeds:
        run = evidence.runs.get((arm, seed))
        table = run.items.get(name) if run is not None else None
        if table is None:
            return _answers(evidence, arm, split) if metric == "vqa" else None
        whole = lambda s: s == split or (split == "held_out" and s.startswith("held_out:"))
        found.append(sorted((r["split"], r["item"], r["value"], r["weight"]) for r in table.to_pylist() if whole(r["split"])))
    names = [[(s, i) for s, i, _, _ in rows] for rows in found]
    if not found or not found[0] or any(n != names[0] for n in names):
        return None
    values = np.array([[v for _, _, v, _ in rows] for rows in found])
    return Scores(values, np.array([w for _, _, _, w in found[0]]), tuple(f"{s}:{i}" for s, i in names[0]))


def _answers(evidence: Evidence, arm: str, split: str) -> Scores | None:
    kind = split.partition(":")[2]
    if kind and kind not in evidence.types():
        return None
    rows = evidence.of_type(kind) if kind else None
    right = evidence.answered(arm, "correct", rows)
    return None if right is None else Scores(right, np.ones(right.shape[1]))


def chosen_arms(evidence: Evidence, arms: Sequence[str]) -> list[str]:
    """The arms a figure is told to show, in its order, or all of the ablation's. One the ablation does not have is left out."""
    return [a for a in arms if a in evidence.arms] if arms else list(evidence.arms)


def said_interval(found: Iterable[Measured | None]) -> str:
    """What the whiskers of a figure are, in a sentence."""
    there = {m.resampled for m in found if m is not None}
    of = [kind for kind in (BOTH, ITEMS, SEEDS) if kind in there]
    if not of:
        return "One seed and no items, so no whiskers."
    tail = ", or seeds alone where items were not kept" if of[-1] == SEEDS and len(of) > 1 else ""
    return f"Whisker: 95 % interval, {of[0]} resampled{tail}; one that leaves the axis ends in an arrow."


def said_split(split: str) -> str:
    """A split as a reader says it: `held_out:text` is text, `horizon:4` is horizon 4, `set:notes` is notes."""
    kind, _, name = split.partition(":")
    return "" if split in ("held_out", "all") else name if kind in ("held_out", "set") and name else f"{kind} {name}".strip().replace("_", " ")
