"""What an arm was told: its budgets and the keys of its run, for the axes of figures that show a sweep.

In: `Evidence`, whose card holds the resolved ablation. Out: numbers or words by arm. Budgets are the planned payload tokens, after scaling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.format.document import merge
from trainer.report.evidence import Evidence


def config(evidence: Evidence, arm: str, key: str) -> Any:
    """What an arm has under a key: a source's budget, `payload`, `steps`, `parameters`, `flops`, or a key of its run (`experts.count` finds
    `model.transfusion.experts.count`). None when there is nothing."""
    budgets = evidence.budgets.get(arm, {})
    if key == "payload":
        return sum(budgets.values())
    run = next((evidence.runs[arm, s] for s in evidence.seeds if (arm, s) in evidence.runs), None)
    if key in ("steps", "parameters", "flops"):
        return getattr(run, key, None)
    if any(key in b for b in evidence.budgets.values()):
        return budgets.get(key, 0)
    found = [v for k, v in _flat(run_of(evidence, arm)) if k == key or k.endswith("." + key)]
    return found[0] if found else None


def run_of(evidence: Evidence, arm: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The run an arm was told: the ablation's with those of the arms it extends and its own laid over it."""
    recipe = evidence.card.get("recipe") or {}
    own = (recipe.get("arms") or {}).get(arm) or {}
    base = own.get("extends")
    under = run_of(evidence, base, (*above, arm)) if base and base not in above else recipe.get("run") or {}
    return merge(under, own.get("run") or {})


def _flat(tree: Any, above: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(above, tree)]
    return [pair for key in sorted(tree) for pair in _flat(tree[key], f"{above}.{key}" if above else str(key))]


def levels(values: Iterable[float], within: float = 0.03) -> list[list[float]]:
    """Budgets that are the same budget: sorted values in groups that differ by at most a share (plans end at whole documents). 0 stands alone."""
    out: list[list[float]] = []
    for value in sorted(set(values)):
        if out and out[-1][0] > 0 and value <= out[-1][0] * (1 + within):
            out[-1].append(value)
        else:
            out.append([value])
    return out
