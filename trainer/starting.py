"""What a start brings along that weights alone do not say: the words and the latents that they were trained on.

In: where `init:` points, and the plan of the new run. Out: notes on what is read otherwise than it was there, or an InputError where ids would mean
other words. A start has the shape of the new model or is refused elsewhere; these are what would go wrong without a sound.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mixtures.plan import Plan
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import parent_path
from trainer.models.load import start_of
from trainer.run import Run


def plan_of(path: str) -> Plan | None:
    """The plan that the weights at `path` were trained on; None when it is no longer there."""
    start = start_of(path)
    said = start.card if start.card is not None else start.checkpoint.marker  # type: ignore[union-attr]
    try:
        if start.card is not None:
            return Plan.open(parent_path(start.card, start.card["parents"][0]))
        return Plan.open(Run.model_validate_json(json.dumps(said["recipe"]), strict=True).plan)
    except (HeadwaterError, KeyError):
        return None


def differences(init: str, plan: Plan) -> list[str]:
    """What this plan gives a model otherwise than the one that `init` was trained on."""
    before = plan_of(init)
    if before is None:
        return [f"the plan that {init} was trained on is gone: its tokenizer and its latents are not compared with this plan's"]
    now, was = (p.card.get("encoding") or {} for p in (plan, before))
    words = [(e.get("text") or {}).get("tokenizer_sha256") for e in (now, was)]
    if None not in words and words[0] != words[1]:
        raise InputError(
            "the weights were trained on another tokenizer's ids", where=init, found=str(words[1])[:16], allowed=str(words[0])[:16],
            next="encode this plan's datasets with the tokenizer of that run's",
        )  # fmt: skip
    encoders = [said for side in ("image", "target") for said in _encoders(now.get(side), was.get(side))]
    return [*encoders, *(said for key in ("stats", "target_stats") for said in _statistics(plan, before, init, key))]


def _encoders(now: dict[str, Any] | None, was: dict[str, Any] | None) -> list[str]:
    if not now or not was or now["encoder"] == was["encoder"]:
        return []
    return [f"latents are of {now['encoder']}, the weights were trained on those of {was['encoder']}"]


def _statistics(plan: Plan, before: Plan, init: str, key: str) -> list[str]:
    """Weights know latents of one mean and variance; a new mixture has others, unless it says otherwise."""
    now, was = plan.latent_stats(key), before.latent_stats(key)
    if now is None or was is None:
        return []
    if now[1].shape == was[1].shape and all(np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(now[1:], was[1:], strict=True)):
        return []
    return [f"latents are normalised by other statistics than those that {init} was trained with; `normalise: {{stats: {before.path}}}` in the "
            "mixture takes those"]  # fmt: skip
