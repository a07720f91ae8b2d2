"""Which arms saw images through which encoder: errors in one encoder's latents say nothing about another's.

In: the arms' plans as the evidence knows them. Out: why arms cannot be compared on a metric that lives in latent space, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainer.report.evidence import Evidence
from trainer.report.measures import measure


def encoders(evidence: Evidence, arm: str) -> tuple[str, ...]:
    """The encodings of an arm's sources: what its card says (`encoders`), else the datasets that its recipe names for the sources it trains on."""
    facts = evidence.card.get("arms", {}).get(arm, {})
    if "encoders" in facts:
        return tuple(map(str, facts["encoders"]))
    recipe = evidence.card.get("recipe", {})
    shared = recipe.get("mixture", {}).get("sources") or {}
    own = settled(evidence, arm, "sources")
    return tuple(str((own.get(s) or {}).get("dataset", (shared[s] or {}).get("dataset"))) for s in shared)


def settled(evidence: Evidence, arm: str, key: str) -> dict[str, Any]:
    """A key of an arm with what it extends laid under it (one level deep)."""
    out: dict[str, Any] = {}
    arms, chain = evidence.card.get("recipe", {}).get("arms", {}), []
    while arm and arm in arms and arm not in chain:
        chain.append(arm)
        arm = arms[arm].get("extends") or ""
    for name in reversed(chain):
        out |= arms[name].get(key) or {}
    return out


def unlike(evidence: Evidence, metric: str, arms: Iterable[str]) -> str | None:
    """Why these arms cannot be set side by side on this metric, or None when they can."""
    if measure(metric).comparable:
        return None
    seen = {encoders(evidence, a) for a in arms if a in evidence.arms}
    if len(seen) <= 1:
        return None
    return f"{measure(metric).name} is an error in an encoder's own latents; these arms do not share one encoding: not compared."
