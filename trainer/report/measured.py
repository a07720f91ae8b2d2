"""From evidence to what the statistics take: an arm's scores by seed and item, with the interval of its mean.

    paired(evidence, arms, metric, split)    → Paired: Scores of every arm, on the seeds and items that all of them have
    measured(evidence, arm, metric, split)   → Measured: mean, each seed's value, interval

Items are what the run kept (trainer/evaluate/_items.py; answers.parquet serves for `vqa`); their weighted mean must be the row's own value, or they
are not believed and seeds alone are resampled. `resampled` says which it was, and whoever shows an interval says it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.resampling import Floats, Scores, contrast, resample

NATS = {"text_perplexity": "text_nats"}  # metric → the items whose mean is its logarithm
BOTH, SEEDS, ITEMS, NOTHING = "seeds and items", "seeds", "items", "nothing"  # ITEMS: of one seed


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over seeds with the 95 % interval of what was `resampled`; NaN bounds when there was one seed and no items."""

    mean: float
    seeds: tuple[float, ...]
    low: float
    high: float
    resampled: str


@dataclass(frozen=True, slots=True)
class Paired:
    """Arms on the seeds and items that all have. `logs`: scores are logarithms of the metric (perplexity), so exp is the metric; an interval of a
    mean is made of logarithms too, so that it stays above 0."""

    arms: tuple[Scores, ...]
    seeds: tuple[int, ...]
    logs: bool
    resampled: str
    shared: float = 1.0  # the share of the arms' items that all of them have

    @property
    def transform(self) -> Callable[[Floats], Floats] | None:
        """What makes the metric of a seed's score."""
        return np.exp if self.logs else None

    def values(self, k: int) -> Floats:
        """The metric of arm k by seed."""
        return np.exp(self.arms[k].means) if self.logs else self.arms[k].means

    @property
    def n(self) -> int:
        """How many items, 0 without."""
        return self.arms[0].values.shape[1] if self.resampled in (BOTH, ITEMS) else 0


def measured(evidence: Evidence, arm: str, metric: str, split: str = "held_out") -> Measured | None:
    """The value of an arm, or None when no seed has a number for it."""
    found = paired(evidence, [arm], metric, split)
    if found is None:
        return None
    values = found.values(0)
    low = high = math.nan
    if found.resampled != NOTHING:
        low, high = contrast(resample(found.arms), [1.0], found.transform).interval()
    return Measured(float(values.mean()), tuple(map(float, values)), low, high, found.resampled)


def paired(evidence: Evidence, arms: Sequence[str], metric: str | Sequence[str], split: str = "held_out") -> Paired | None:
    """The arms' scores by seed and item; None unless some seed has a number for every arm. Several metrics: one for each arm, of the same items (an
    arm beside its own control)."""
    metrics = [metric] * len(arms) if isinstance(metric, str) else list(metric)
    own = [by_seed(evidence, arm, m, split) for arm, m in zip(arms, metrics, strict=True)]
    seeds = [s for s in evidence.seeds if all(s in r for r in own)]
    if not seeds or not arms:
        return None
    found = [[_items(evidence.runs.get((a, s)), m, split, r[s]) for s in seeds] for a, m, r in zip(arms, metrics, own, strict=True)]
    nats = all(m in NATS for m in metrics)
    held = [{name: (v, w) for name, v, w in seed} if seed is not None else {} for arm_ in found for seed in arm_]
    shared = sorted(set.intersection(*(set(h) for h in held)))
    most = max(map(len, held))
    if len(shared) > 1 and len(shared) >= most / 2:
        table = np.array([[h[name] for name in shared] for h in held]).reshape(len(arms), len(seeds), len(shared), 2)
        records = tuple(name.partition("|")[2] for name in shared)  # questions on one image go together whatever their type
        scores = [Scores(t[:, :, 0], t[0, :, 1], records) for t in table]
        return Paired(tuple(scores), tuple(seeds), nats, BOTH if len(seeds) > 1 else ITEMS, len(shared) / most)
    logs = nats and all(r[s] > 0 for r in own for s in seeds)
    alone = [Scores(np.array([[math.log(r[s]) if logs else r[s]] for s in seeds]), np.ones(1)) for r in own]
    return Paired(tuple(alone), tuple(seeds), logs, SEEDS if len(seeds) > 1 else NOTHING)


def by_seed(evidence: Evidence, arm: str, metric: str, split: str) -> dict[int, float]:
    """Seed → the row's value, where it is a number."""
    found = rows(evidence, arm, metric, split)
    return {int(r["seed"]): float(r["value"]) for r in found if r["value"] is not None and math.isfinite(r["value"])}


def rows(evidence: Evidence, arm: str, metric: str, split: str) -> list[dict[str, Any]]:
    """The rows of results.parquet of an arm, metric and split, a seed each."""
    if not _INDEX or _INDEX[0][0] is not evidence.results or _INDEX[0][1] != len(evidence.results):
        index: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in evidence.results:
            index.setdefault((row["arm"], row["metric"], row["split"]), []).append(row)
        _INDEX[:] = [(evidence.results, len(evidence.results), index)]
    return _INDEX[0][2].get((arm, metric, split), [])


# Of the last evidence: pages ask thousands of times.
_INDEX: list[tuple[list[dict[str, Any]], int, dict[tuple[str, str, str], list[dict[str, Any]]]]] = []


def control(evidence: Evidence, arm: str, metric: str, name: str, split: str = "held_out") -> float | None:
    """The mean of an arm's control row `<metric>.<name>`; None when none of its seeds has a number."""
    values = list(by_seed(evidence, arm, f"{metric}.{name}", split).values())
    return float(np.mean(values)) if values else None


def chosen_arms(evidence: Evidence, arms: Sequence[str]) -> list[str]:
    """The arms that are asked for, in that order, or all of the ablation's. One the ablation does not have is left out."""
    return [a for a in arms if a in evidence.arms] if arms else list(evidence.arms)


def said_interval(found: Iterable[Measured | None]) -> str:
    """What the intervals shown are intervals of, in a sentence."""
    return said_resampled(m.resampled for m in found if m is not None)


def said_resampled(resampled: Iterable[str]) -> str:
    """The same from what was resampled."""
    of = set(resampled) - {NOTHING}
    if not of:
        return "One seed and no items, so no interval."
    if of == {SEEDS}:
        return "Interval: 95 %, over seeds alone (this metric keeps no items, so how much it would move with others is not in it)."
    if ITEMS in of:
        return "Interval: 95 %, held-out items resampled, of one seed: how much another start would move it is not in it, so it is too narrow."
    return "Interval: 95 %, seeds and held-out items resampled." + (" Where items were not kept, seeds alone." if SEEDS in of else "")


Item = tuple[str, float, float]


def _items(run: RunEvidence | None, metric: str, split: str, value: float) -> list[Item] | None:
    """(name, value, weight) behind a row of a run; None when there are none, or their mean is not the row's value."""
    if run is None:
        return None
    table = run.items.get(NATS.get(metric, metric))
    for names, values, weights in chain(_kept(table, split) if table is not None else (), _answers(run, metric, split)):
        if len(names) > 1 and weights.sum() > 0:
            mean = float(values @ weights / weights.sum())
            if math.isclose(math.exp(mean) if metric in NATS else mean, value, rel_tol=1e-3, abs_tol=1e-9):
                return list(zip(names, values.tolist(), weights.tolist(), strict=True))
    return None


def _kept(table: Any, split: str) -> Iterable[tuple[list[str], Floats, Floats]]:
    """The items that may be a split's: its own; for the whole, all of it; for a mean over sets, sets weighing the same."""
    splits = np.asarray(table["split"].to_pylist(), dtype=object).astype(str)
    values, weights = (table[c].to_numpy().astype(np.float64) for c in ("value", "weight"))
    names = table["item"].to_pylist()
    whole = np.char.startswith(splits.astype(str), "held_out") if split == "held_out" else np.ones(len(splits), bool)
    for chosen in (splits == split, whole) if split in ("held_out", "all") else (splits == split,):
        if chosen.any():
            rows = np.flatnonzero(chosen)
            held = [f"{splits[i]}|{names[i]}" for i in rows]
            yield held, values[rows], weights[rows]
            totals = {s: weights[rows][splits[rows] == s].sum() for s in set(splits[rows])}
            if len(totals) > 1 and all(totals.values()):
                yield held, values[rows], weights[rows] / np.array([totals[s] for s in splits[rows]])


def _answers(run: RunEvidence, metric: str, split: str) -> Iterable[tuple[list[str], Floats, Floats]]:
    """The answers of a run as items of `vqa` and its controls, for runs that kept no other."""
    base, _, rest = metric.partition(".")
    if base != "vqa" or run.answers is None:
        return
    column = f"choice_correct{rest.removeprefix('choice').replace('.', '_')}" if rest.startswith("choice") else f"correct_{rest}".rstrip("_")
    table, kind = run.answers, split.partition(":")[2]
    if column not in table.column_names or not split.startswith("held_out"):
        return
    score = np.array([math.nan if v is None else float(v) for v in table[column].to_pylist()])
    chosen = ~np.isnan(score)
    if kind == "with_bag" and "has_bag" in table.column_names:
        chosen &= np.array(table["has_bag"].to_pylist())
    elif kind:
        chosen &= np.array([t == kind for t in table["type"].to_pylist()])
    rows = np.flatnonzero(chosen)
    ids = table["id"].to_pylist() if "id" in table.column_names else [f"{i:09d}" for i in range(len(score))]
    turns = table["turn"].to_pylist() if "turn" in table.column_names else [0] * len(score)
    yield [f"|{ids[i]}/{turns[i]}" for i in rows], score[rows], np.ones(len(rows))
