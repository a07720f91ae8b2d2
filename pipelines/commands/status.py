"""Say how far a job is, from the parts it has committed: works while it runs, after it died, and on any machine.

pipelines status PATH
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

from pipelines.format import storage
from pipelines.format.errors import InputError
from pipelines.format.manifest import CARDS
from pipelines.format.part import net
from pipelines.format.storage import join
from pipelines.terminal import say, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    finished = next((kind for file, kind in CARDS.items() if storage.exists(join(args.path, file))), None)
    if not storage.exists(args.path) and finished is None:
        raise InputError("nothing is here", where=args.path, next="the `output` of a recipe is what to name")
    parts = _parts(args.path)
    sums: dict[str, Counter[str]] = {key: Counter() for key in ("filtered", "rejected", "tokens")}
    for part in parts:
        for key, counter in sums.items():
            counter.update(net(part)["rejected"] if key == "rejected" else part[key])
    events = _events(args.path)
    total = next((e["parts"] for e in reversed(events) if isinstance(e.get("parts"), int)), None)
    return {
        "path": args.path,
        "finished": finished is not None,
        "kind": finished,
        "parts": {"committed": len(parts), **({"of": total} if total is not None else {})},
        "in": sum(net(part)["in"] for part in parts),
        "written": sum(part["written"] for part in parts),
        **{key: dict(sorted((+counter).items())) if key == "rejected" else dict(sorted(counter.items())) for key, counter in sums.items()},
        "last_commit_seconds_ago": _age(args.path),
        "log": events[-3:],
    }


def _parts(path: str) -> list[dict[str, Any]]:
    return [storage.read_json(join(path, "parts", name)) for name in _names(join(path, "parts"))]


def _names(folder: str) -> list[str]:
    try:
        return [name for name, _, _ in storage.listing(folder, (".json",))]
    except InputError:
        return []


def _age(path: str) -> float | None:
    """Seconds since the newest commit record, where the store's tag is a time (local files)."""
    try:
        tags = [tag for _, _, tag in storage.listing(join(path, "parts"), (".json",)) if tag.isdigit()]
    except InputError:
        return None
    return round(time.time() - max(map(int, tags)) / 1e9, 1) if tags and storage.is_local(path) else None


def _events(path: str) -> list[dict[str, Any]]:
    """What log.jsonl says; half a line at its end is a line that is being written."""
    import json

    where = join(path, "log.jsonl")
    found = []
    for line in storage.read(where).splitlines() if storage.exists(where) else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [event for event in found if isinstance(event, dict)]


def show(answer: dict[str, Any]) -> None:
    done = answer["parts"]
    of = f" of {done['of']}" if "of" in done else ""
    rows: list[list[Any]] = [["finished", "yes" if answer["finished"] else "no"], ["parts committed", f"{done['committed']}{of}"]]
    if answer["last_commit_seconds_ago"] is not None:
        rows.append(["last commit", f"{answer['last_commit_seconds_ago']} s ago"])
    rows += [["in", answer["in"]], ["written", answer["written"]]]
    rows += [[f"filtered: {reason}", n] for reason, n in answer["filtered"].items()]
    rows += [[f"rejected: {reason}", n] for reason, n in answer["rejected"].items()]
    rows += [[f"tokens: {kind}", n] for kind, n in answer["tokens"].items() if n]
    table(answer["path"], ["", ""], rows)
    if not answer["finished"]:
        say("the command that made it, said again, continues")
