"""From an ablation's folder (or one run's) to `Evidence`: cards, metrics, answers and the log that knows the clock."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pipelines.format import storage
from pipelines.format.manifest import parent_path, read_card
from trainer.evaluate._items import item_path
from trainer.report.evidence import Evidence, RunEvidence, curves, read_metrics, read_table


def read(root: str, card: dict[str, Any]) -> Evidence:
    """Everything an ablation's report shows. `card` is ablation.json, or what will become it."""
    runs: dict[tuple[str, int], RunEvidence] = {}
    results: list[dict[str, Any]] = []
    budgets, repeats = {}, {}
    for arm, facts in card["arms"].items():
        plan = read_card(storage.resolve(facts["plan"], storage.absolute(root)))
        counted = planned(plan)
        budgets[arm] = {name: counted[name]["payload"] for name in plan["mixture"]["sources"]}  # in the order of the YAML
        repeats[arm] = float(facts["repeats"])
        for seed, place in facts["runs"].items():
            path = storage.resolve(place, storage.absolute(root))
            runs[arm, int(seed)] = replace(read_run(path, arm, int(seed)), place=place)
            results += [{"arm": arm, "seed": int(seed), **row} for row in evaluated(path)]
    if "diff" not in card and storage.exists(storage.join(root, "diff.json")):
        card = {**card, "diff": storage.read_json(storage.join(root, "diff.json"))}
    order = {arm: i for i, arm in enumerate(dict.fromkeys(p["path"].split("/")[-2] for p in card["parents"] if "/" in p["path"]))}
    names = sorted(card["arms"], key=lambda arm: order.get(arm, len(order)))  # a card's keys are sorted when it is written; its parents are not
    seeds = sorted({seed for _, seed in runs})
    scale = float(card["recipe"].get("scale", 1))
    return Evidence(card["name"], names, seeds, results, runs, budgets, repeats, scale, card)


def evaluated(run_dir: str) -> list[dict[str, Any]]:
    """The rows of eval.json, or none."""
    place = storage.join(run_dir, "eval.json")
    return list(storage.read_json(place)["rows"]) if storage.exists(place) else []


def _metrics(run_dir: str) -> list[str]:
    """Metrics of eval.json that may have items; perplexity's are nats."""
    return sorted({"text_nats", *(str(row["metric"]) for row in evaluated(run_dir))})


def _evaluations(run_dir: str) -> list[str]:
    """The evaluations that eval.json is of. What others left beside it is of an earlier model or of other questions."""
    place = storage.join(run_dir, "eval.json")
    asked = storage.read_json(place)["evaluate"] if storage.exists(place) else []
    return [next(iter(part)) if isinstance(part, dict) else part for part in asked]


def _tables(run_dir: str) -> dict[str, Any]:
    """What the evaluations that eval.json names left under their own names."""
    return {name: t for name in _evaluations(run_dir) if (t := read_table(storage.join(run_dir, f"{name}.parquet"))) is not None}


def _table(run_dir: str, evaluation: str, name: str) -> Any:
    """A table that an evaluation leaves, or None unless eval.json is of that evaluation."""
    return read_table(storage.join(run_dir, name)) if evaluation in _evaluations(run_dir) else None


def read_run(path: str, arm: str, seed: int) -> RunEvidence:
    """One run's evidence, from its folder."""
    card = read_card(path)
    plan_path = parent_path(card, card["parents"][0])
    plan = read_card(plan_path) if storage.exists(storage.join(plan_path, "plan.json")) else None
    consumed = {name: _kinds(s) for name, s in card["sources"].items()}
    lineage = [("plan", card["parents"][0]["fingerprint"])]
    lineage += [(d["path"].rpartition("/")[2], d["fingerprint"]) for d in (plan or {}).get("parents", [])]
    lineage.append((f"run (code {card['code']['version']})", card["fingerprint"]))
    (model,) = card["recipe"]["model"]
    return RunEvidence(
        arm=arm,
        seed=seed,
        steps=int(card["steps"]),
        tokens=consumed,
        planned=planned(plan) if plan and not card["recipe"].get("steps") else consumed,  # a run told to stop early promises no more
        padding=int(card.get("padding") or 0),
        flops=card.get("flops"),
        seconds=seconds(path),
        parameters=(card.get("parameters") or {}).get("total"),
        curves=curves(read_metrics(storage.join(path, "metrics.jsonl"))),
        answers=_table(path, "vqa", "answers.parquet"),
        lineage=tuple(lineage),
        model=model,
        items={m: t for m in _metrics(path) if (t := read_table(item_path(path, m))) is not None},
        encoders=encoders((plan or {}).get("encoding") or {}),
        processes=int(card["recipe"].get("processes") or 1) * int(card["recipe"].get("nodes") or 1),
        pictures=_table(path, "samples", "samples/pictures.parquet"),
        tables=_tables(path),
    )


def encoders(encoding: dict[str, Any]) -> tuple[str, ...]:
    """ "name fingerprint" of what made a plan's latents, those that take loss first."""
    held = [encoding[side] for side in ("target", "image") if encoding.get(side)]
    return tuple(f"{e.get('encoder')} {str(e.get('fingerprint'))[:12]}" for e in held)


def planned(plan_card: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Source → kind → tokens that a plan holds for training."""
    return {name: _kinds(s) for name, s in plan_card["sources"].items()}


def _kinds(source: dict[str, Any]) -> dict[str, int]:
    tokens = source.get("tokens") or {}
    out = {"payload": int(tokens.get("all", 0))}
    if "structure" in source:
        out["structure"] = int(source["structure"])
    for kind in ("loss", "text"):
        if kind in tokens:
            out[kind] = int(tokens[kind])
    return out


def seconds(run_dir: str) -> float | None:
    """Seconds of training, added up over interruptions, from log.jsonl."""
    place = storage.join(run_dir, "log.jsonl")
    if not storage.exists(place):
        return None
    events = [json.loads(line) for line in storage.read(place).decode().splitlines() if line.strip()]
    spent = [float(e["seconds"]) for e in events if e.get("event") == "trained"]
    return sum(spent) if spent else None
