"""Forget records: tombstones that planners, trainers and stages honour, who has used them so far, and shards without their bytes.

    pipelines forget DATASET --id ID … | --url URL … | --sha256 HEX … | --phash N … | --ids FILE   [--reason TEXT] [--in DIR] [--dry-run]
                     [--rewrite [--erase]] [--descendants]

Writes `tombstones-HASH.parquet` and a card that names it; plans that pin this dataset see them from then on, and are read with the next unused
records in their places. Lists the shards that hold the records, and every dataset, plan, run and ablation below `--in` that descends from any
snapshot of this one, with the number of its uses. With `--rewrite` the shards are made anew without their bytes, as a new snapshot; with
`--erase` the old snapshots' files go too, and plans that pinned them must be made again. `--descendants` does the same in every dataset that was
made of this one. Without anything to name, `--rewrite` and `--erase` finish what was named before.
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import uses
from pipelines.forgotten_uses import Matched, matched, used_by
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import NAMED_BY as KEYS
from pipelines.format.forgotten import tombstone_entry, tombstones
from pipelines.terminal import say, size


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DATASET")
    for key in KEYS:
        parser.add_argument(f"--{key}", action="append", default=[], metavar=key.upper(), type=int if key == "phash" else str)
    parser.add_argument("--ids", metavar="FILE", help="a text file with one record id a line")
    parser.add_argument("--reason", default="asked", metavar="TEXT", help="kept with each tombstone (default: asked)")
    parser.add_argument("--in", dest="within", default=".", metavar="DIR", help="where to look for datasets, plans and runs (default: here)")
    parser.add_argument("--rewrite", action="store_true", help="make the shards anew without the records' bytes, as a new snapshot")
    parser.add_argument("--erase", action="store_true", help="with --rewrite: remove the files of old snapshots; plans that pinned them fail")
    parser.add_argument("--descendants", action="store_true", help="do the same in every dataset that was made of this one")
    parser.add_argument("--dry-run", action="store_true", help="list what is affected, write nothing")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    asked = {key: list(getattr(args, key)) for key in KEYS}
    if args.ids:
        asked["id"] += [line.strip() for line in storage.read(args.ids).decode().splitlines() if line.strip()]
    dataset = Dataset.open(args.path)
    if args.erase and not args.rewrite:
        raise InputError("only what is rewritten can be erased", where="the command line", allowed="--rewrite --erase")
    if not any(asked.values()):
        stones = tombstones(dataset)
        if stones is None or not args.rewrite:
            raise InputError("nothing to forget was named", where="the command line", allowed="--id, --url, --sha256, --phash or --ids")
        asked = {key: stones[key].drop_null().to_pylist() for key in KEYS if key in stones.column_names}
    found = matched(dataset, asked)
    told: dict[str, Any] = {
        "path": args.path,
        "dry_run": args.dry_run,
        "records": sum(len(rows) for rows in found.newest.values()),
        "shards": [{"index": dataset.shards[i].index, "data": dataset.shards[i].data, "records": len(rows)} for i, rows in found.newest.items()],
        "used_by": used_by(found, args.within),
        "made_of": [{"path": path, "next": f"pipelines forget {path}"} for path in _parents(dataset)],
    }
    children = [row["path"] for row in told["used_by"] if row["kind"] == "dataset"]
    if not args.dry_run:
        told |= _forget(dataset, asked, args, [] if args.descendants else children)
        if args.descendants:
            told["descendants"] = [{"path": child, **_in_child(child, found, args)} for child in children]
            if args.erase:  # only when those that might point into its files have been made anew
                told["erased"] = _erase(dataset.path, children)
    return told


def _forget(dataset: Dataset, asked: dict[str, list[Any]], args: argparse.Namespace, others: list[str]) -> dict[str, Any]:
    """Tombstones, and what was asked for beyond them, in one dataset. `others` may point into its files."""
    from pipelines.rewriting import rewrite
    from pipelines.tombstones import add

    out: dict[str, Any] = {"tombstones": add(dataset, asked, args.reason)}
    if args.rewrite:
        out["rewritten"] = rewrite(dataset.path)
    if args.erase and not args.descendants:
        out["erased"] = _erase(dataset.path, others)
    return out


def _in_child(path: str, found: Matched, args: argparse.Namespace) -> dict[str, Any]:
    child = Dataset.open(path)
    mine = matched(child, {"id": sorted(found.ids)})
    if not mine.ids and tombstone_entry(child) is None:
        return {"records": 0}
    out = {"records": sum(map(len, mine.newest.values())), **_forget(child, {"id": sorted(mine.ids)}, args, [])}
    if args.erase:
        below = [row["path"] for fingerprint in mine.places for row in uses.descendants(args.within, fingerprint) if row["kind"] == "dataset"]
        out["erased"] = _erase(child.path, below)
    return out


def _erase(path: str, others: list[str]) -> dict[str, Any]:
    from pipelines.erasing import erase

    return erase(path, others)


def _parents(dataset: Dataset) -> list[str]:
    """The datasets that it was made of, where they are still there: the records lie in them as well."""
    from pipelines.summary import lineage

    return list(dict.fromkeys(row["path"] for row in lineage(dataset.path, dataset.card) if row.get("kind") == "dataset"))


def show(answer: dict[str, Any]) -> None:
    for shard in answer["shards"]:
        say(f"{shard['index']}: {shard['records']} records")
    for use in answer["used_by"]:
        extra = "".join(f": {use[key]} {key}" for key in ("spans", "steps", "runs") if key in use)
        extra += f", in arms {', '.join(use['arms'])}" if use.get("arms") else ""
        extra += f"  ({use['problem']})" if "problem" in use else ""
        say(f"{use['kind']} {use['path']}{extra}" + (f"  next: {use['next']} …" if "next" in use and "descendants" not in answer else ""))
    for above in answer["made_of"]:
        say(f"made of {above['path']}  next: {above['next']} …")
    for one in [answer, *answer.get("descendants", [])]:
        _show_one(one)
    say(f"{answer['records']} records" + (" would be forgotten" if answer["dry_run"] else " will not be drawn again"), stderr=True)


def _show_one(one: dict[str, Any]) -> None:
    if "tombstones" in one:
        say(f"{one['path']}: {one['tombstones']['n']} tombstones in {one['tombstones']['file']}")
    if "rewritten" in one:
        r = one["rewritten"]
        snapshot = f"snapshot {r['fingerprint'][:16]} (before: {r['before'][:16]})" if r["fingerprint"] != r["before"] else "no new snapshot"
        say(f"{one['path']}: {r['records']} records and {size(r['bytes'])} left out of {r['shards']} shards; {snapshot}")
    if "erased" in one:
        e = one["erased"]
        say(f"{one['path']}: {len(e['snapshots'])} old snapshots erased, {e['files']} files, {size(e['bytes'])}; plan again what pinned them")


