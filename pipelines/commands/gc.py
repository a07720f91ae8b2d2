"""Remove rubbish: scratch files of dead jobs and files that no commit record or card names. Never what is committed.

    pipelines gc PATH [--dry-run] [--older-than SECONDS] [--snapshots [--in DIR]]

A file that a living job has published and not yet committed looks like rubbish, so nothing younger than an hour goes unless
`--older-than` says so. What an older snapshot of a dataset names stays, since a plan may have pinned it; with `--snapshots` all but the newest
go, and the plans below `--in` that pinned one are named: they must be made again.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from pipelines.committed import committed, snapshots
from pipelines.format import storage
from pipelines.format.errors import InputError
from pipelines.format.storage import join
from pipelines.terminal import say, size

# Only what jobs make under these names is ever looked at: a file that somebody put into the folder is theirs.
OURS = ("data-", "tokens-", "latents-", "index-", "shards-", "stats-", "tombstones-", "rejects/", "moments/", "files-")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    parser.add_argument("--older-than", type=float, default=3600.0, metavar="SECONDS", help="leave younger files alone (default: 3600)")
    parser.add_argument("--snapshots", action="store_true", help="remove a dataset's older snapshots too")
    parser.add_argument("--in", dest="within", default=".", metavar="DIR", help="with --snapshots: where to look for plans (default: here)")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    if not storage.exists(args.path):
        raise InputError("nothing is here", where=args.path)
    files = storage.listing(args.path)
    asked = getattr(args, "snapshots", False)
    dropped = snapshots(args.path) if asked and storage.exists(join(args.path, "manifest.json")) else []
    old = frozenset(card["card_file"] for card in dropped)
    kept = committed(args.path, [name for name, _, _ in files], old)
    now = time.time()
    removed: list[dict[str, Any]] = []
    young = 0
    for name, nbytes, tag in files:
        scratch = f"/{storage.TMP}/" in f"/{name}"
        if not scratch and (name in kept or not (name.startswith(OURS) or name in old)):
            continue
        # Object stores give no time in their tag: there the only uncommitted files are whole ones of a job that died or still runs.
        age = now - int(tag) / 1e9 if storage.is_local(args.path) else None
        if name not in old and args.older_than > (age if age is not None else 0.0):
            young += 1
            continue
        removed.append({"file": name, "bytes": nbytes})
        if not args.dry_run:
            storage.delete(join(args.path, name))
    if not args.dry_run:
        for folder in {name.partition(f"{storage.TMP}/")[0] for name, _, _ in files if f"/{storage.TMP}/" in f"/{name}"}:
            storage.sweep(join(args.path, folder))
    total = sum(row["bytes"] for row in removed)
    told = {"path": args.path, "dry_run": args.dry_run, "removed": removed, "bytes": total, "too_young": young}
    return told | ({"snapshots": _told(dropped, args.within)} if asked else {})


def _told(dropped: list[dict[str, Any]], within: str) -> list[dict[str, Any]]:
    """Each snapshot that goes, and the plans that pinned it."""
    from pipelines import uses

    out = []
    for card in dropped:
        found = uses.descendants(within, card["fingerprint"])
        plans = [child["path"] for child in found if child["kind"] == "plan" and card["fingerprint"] in str(child["card"].get("datasets"))]
        out.append({"fingerprint": card["fingerprint"], "records": card.get("records"), "plans": plans})
    return out


def show(answer: dict[str, Any]) -> None:
    for row in answer["removed"]:
        say(row["file"])
    for snapshot in answer.get("snapshots", []):
        pinned = f"; pinned by {', '.join(snapshot['plans'])}, which must be planned again" if snapshot["plans"] else ""
        say(f"snapshot {snapshot['fingerprint'][:16]}: {snapshot['records']} records{pinned}")
    verb = "would go" if answer["dry_run"] else "removed"
    young = f"; {answer['too_young']} younger ones left alone (--older-than 0 takes them)" if answer["too_young"] else ""
    say(f"{len(answer['removed'])} files, {size(answer['bytes'])} {verb}{young}", stderr=True)
