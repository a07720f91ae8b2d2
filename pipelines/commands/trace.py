"""Follow one record from its file or URL to the training steps that saw it.

pipelines trace RECORD_ID PATH         PATH: a dataset, a plan, a run or an ablation; the trail ends there
pipelines inspect RUN --step 120       the other way round: which records were in this step; `inspect PLAN --seq 17`: in this sequence
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from pipelines import look, passage, uses
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import read_card
from pipelines.summary import lineage
from pipelines.terminal import say, short

SHOWN = 20  # spans and steps that are named; all are counted


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="RECORD_ID", help="32 hex digits, as inspect and view show them")
    parser.add_argument("path", metavar="PATH")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    card = read_card(args.path)
    chain = [{"path": card["path"], "fingerprint": card["fingerprint"], "kind": card["kind"], "found": "yes"}, *lineage(args.path, card)]
    chain = list({entry["path"]: entry for entry in chain}.values())  # the same artifact may be an ancestor by several ways
    trail: list[dict[str, Any]] = []
    holders = []
    for entry in reversed([e for e in chain if e.get("kind") == "dataset"]):  # oldest first
        step = _in_dataset(entry, args.id)
        if step is not None and step["at"] == "dataset":
            holders.append((entry, step))
        trail += [step] if step is not None else []
    if not trail:
        raise InputError("no dataset on the way to this artifact holds this record or dropped it", where=args.path, found=args.id)
    if holders:
        trail = _derived_from(chain, holders[0][1]) + trail
    origin = next(step for step in trail if step.get("origin"))
    trail.insert(0, _source(next(e for e in chain if e["path"] == origin["path"]), origin))
    plans = [e for e in chain if e.get("kind") == "plan" and e["found"] == "yes"]
    runs = [e for e in chain if e.get("kind") == "run" and e["found"] == "yes"]
    arms = _arms(card)
    for entry in plans:
        plan = read_card(entry["path"])
        hits = _in_plan(plan, holders)
        trail.append({"at": "plan", "path": entry["path"], "spans": hits[:SHOWN], "n": len(hits), **arms.get(storage.absolute(entry["path"]), {})})
        for run in runs:
            trail += [step | arms.get(storage.absolute(run["path"]), {}) for step in _in_run(run, entry, hits)]
    return {"id": args.id, "path": args.path, "trail": trail}


def _arms(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of an ablation: which plan and which run is whose, by place."""
    here, out = storage.absolute(card["path"]), {}
    for name, arm in (card.get("arms") or {}).items() if card["kind"] == "ablation" else ():
        out[storage.resolve(arm["plan"], here)] = {"arm": name}
        out |= {storage.resolve(place, here): {"arm": name, "seed": seed} for seed, place in arm["runs"].items()}
    return out


def _in_dataset(entry: dict[str, Any], id: str) -> dict[str, Any] | None:
    """Where the record lies in a dataset and what it passed there, or where it was dropped; None when neither."""
    try:
        dataset = Dataset.open(entry["path"], entry["fingerprint"] or None)
    except HeadwaterError:
        return None
    found = look.find(dataset, id)
    if found is None:
        lost = passage.dropped(dataset.path, id)
        return None if lost is None else {"at": "dropped", "path": entry["path"], "name": dataset.card["name"], **lost}
    r = found.record
    told = {"name": dataset.card["name"], "part": dataset.shards[found.shard].part, "shard": found.shard, "row": found.row}
    counts = {"tokens": sum(s.tokens for s in r.segments), "segments": len(r.segments)}
    told |= {"origin": r.origin, "url": r.url, "group": r.group, "source": r.source, "through": passage.steps(dataset.card.get("recipe") or {})}
    return {"at": "dataset", "path": entry["path"], **told, **counts}


def _derived_from(chain: list[dict[str, Any]], step: dict[str, Any]) -> list[dict[str, Any]]:
    """A record made of another (`~k` at the end of its origin) has an id of its own; the trail of the other one, where a dataset holds that."""
    id = passage.before(step["source"], step["origin"])
    if id is None:
        return []
    above = [_in_dataset(e, id) for e in reversed(chain) if e.get("kind") == "dataset" and e["path"] != step["path"]]
    return [s | {"id": id} for s in above if s is not None and s["at"] == "dataset"]


def _source(entry: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """Where it came from: the URL, or the file below the path that the recipe's source names."""
    recipe = read_card(entry["path"]).get("recipe") or {}
    source = recipe.get("source")
    kind, fields = next(iter(source.items())) if isinstance(source, dict) and source else (None, {})
    told: dict[str, Any] = {"at": "source", "kind": kind, "origin": step["origin"]}
    if step.get("url"):
        told["url"] = step["url"]
    root = fields.get("path") if isinstance(fields, dict) else None
    if isinstance(root, str):
        file = storage.join(root, re.split(r"[#!@~]", step["origin"], maxsplit=1)[0])
        told |= {"file": file, "there": storage.exists(file)}
    return told


def _in_plan(plan: dict[str, Any], holders: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = []
    for entry, step in holders:
        number = uses.number_in(plan, entry["path"], entry["fingerprint"])
        if number is not None:
            hits += uses.spans(plan, number, [(step["shard"], step["row"])])
    return sorted(hits, key=lambda hit: (hit["split"], hit["seq"]))


def _in_run(entry: dict[str, Any], plan: dict[str, Any], hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    run = read_card(entry["path"])
    if plan["fingerprint"] not in {parent["fingerprint"] for parent in run["parents"]}:  # not those of the run whose weights it began with
        return []
    done = run.get("steps")
    steps = sorted({s for hit in hits if hit["split"] == "train" and (s := uses.step_of(run, hit["seq"])) is not None})
    seen = [s for s in steps if not isinstance(done, int) or s < done]
    return [{"at": "run", "path": entry["path"], "steps": seen[:SHOWN], "n": len(seen), "planned": len(steps)}]


def show(answer: dict[str, Any]) -> None:
    for step in answer["trail"]:
        if step["at"] == "source":
            where = step.get("url") or step.get("file") or step["origin"]
            gone = "  (no longer there)" if step.get("there") is False else ""
            say(f"source   {step['kind'] or '?'}: {short(where)}{gone}")
        elif step["at"] == "dataset":
            other = f", as {step['id']}, which this record was made of" if "id" in step else ""
            say(f"dataset  {step['path']}: part {step['part']}, shard {step['shard']}, row {step['row']}, {step['tokens']} tokens{other}")
            if step["through"]:
                say(f"           through {', '.join(step['through'])}")
        elif step["at"] == "dropped":
            why = f": {short(step['error'])}" if step["error"] else ""
            say(f"dropped  {step['path']}: part {step['part']}, {step['outcome']} by {step['stage']} ({step['reason']}){why}")
        elif step["at"] == "plan":
            spans = "1 span" if step["n"] == 1 else f"{step['n']:,} spans" if step["n"] else "not drawn, or held out beyond what is kept"
            say(f"plan     {_arm(step)}{step['path']}: {spans}")
            for hit in step["spans"]:
                say(f"           {hit['split']} sequence {hit['seq']}, tokens {hit['start']}:{hit['stop']}, epoch {hit['epoch']}")
        else:
            named = ", ".join(map(str, step["steps"]))
            say(f"run      {_arm(step)}{step['path']}: " + (f"{step['n']:,} steps saw it ({named})" if step["n"] else "no step saw it"))


def _arm(step: dict[str, Any]) -> str:
    seed = f", seed {step['seed']}" if "seed" in step else ""
    return f"arm {step['arm']}{seed}: " if "arm" in step else ""
