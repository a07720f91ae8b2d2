"""What a start brings along that the shapes of its weights do not say: the words and the latents that they were trained on, and what is done with
them.

In: where `init:` points, the new run and its plan. Out: notes on what is read otherwise than it was there, or an InputError where ids would mean
other words, or the same weights another function. That names and shapes fit is seen to where they are filled in; here is what would go wrong without
a sound: heads that are divided otherwise, another norm or rotation, an output read as x that was trained as v.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mixtures.plan import Plan
from pipelines.format.document import dump
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import parent_path
from trainer.models.load import start_of
from trainer.run import Run


def plan_of(path: str) -> Plan | None:
    """The plan that the weights at `path` were trained on; None when it is no longer there."""
    start = start_of(path)
    try:
        if start.card is not None:
            return Plan.open(parent_path(start.card, start.card["parents"][0]))
        return Plan.open(run_of(path).plan)
    except (HeadwaterError, KeyError):
        return None


def run_of(path: str) -> Run:
    """The document of the run that the weights at `path` come from."""
    start = start_of(path)
    said = start.card if start.card is not None else start.checkpoint.marker  # type: ignore[union-attr]
    return Run.model_validate_json(json.dumps(said["recipe"]), strict=True)


def differences(init: str, run: Run, plan: Plan) -> list[str]:
    """What this run and plan give a model otherwise than what `init` was trained on. InputError where the weights would compute something else."""
    notes = _functions(init, run_of(init), run)
    before = plan_of(init)
    if before is None:
        return [*notes, f"the plan that {init} was trained on is gone: its tokenizer and its latents are not compared with this plan's"]
    now, was = (p.card.get("encoding") or {} for p in (plan, before))
    words = [(e.get("text") or {}).get("tokenizer_sha256") for e in (now, was)]
    if None not in words and words[0] != words[1]:
        raise InputError(
            "the weights were trained on another tokenizer's ids", where=init, found=str(words[1])[:16], allowed=str(words[0])[:16],
            next="encode this plan's datasets with the tokenizer of that run's",
        )  # fmt: skip
    encoders = [said for side in ("image", "target") for said in _encoders(now.get(side), was.get(side))]
    return [*notes, *encoders, *(said for key in ("stats", "target_stats") for said in _statistics(plan, before, init, key))]


def _functions(init: str, was: Run, now: Run) -> list[str]:
    """Notes where times are drawn otherwise; InputError where the same weights would be another function. Of a model that does not say which of its
    keys leave the function alone (`IDLE`), differences are notes."""
    idle: frozenset[str] | None = getattr(type(now.model), "IDLE", None)
    notes = []
    said = [_flat("model", dump(r)["model"]) | {"flow.predict": r.flow.predict} for r in (was, now)]
    for key in dict.fromkeys(k for s in said for k in s):
        before, after = (s.get(key) for s in said)
        if before == after or key.split(".", 2)[-1] in (idle or ()):
            continue
        if idle is None and key != "flow.predict":
            notes.append(f"{key} is {after}, {init} was trained with {before}")
        else:
            raise InputError("the weights were trained as another model", where=init, found=f"{key} {before}", allowed=f"{key} {after}",
                             next=f"say {key}: {before} in this run, or start from other weights")  # fmt: skip
    if was.flow.shift != now.flow.shift:
        notes.append(f"times are shifted by {now.flow.shift}, {init} was trained with {was.flow.shift}")
    return notes


def _flat(at: str, value: Any) -> dict[str, Any]:
    """Keys and values of a document, nested ones by their path."""
    if not isinstance(value, dict):
        return {at: value}
    if "heads" in value:  # no number of its own: as many as there are heads
        value = {**value, "kv_heads": value.get("kv_heads") or value["heads"]}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{at}.{name}", inner).items()}


def _encoders(now: dict[str, Any] | None, was: dict[str, Any] | None) -> list[str]:
    if not now or not was or (now["encoder"], now.get("fingerprint")) == (was["encoder"], was.get("fingerprint")):
        return []
    if now["encoder"] == was["encoder"]:
        return [f"latents are of {now['encoder']} with other weights or settings than those that the weights were trained on"]
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
