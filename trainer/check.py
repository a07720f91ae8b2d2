"""What `pipelines verify` asks of runs and ablations: bytes as the card says, tokens as the plan says, parents as they were.

`check(path, options)` → [{"file", "what"}]; empty is good. `options["deep"]` also hashes checkpoints and descends from an ablation into its runs.
"""

from __future__ import annotations

from typing import Any

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import HeadwaterError
from pipelines.format.manifest import parent_path, read_card
from trainer import ledger
from trainer.stood_in import noted

Problem = dict[str, str]


def check(path: str, options: dict[str, Any] | None = None) -> list[Problem]:
    """Problems of the run or ablation at `path`."""
    deep = bool((options or {}).get("deep"))
    card = read_card(path)
    found = [p for entry in card.get("files", []) if (p := _file(path, entry, deep)) is not None]
    found += [p for entry in card.get("parents", []) if (p := _parent(card, entry)) is not None]
    if card["kind"] == "run":
        found += _tokens(path, card) + _checkpoints(path, deep)
    elif deep:
        for arm in card["arms"].values():
            for place in arm["runs"].values():
                run = storage.resolve(place, storage.absolute(path))
                if storage.exists(storage.join(run, "run.json")):
                    found += [{"file": storage.join(place, p["file"]), "what": p["what"]} for p in check(run, options)]
    return found


def _file(root: str, entry: dict[str, Any], deep: bool) -> Problem | None:
    place = storage.join(root, entry["path"])
    if not storage.exists(place):
        return {"file": entry["path"], "what": "the file is missing"}
    size = storage.size(place)
    if size != entry["bytes"]:
        return {"file": entry["path"], "what": f"{size:,} bytes, the card says {entry['bytes']:,}"}
    if deep and sha256_hex(storage.read(place)) != entry["sha256"]:
        return {"file": entry["path"], "what": "its bytes differ from the card's sha256"}
    return None


def _parent(card: dict[str, Any], entry: dict[str, str]) -> Problem | None:
    place = parent_path(card, entry)
    try:
        found = read_card(place)["fingerprint"]
    except HeadwaterError:
        return {"file": entry["path"], "what": "what this was made of is no longer there"}
    if found != entry["fingerprint"]:
        return {"file": entry["path"], "what": "what this was made of has changed since"}
    return None


def _tokens(path: str, card: dict[str, Any]) -> list[Problem]:
    """Consumed payload tokens by source against the plan's, up to the run's last step."""
    place = parent_path(card, card["parents"][0])
    if not storage.exists(storage.join(place, "plan.json")) or noted(path):  # stand-ins may hold fewer tokens than what they stand for
        return []
    plan = Plan.open(place)
    if card["steps"] * card["recipe"]["batch"] >= plan.sequences():
        planned = {name: int(source["tokens"]["all"]) for name, source in plan.card["sources"].items()}
    else:
        planned = ledger.tokens(plan, card["steps"], card["recipe"]["batch"])
    out = []
    for name, source in card["sources"].items():
        consumed, wanted = int(source["tokens"]["all"]), planned.get(name, 0)
        if consumed != wanted:
            out.append({"file": "run.json", "what": f"{name}: {consumed:,} tokens consumed, {wanted:,} planned"})
    return out


def _checkpoints(path: str, deep: bool) -> list[Problem]:
    """Checkpoints whose marker stands but whose pieces are not what it says."""
    folder = storage.join(path, "checkpoints")
    if not storage.exists(folder):
        return []
    out = []
    for marker in [p for p, _, _ in storage.listing(folder) if p.endswith("/complete.json")]:
        step = marker.rpartition("/")[0]
        for entry in storage.read_json(storage.join(folder, marker))["files"]:
            problem = _file(storage.join(folder, step), entry, deep)
            if problem is not None:
                out.append({"file": f"checkpoints/{step}/{problem['file']}", "what": problem["what"]})
    return out
