"""Whether the arms of an ablation differ in what they were meant to differ in, and in nothing else: a machine's answer, from the cards.

In: the document, and what plans and runs say of themselves. Out: per arm every key whose value is another than in the first arm, and whether the
document declares it: an arm's own `tokens`, `sources` and `run`. Compared are the resolved mixture of plan.json, the resolved run of run.json, the
fingerprints of the datasets, what is held out, the shape of the model's ends, and the version of the code: so a key that changed by a default, a
dataset that was made anew between two arms, or an arm from older code is found too.

Keys read `mixture.sources.vqa.tokens`, `run.optim.lr`, `data.vqa`. What only says where things lie or how fast they go is no difference.
"""

from __future__ import annotations

from typing import Any

from pipelines.format.document import dump
from trainer.ablation import Ablation, Arm
from trainer.run import PLACES

_SAID_ELSEWHERE = frozenset({"seed", "init"}) | PLACES  # seeds are paired; where weights start from is the fingerprint of a parent
_OF_A_MIXTURE = frozenset({"name", "output", "engine", "materialize", "records_from"})


def resolved(plan_card: dict[str, Any], run_card: dict[str, Any]) -> dict[str, Any]:
    """One arm as flat keys, from the cards of its plan and of a run."""
    out: dict[str, Any] = {}
    mixture = {k: v for k, v in plan_card["mixture"].items() if k not in _OF_A_MIXTURE}
    sources = {}
    for name, source in mixture.get("sources", {}).items():
        sources[name] = {k: v for k, v in source.items() if k != "dataset"}
    _flat({**mixture, "sources": sources}, "mixture", out)
    _flat({k: v for k, v in run_card["recipe"].items() if k not in _SAID_ELSEWHERE}, "run", out)
    for name, datasets in _data(plan_card).items():
        out[f"data.{name}"] = datasets
    out["code.version"] = run_card["code"]["version"]
    out["code.train"] = run_card["code"]["stages"].get("train")
    return out


def _data(plan_card: dict[str, Any]) -> dict[str, Any]:
    """Source → the first digits of its datasets' fingerprints: what is compared is the data, wherever it lies."""
    prints = {i: str(parent["fingerprint"])[:16] for i, parent in enumerate(plan_card["parents"])}
    out: dict[str, Any] = {}
    for name, source in plan_card["sources"].items():
        places = [source[k] for k in ("dataset", "target") if isinstance(source.get(k), int)]
        out[name] = " + ".join(prints.get(i, "?") for i in places)
    return out


def _flat(value: Any, above: str, out: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flat(inner, f"{above}.{key}", out)
    else:
        out[above] = value


def declared(arm: Arm) -> set[str]:
    """The keys an arm says itself, each standing for all below it."""
    said = dump(arm)
    out = {f"mixture.sources.{name}.tokens" for name in said["tokens"]}
    for name, keys in said["sources"].items():
        for key in keys:
            out |= {f"data.{name}"} if key == "dataset" else {f"mixture.sources.{name}.{key}"}
    flat: dict[str, Any] = {}
    if said["run"]:  # nothing said declares nothing, not everything
        _flat(said["run"], "run", flat)
    return out | set(flat)


def _is_declared(key: str, by: set[str], both: bool) -> bool:
    """By itself or by what it stands under. A key that only one arm has (`both` false) came with what stands beside it: an arm that says
    `experts: {count: 16}` where the other has no experts declares its defaults too, and that there were none."""
    parts = key.split(".")
    if any(".".join(parts[:n]) in by for n in range(1, len(parts) + 1)) or any(other.startswith(key + ".") for other in by):
        return True
    return not both and len(parts) > 3 and any(other.startswith(".".join(parts[:-1]) + ".") for other in by)


def difference(config: Ablation, cards: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """{base, arms: {arm: [{key, base, here, declared}]}, undeclared}. `cards`: arm → (card of its plan, card of a run)."""
    names = list(config.arms)
    base, flat = names[0], {arm: resolved(*cards[arm]) for arm in names}
    by = {arm: declared(config.settled(arm)) for arm in names}
    out: dict[str, list[dict[str, Any]]] = {}
    for arm in names:
        rows = []
        for key in sorted({*flat[base], *flat[arm]}):
            there, here = flat[base].get(key), flat[arm].get(key)
            if there != here:
                said = _is_declared(key, by[base] | by[arm], key in flat[base] and key in flat[arm])
                rows.append({"key": key, "base": there, "here": here, "declared": said})
        out[arm] = rows
    return {"base": base, "arms": out, "undeclared": sum(not r["declared"] for rows in out.values() for r in rows)}


def held_fixed(config: Ablation, cards: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """The keys that all arms share, with their values."""
    flat = [resolved(*cards[arm]) for arm in config.arms]
    return {key: value for key, value in flat[0].items() if all(key in other and other[key] == value for other in flat)}
