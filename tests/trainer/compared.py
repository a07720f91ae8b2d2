"""Evidence made by hand for comparisons: arms with known true scores, items, seeds and budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from trainer.report.evidence import Evidence, RunEvidence


def items_table(values: np.ndarray, weights: np.ndarray | None = None, split: str = "held_out", names: list[str] | None = None) -> pa.Table:
    """The items of one metric of one run."""
    n = len(values)
    made = names or [f"r{i:05d}" for i in range(n)]
    return pa.table({"item": made, "split": [split] * n, "value": values, "weight": np.ones(n) if weights is None else weights})


def compared(
    true: dict[str, float],
    metric: str = "vqa",
    seeds: int = 6,
    items: int = 300,
    seed_sd: float = 0.0,
    noise: float = 0.1,
    budgets: dict[str, dict[str, int]] | None = None,
    recipe: dict[str, Any] | None = None,
    random: int = 0,
) -> Evidence:
    """Arms whose item scores are `true` plus departures by item (shared by arms), seed and both. text_perplexity: `true` is in nats. `items=0`:
    rows alone."""
    rng = np.random.default_rng(random)
    weights = rng.integers(1, 5, max(items, 1)).astype(float)
    shared = 0.2 * rng.standard_normal(max(items, 1))
    results, runs = [], {}
    for arm, mean in true.items():
        for seed in range(seeds):
            departure = seed_sd * rng.standard_normal()
            values = mean + departure + shared + noise * rng.standard_normal(len(shared))
            value = float(values @ weights / weights.sum())
            logs = metric == "text_perplexity"
            shown = float(np.exp(value)) if logs else value
            results.append({"arm": arm, "seed": seed, "metric": metric, "split": "held_out", "value": shown, "n": items, "chance": None})
            kept = {"text_nats" if logs else metric: items_table(values, weights)} if items else {}
            held = {s: {"payload": n, "loss": n // 2} for s, n in (budgets or {}).get(arm, {"text": 6000}).items()}
            runs[arm, seed] = RunEvidence(arm, seed, 400, held, held, 10, 1e12, 30.0, 400_000, items=kept)
    held_budgets = {a: (budgets or {}).get(a, {"text": 6000}) for a in true}
    return Evidence("made", list(true), list(range(seeds)), results, runs, held_budgets, {}, 1e-6, {"recipe": recipe or {}})
