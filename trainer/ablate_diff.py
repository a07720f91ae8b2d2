"""Whether the arms of an ablation differ in what they were meant to differ in, and in nothing else: a machine's answer, from the cards.

In: the document, and what plans and runs say of themselves. Out: per arm every key whose value is another than in the first arm, and whether the
document declares it: an arm's own `tokens`, `sources`, `run` and `evaluate`. Compared are the resolved mixture of plan.json, the resolved run of
run.json, the fingerprints of the datasets, what is held out, the shape of the model's ends, how a run was evaluated, and the version of the code: so
a key that changed by a default, a dataset that was made anew between two arms, or an arm from older code is found too. Every seed is read. Seeds of
one arm may differ in the seed alone: whatever else one has otherwise than the arm's first (it was added, or gone on with, by other code) is a row
with the seed's number, which nothing can declare.

Keys read `mixture.sources.vqa.tokens`, `run.optim.lr`, `data.vqa`, `shape.channels`, `evaluate.vqa.questions`. What only says where things lie or how
fast they go is no difference.
"""

from __future__ import annotations

from typing import Any

from pipelines.format.document import dump
from trainer.ablation import Ablation, Arm, evaluations_of
from trainer.ends import ends
from trainer.evaluate import Evaluations
from trainer.run import PLACES

_SAID_ELSEWHERE = frozenset({"seed", "init"}) | PLACES  # seeds are paired; where weights start from is the fingerprint of a parent
_OF_A_MIXTURE = frozenset({"name", "output", "engine", "materialize", "records_from"})
_OPTIONAL_BELOW = {"run": 2, "evaluate": 3}  # names in front of which a whole group may come or go: run.ema.*, evaluate.prompts.decoder.*

# arm → (card of its plan, card of the run of each seed); a run's may hold the `evaluate` of its eval.json
Cards = dict[str, tuple[dict[str, Any], ...]]
Flat = dict[str, Any]


def resolved(plan_card: dict[str, Any], run_card: dict[str, Any], asked: list[Any] | None = None) -> Flat:
    """One run as flat keys, from the cards of its plan and of itself, and the evaluations that were asked of it."""
    out: Flat = {}
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
    _flat(run_card.get("shape") or {}, "shape", out)
    parts = [part if isinstance(part, dict) else {part: {}} for part in asked or []]
    names = [next(iter(part)) for part in parts]
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        again = names[:i].count(name)
        _flat(part[name] or {}, f"evaluate.{name}" + (f"#{again + 1}" if again else ""), out)
    return out


def _ends(plan_card: dict[str, Any]) -> Flat:
    """The shape that a plan's encoding asks of a model, as run.json says it."""
    return {f"shape.{name}": n for name, n in ends(plan_card.get("encoding") or {}).items()}


def _data(plan_card: dict[str, Any]) -> dict[str, Any]:
    """Source → the first digits of its datasets' fingerprints: what is compared is the data, wherever it lies."""
    prints = {i: str(parent["fingerprint"])[:16] for i, parent in enumerate(plan_card["parents"])}
    out: dict[str, Any] = {}
    for name, source in plan_card["sources"].items():
        places = [source[k] for k in ("dataset", "target") if isinstance(source.get(k), int)]
        out[name] = " + ".join(prints.get(i, "?") for i in places)
    return out


def _flat(value: Any, above: str, out: Flat) -> None:
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
    flat: Flat = {}
    for part in ("run", "evaluate"):
        if said[part]:  # nothing said declares nothing, not everything
            _flat(said[part], part, flat)
    return out | set(flat)


def _is_declared(key: str, by: set[str], without: Flat | None) -> bool:
    """By itself or by what it stands under. `without`: the side that lacks the key, if one does. Where all of an optional group is missing there, the
    key came with the group: an arm that says `experts: {count: 16}` where the other has no experts declares their defaults too. One key more in a
    group that both have is declared by none of its siblings."""
    found = key.split(".")
    said = [found[0], found[1].partition("#")[0], *found[2:]]  # evaluate.vqa#2.questions: an arm's keys hold for every `vqa`
    under = lambda parts, n, names: any(name.startswith(".".join(parts[:n]) + ".") for name in names)
    if any(".".join(said[:n]) in by for n in range(1, len(said) + 1)) or under(said, len(said), by):
        return True
    if without is None or found[0] not in _OPTIONAL_BELOW:
        return False
    return any(under(said, n, by) and not under(found, n, without) for n in range(_OPTIONAL_BELOW[found[0]], len(found)))


def _all(config: Ablation, cards: Cards) -> dict[str, list[Flat]]:
    """Arm → its runs, each as flat keys. How one was evaluated is what it says itself, else what the document asks."""
    out = {}
    for arm in config.arms:
        plan, *runs = cards[arm]
        asked = dump(Evaluations(evaluate=evaluations_of(config, arm)))["evaluate"]
        out[arm] = [resolved(plan, run, run.get("evaluate", asked)) for run in runs]
    return out


def _rows(there: Flat, here: Flat, by: set[str]) -> list[dict[str, Any]]:
    """The keys that differ, without those that both have alike."""
    rows = []
    for key in sorted({*there, *here}):
        if there.get(key) != here.get(key):
            without = there if key not in there else here if key not in here else None
            rows.append({"key": key, "base": there.get(key), "here": here.get(key), "declared": _is_declared(key, by, without)})
    return rows


def difference(config: Ablation, cards: Cards) -> dict[str, Any]:
    """{base, arms: {arm: [{key, base, here, declared}]}, undeclared}. A row with `seed` says what that seed has (`here`) where the first seed of the
    same arm has `base`. A shape is declared where it is what the encoding asks for, and the data differ by declaration alone."""
    flat, base = _all(config, cards), next(iter(config.arms))
    by = {arm: declared(config.settled(arm)) for arm in config.arms}
    out: dict[str, list[dict[str, Any]]] = {}
    for arm in config.arms:
        first, *others = flat[arm]
        rows = _rows(flat[base][0], first, by[base] | by[arm])
        data = [row["declared"] for row in rows if row["key"].startswith("data.")]
        wanted = (_ends(cards[base][0]), _ends(cards[arm][0]))
        for row in rows:
            if row["key"].startswith("shape.") and data and all(data):
                row["declared"] = (row["base"], row["here"]) == tuple(ends.get(row["key"]) for ends in wanted)
        for seed, other in zip(config.seeds[1:], others, strict=False):
            rows += [{**row, "seed": seed} for row in _rows(first, other, set())]
        out[arm] = rows
    return {"base": base, "arms": out, "undeclared": sum(not r["declared"] for rows in out.values() for r in rows)}


def held_fixed(config: Ablation, cards: Cards) -> Flat:
    """The keys that all runs share, of every arm and seed, with their values."""
    first, *others = [run for runs in _all(config, cards).values() for run in runs]
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}
