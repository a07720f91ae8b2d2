"""Follow one record from its file or URL to the training steps that saw it.

pipelines trace RECORD_ID PATH         PATH: a dataset, a plan, a run or an ablation; the trail ends there
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from pipelines import look, uses
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
        if step is not None:
            holders.append((entry, step))
            trail.append(step)
    if not holders:
        raise InputError("no dataset on the way to this artifact holds this record", where=args.path, found=args.id)
    trail.insert(0, _source(holders[0][0], holders[0][1]))
    plans = [e for e in chain if e.get("kind") == "plan" and e["found"] == "yes"]
    runs = [e for e in chain if e.get("kind") == "run" and e["found"] == "yes"]
    for entry in plans:
        plan = read_card(entry["path"])
        hits = _in_plan(plan, holders)
        trail.append({"at": "plan", "path": entry["path"], "spans": hits[:SHOWN], "n": len(hits)})
        for run in runs:
            trail += _in_run(run, entry, hits)
    return {"id": args.id, "path": args.path, "trail": trail}


def _in_dataset(entry: dict[str, Any], id: str) -> dict[str, Any] | None:
    try:
        dataset = Dataset.open(entry["path"], entry["fingerprint"] or None)
    except HeadwaterError:
        return None
    found = look.find(dataset, id)
    if found is None:
        return None
    r = found.record
    told = {"name": dataset.card["name"], "part": dataset.shards[found.shard].part, "shard": found.shard, "row": found.row}
    counts = {"tokens": sum(s.tokens for s in r.segments), "segments": len(r.segments)}
    return {"at": "dataset", "path": entry["path"], **told, "origin": r.origin, "url": r.url, "group": r.group, **counts}


def _source(entry: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """Where it came from: the URL, or the file below the path that the recipe's source names."""
    recipe = read_card(entry["path"]).get("recipe") or {}
    source = recipe.get("source")
    kind, fields = next(iter(source.items())) if isinstance(source, dict) and source else (None, {})
    told: dict[str, Any] = {"at": "source", "kind": kind, "origin": step["origin"]}
    if step["url"]:
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
    if plan["fingerprint"] not in {parent["fingerprint"] for parent in lineage(entry["path"], run)}:
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
            say(f"dataset  {step['path']}: part {step['part']}, shard {step['shard']}, row {step['row']}, {step['tokens']} tokens")
        elif step["at"] == "plan":
            say(f"plan     {step['path']}: {step['n']} spans" + ("" if step["spans"] else ", so it was not drawn"))
            for hit in step["spans"]:
                say(f"           {hit['split']} sequence {hit['seq']}, tokens {hit['start']}:{hit['stop']}, epoch {hit['epoch']}")
        else:
            named = ", ".join(map(str, step["steps"]))
            say(f"run      {step['path']}: " + (f"{step['n']} steps saw it ({named})" if step["n"] else "no step saw it"))
