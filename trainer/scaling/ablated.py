"""Runs of a finished ablation into what laws are fitted to: any ablation, not a sweep alone.

In: the ablation's folder. Out: the same `Table` as of a user's own runs, N, tokens and FLOPs from each run's card, losses from its evaluation. A
modality's own tokens are known, so where arms differ in mixture and size L(N, D_own, D_other) can be fitted; where there are more mixtures than
sources, a law over mixtures (of means over seeds).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from pipelines.format import storage
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from trainer.scaling.isoflop import Isoflop, Point
from trainer.scaling.points import MODALITIES, Measured
from trainer.scaling.table import Table


def read(path: str) -> Table:
    """Every run of the ablation at `path` that was evaluated. InputError where none was."""
    root = storage.absolute(path)
    card = read_card(root)
    recipe = card["recipe"]
    points: dict[str, Point] = {}
    if recipe.get("isoflop"):
        points = Isoflop.model_validate_json(json.dumps(recipe["isoflop"])).points(recipe["run"], recipe["mixture"])
    runs: list[Measured] = []
    tokens: dict[str, list[dict[str, float]]] = {}
    count = 0
    for arm, facts in card["arms"].items():
        for seed, place in facts["runs"].items():
            count += 1
            where = storage.resolve(place, root)
            losses = _losses(where)
            if losses:
                run = read_card(where)
                runs.append(_measured(arm, int(seed), run, losses, points.get(arm)))
                tokens.setdefault(arm, []).append({s: float(v["tokens"]["all"]) for s, v in run["sources"].items()})
    if not runs:
        raise InputError("no run of this ablation has a held-out loss", where=root, found=f"{count} runs",
                         allowed=", ".join(metric for metric, _ in MODALITIES.values()), next="name these evaluations in its `evaluate`")  # fmt: skip
    return _with_mixtures(runs, tokens, count)


def _losses(run_dir: str) -> dict[str, float]:
    place = storage.join(run_dir, "eval.json")
    rows = storage.read_json(place)["rows"] if storage.exists(place) else []
    found = {(r["metric"], r["split"]): r["value"] for r in rows}
    out: dict[str, float] = {}
    for name, key in MODALITIES.items():
        value = found.get(key)
        if value is not None and value > 0:
            out[name] = math.log(value) if key[0] == "text_perplexity" else float(value)
    return {k: v for k, v in out.items() if v > 0}


def _measured(arm: str, seed: int, run: dict[str, Any], losses: dict[str, float], point: Point | None) -> Measured:
    d, text = float(run["tokens"]["all"]), float(run["tokens"]["text"])
    family, budget = (point.family, point.budget) if point else ("all", None)
    own = {"language": text, "vision": d - text}
    return Measured(arm, family, budget, seed, float(run["parameters"]["active_text"]), d, losses, run.get("flops"), own)


def _with_mixtures(runs: list[Measured], tokens: dict[str, list[dict[str, float]]], count: int) -> Table:
    """Arms as mixtures, with the losses that every run has."""
    names = [m for m in MODALITIES if all(m in r.losses for r in runs)]
    each = [t for some in tokens.values() for t in some]
    sources = [s for s in dict.fromkeys(s for t in each for s in t) if any(t.get(s) for t in each)]
    mixtures = np.array([[np.mean([t.get(s, 0.0) for t in some]) for s in sources] for some in tokens.values()])
    losses = {m: np.array([np.mean([r.losses[m] for r in runs if r.arm == arm]) for arm in tokens]) for m in names}
    return Table(runs, mixtures, losses, count, count - len(runs), sources, list(tokens))
