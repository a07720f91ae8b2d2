"""Remove rubbish: scratch files of dead jobs and files that no commit record or card names. Never what is committed.

    pipelines gc PATH [--dry-run] [--older-than SECONDS]

A file that a living job has published and not yet committed looks like rubbish, so nothing younger than an hour goes unless
`--older-than` says so.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from pipelines.format import storage
from pipelines.format.errors import InputError
from pipelines.format.manifest import CARDS
from pipelines.format.storage import join
from pipelines.terminal import say, size

# Only what jobs make under these names is ever looked at: a file that somebody put into the folder is theirs.
OURS = ("data-", "tokens-", "latents-", "index-", "shards-", "stats-", "tombstones-", "rejects/", "moments/")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    parser.add_argument("--older-than", type=float, default=3600.0, metavar="SECONDS", help="leave younger files alone (default: 3600)")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    if not storage.exists(args.path):
        raise InputError("nothing is here", where=args.path)
    files = storage.listing(args.path)
    kept = committed(args.path, [name for name, _, _ in files])
    now = time.time()
    removed: list[dict[str, Any]] = []
    young = 0
    for name, nbytes, tag in files:
        scratch = f"/{storage.TMP}/" in f"/{name}"
        if not scratch and (name in kept or not name.startswith(OURS)):
            continue
        # Object stores give no time in their tag: there the only uncommitted files are whole ones of a job that died or still runs.
        age = now - int(tag) / 1e9 if storage.is_local(args.path) else None
        if args.older_than > (age if age is not None else 0.0):
            young += 1
            continue
        removed.append({"file": name, "bytes": nbytes})
        if not args.dry_run:
            storage.delete(join(args.path, name))
    if not args.dry_run:
        for folder in {name.partition(f"{storage.TMP}/")[0] for name, _, _ in files if f"/{storage.TMP}/" in f"/{name}"}:
            storage.sweep(join(args.path, folder))
    total = sum(row["bytes"] for row in removed)
    return {"path": args.path, "dry_run": args.dry_run, "removed": removed, "bytes": total, "too_young": young}


def committed(path: str, names: list[str]) -> set[str]:
    """Every file that a card, an older snapshot or a commit record of the artifact at `path` names, and those documents themselves."""
    kept = {"log.jsonl"}
    for name in names:
        if name in CARDS or (name.startswith("manifest-") and name.endswith(".json")):
            card = storage.read_json(join(path, name))
            kept |= {name, *(entry["path"] for entry in card.get("files") or [])}
            for key in ("shards", "tombstones"):
                if isinstance(card.get(key), dict):
                    kept.add(card[key]["file"])
            stats = (card.get("encoding") or {}).get("stats")
            kept |= {entry["file"] for entry in (stats, (stats or {}).get("position")) if isinstance(entry, dict) and "file" in entry}
        elif name.startswith("parts/") and name.endswith(".json"):
            kept |= {name, *(entry["path"] for entry in storage.read_json(join(path, name))["files"])}
    return kept


def show(answer: dict[str, Any]) -> None:
    for row in answer["removed"]:
        say(row["file"])
    verb = "would go" if answer["dry_run"] else "removed"
    young = f"; {answer['too_young']} younger ones left alone (--older-than 0 takes them)" if answer["too_young"] else ""
    say(f"{len(answer['removed'])} files, {size(answer['bytes'])} {verb}{young}", stderr=True)
