"""Where a law's numbers come from: the runs of an IsoFLOP ablation, with what each of them was, read and reached.

In: an ablation's `Evidence` whose document has `isoflop`. Out: a `Measured` an arm and seed, and per family and modality what laws are fitted to.
Losses are in nats (text: the logarithm of the held-out perplexity) and mean squared error (images); N is of the plan, D and FLOPs are what the run's
card says it consumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.scaling.draws import Floats
from trainer.scaling.isoflop import Isoflop, Point

if TYPE_CHECKING:
    from trainer.report.evidence import Evidence

MODALITIES = {"language": ("text_perplexity", "held_out"), "vision": ("flow_loss", "held_out")}


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. n: active non-embedding parameters; d: payload tokens read; flops: spent (null: unknown); losses by modality; own: tokens of a
    modality's own, of d."""

    arm: str
    family: str
    budget: float | None
    seed: int
    n: float
    d: float
    losses: dict[str, float] = field(default_factory=dict, hash=False)
    flops: float | None = None
    own: dict[str, float] = field(default_factory=dict, hash=False)


def planned(evidence: Evidence) -> dict[str, Point]:
    """The sweep that an ablation ran, by arm; none where its document has no `isoflop`."""
    recipe = evidence.card.get("recipe") or {}
    if not recipe.get("isoflop"):
        return {}
    points = _points(json.dumps([recipe["isoflop"], recipe["run"], recipe["mixture"]], sort_keys=True))
    return {arm: point for arm, point in points.items() if arm in evidence.arms}


@lru_cache(maxsize=4)
def _points(document: str) -> dict[str, Point]:
    # A figure and a table ask for the same sweep, and its models take seconds to count.
    isoflop, run, mixture = json.loads(document)
    return Isoflop.model_validate(isoflop).points(run, mixture)


def measured(evidence: Evidence, points: dict[str, Point]) -> list[Measured]:
    """Every run of the sweep that was evaluated."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    for row in evidence.results:
        for modality, (metric, split) in MODALITIES.items():
            if (row["metric"], row["split"]) == (metric, split) and row["value"] is not None and row["value"] > 0:
                loss = math.log(row["value"]) if metric == "text_perplexity" else float(row["value"])
                values.setdefault((row["arm"], row["seed"]), {})[modality] = loss
    out = []
    for arm, point in points.items():
        for seed in evidence.seeds:
            run = evidence.runs.get((arm, seed))
            if run is not None and (arm, seed) in values:
                payload = float(sum(s.get("payload", 0) for s in run.tokens.values()))
                text = float(sum(s.get("text", 0) for s in run.tokens.values()))
                own = {"language": text, "vision": payload - text}
                out.append(Measured(arm, point.family, point.budget, seed, float(point.active), payload, values[arm, seed], run.flops, own))
    return out


def by_budget(runs: Iterable[Measured], family: str, modality: str) -> dict[float, tuple[Floats, Floats, Floats]]:
    """budget → (n, d, loss) of one family and modality: what `powers.frontier` takes."""
    out: dict[float, list[tuple[float, float, float]]] = {}
    for run in runs:
        if run.family == family and modality in run.losses and run.budget is not None:
            out.setdefault(run.budget, []).append((run.n, run.d, run.losses[modality]))
    return {budget: tuple(np.array(column) for column in zip(*rows, strict=True)) for budget, rows in out.items()}  # type: ignore[misc]


def columns(runs: Iterable[Measured], family: str, modality: str, own: bool = False) -> dict[str, Any]:
    """n, d, loss and the arm's number of each run of one family and modality: what `parametric.fit` takes. own: d are the modality's own tokens, and
    `other` the rest; ValueError where a run does not say."""
    some = [r for r in runs if r.family == family and modality in r.losses]
    if own and not all(r.own.get(modality, 0) > 0 for r in some):
        raise ValueError("not every run has tokens of the modality's own")
    arms = list(dict.fromkeys(r.arm for r in some))
    d = [r.own[modality] if own else r.d for r in some]
    values = {"n": [r.n for r in some], "d": d, "loss": [r.losses[modality] for r in some]}
    if own:
        values["other"] = [r.d - r.own[modality] for r in some]
    return {**{k: np.array(v, np.float64) for k, v in values.items()}, "groups": [arms.index(r.arm) for r in some]}
