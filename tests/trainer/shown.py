"""Ablations made by hand, for the figures of a report: budgets, values by arm, seeds and items, and no file anywhere."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.measures import is_control


def table_of(values: np.ndarray, weights: np.ndarray | None = None, split: str = "held_out") -> pa.Table:
    """Items of one run."""
    n = len(values)
    weights = np.ones(n) if weights is None else weights
    return pa.table({"item": [f"item-{i:04d}" for i in range(n)], "split": [split] * n, "value": values, "weight": weights})


def ablation(
    arms: dict[str, dict[str, int]],
    values: dict[str, dict[str, float]],
    seeds: tuple[int, ...] = (0, 1),
    items: int = 0,
    runs: dict[str, dict[str, Any]] | None = None,
    spread: float = 0.01,
) -> Evidence:
    """values: metric or "metric|split" → arm → value (NaN is written as such; an arm left out was not measured). items: how many a metric has."""
    random = np.random.default_rng(0)
    results, kept = [], {(a, s): {} for a in arms for s in seeds}
    for key, by_arm in values.items():
        metric, _, split = key.partition("|")
        split = split or "held_out"
        for arm, value in by_arm.items():
            for seed in seeds:
                shift = spread * abs(value) * (seed - np.mean(seeds)) if not is_control(metric) and math.isfinite(value) else 0.0
                own = value + shift
                results.append({"arm": arm, "seed": seed, "metric": metric, "split": split, "value": own, "n": items or 100, "chance": None})
                if items and math.isfinite(own) and not is_control(metric) and split == "held_out":
                    noise = random.standard_normal(items)
                    logs = metric == "text_perplexity"
                    name, mean = ("text_nats", math.log(own)) if logs else (metric, own)
                    kept[arm, seed][name] = table_of(mean * (1 + 0.05 * (noise - noise.mean())))
    tokens = {a: {s: {"payload": n, "structure": n // 20, "loss": n // 2, "text": n // 3} for s, n in b.items()} for a, b in arms.items()}
    made = {
        (a, s): RunEvidence(a, s, 400, tokens[a], tokens[a], 500, 1e13, 40.0, 395_000, curves_of(b), items=kept[a, s])
        for a, b in arms.items()
        for s in seeds
    }
    recipe = {"run": {"model": {"transfusion": {"width": 96}}}, "arms": {a: {"extends": None, "run": (runs or {}).get(a, {})} for a in arms}}
    card = {"fingerprint": "12" * 32, "recipe": recipe}
    return Evidence("by_hand", list(arms), list(seeds), results, made, arms, dict.fromkeys(arms, 1.0), 1e-6, card)


def curves_of(budget: dict[str, int]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Losses that fall, for sources with a budget."""
    x = np.linspace(1, max(2, sum(budget.values())), 60)
    return {("text", s): (x, 1 + 2 * np.exp(-x / 1e5)) for s, n in budget.items() if n} | {
        ("flow", s): (x, 0.6 + np.exp(-x / 1e5)) for s, n in budget.items() if n and s != "text"
    }


def words(svg: str) -> list[str]:
    """The text of a drawing, a word an element."""
    return [re.sub("<[^>]*>", "", t).replace("&amp;", "&") for t in re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.S)]
