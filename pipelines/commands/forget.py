"""Forget records: tombstones that planners and trainers honour, and who has used them so far.

    pipelines forget DATASET --id ID … | --url URL … | --sha256 HEX … | --phash N … | --ids FILE   [--reason TEXT] [--in DIR] [--dry-run]

Writes `tombstones-HASH.parquet` and a card that names it; plans that pin this dataset see them from then on. Lists the shards that hold
the records, and every dataset, plan and run below `--in` that descends from this one, with the number of its uses. The bytes themselves
stay; `pipelines run compact` makes a dataset without them, and only the parts that hold them when it has run before.
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import uses
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError
from pipelines.format.manifest import file_entry, publish_card, read_card
from pipelines.format.storage import join
from pipelines.terminal import say

KEYS = ("id", "url", "sha256", "phash")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DATASET")
    for key in KEYS:
        parser.add_argument(f"--{key}", action="append", default=[], metavar=key.upper(), type=int if key == "phash" else str)
    parser.add_argument("--ids", metavar="FILE", help="a text file with one record id a line")
    parser.add_argument("--reason", default="asked", metavar="TEXT", help="kept with each tombstone (default: asked)")
    parser.add_argument("--in", dest="within", default=".", metavar="DIR", help="where to look for plans and runs (default: here)")
    parser.add_argument("--dry-run", action="store_true", help="list what is affected, write nothing")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    asked = {key: list(getattr(args, key)) for key in KEYS}
    if args.ids:
        asked["id"] += [line.strip() for line in storage.read(args.ids).decode().splitlines() if line.strip()]
    if not any(asked.values()):
        raise InputError("nothing to forget was named", where="the command line", allowed="--id, --url, --sha256, --phash or --ids")
    dataset = Dataset.open(args.path)
    places = _places(dataset, asked)
    told = {
        "path": args.path,
        "dry_run": args.dry_run,
        "records": sum(len(rows) for rows in places.values()),
        "shards": [{"index": dataset.shards[i].index, "data": dataset.shards[i].data, "records": len(rows)} for i, rows in places.items()],
        "used_by": _used_by(dataset, places, args.within),
    }
    if not args.dry_run:
        told["tombstones"] = _write(dataset, asked, args.reason)
    return told


def _places(dataset: Dataset, asked: dict[str, list[Any]]) -> dict[int, list[int]]:
    """Shard number → rows that match any of what was asked."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[int, list[int]] = {}
    keys = [key for key in KEYS if asked[key]]
    for i in range(len(dataset.shards)):
        table = dataset.index(i, keys)
        hit = np.zeros(table.num_rows, dtype=bool)
        for key in keys:
            column = table[key]
            hit |= pc.is_in(column, value_set=pa.array(asked[key], type=column.type)).to_numpy(zero_copy_only=False).astype(bool)
        if hit.any():
            found[i] = np.flatnonzero(hit).tolist()
    return found


def _used_by(dataset: Dataset, places: dict[int, list[int]], within: str) -> list[dict[str, Any]]:
    """Every descendant; for plans the number of spans that hold the records, for runs the steps that read them."""
    spots = [(i, row) for i, rows in places.items() for row in rows]
    ids = {id for i, rows in places.items() for id in dataset.index(i, ["id"])["id"].take(rows).to_pylist()}
    found = uses.descendants(within, dataset.fingerprint)
    hits: dict[str, list[int]] = {}
    rows = []
    for child in found:
        if child["kind"] == "plan":
            seqs = _sequences(child["card"], dataset, spots, ids, found)
            hits[child["card"]["fingerprint"]] = seqs
            rows.append({"kind": "plan", "path": child["path"], "spans": len(seqs)})
        elif child["kind"] == "dataset":
            rows.append({"kind": "dataset", "path": child["path"], "next": f"pipelines forget {child['path']}"})
    for child in found:
        if child["kind"] == "run":
            above = {parent["fingerprint"] for parent in child["card"].get("parents") or []}
            seqs = [seq for plan, found_seqs in hits.items() if plan in above for seq in found_seqs]
            steps = {uses.step_of(child["card"], seq) for seq in seqs}
            rows.append({"kind": "run", "path": child["path"], "steps": len(steps - {None})})
        elif child["kind"] == "ablation":
            rows.append({"kind": "ablation", "path": child["path"]})
    return rows


def _sequences(plan: dict[str, Any], dataset: Dataset, spots: list[uses.Place], ids: set[str], found: list[dict[str, Any]]) -> list[int]:
    """Training sequences of a plan that hold the records: of this dataset, or of one that was encoded from it (ids are kept)."""
    number = uses.number_in(plan, dataset.path, dataset.fingerprint)
    seqs = [hit["seq"] for hit in uses.spans(plan, number, spots) if hit["split"] == "train"] if number is not None else []
    for child in found:
        number = uses.number_in(plan, child["path"], child["card"]["fingerprint"]) if child["kind"] == "dataset" else None
        if number is not None:
            inner = _places(Dataset.open(child["path"]), {"id": sorted(ids), "url": [], "sha256": [], "phash": []}) if ids else {}
            places = [(i, row) for i, rows in inner.items() for row in rows]
            seqs += [hit["seq"] for hit in uses.spans(plan, number, places) if hit["split"] == "train"]
    return seqs


def _write(dataset: Dataset, asked: dict[str, list[Any]], reason: str) -> dict[str, Any]:
    """The tombstones so far and the new ones, in one file named by content; then the card, as its own snapshot and as the newest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    card = {key: value for key, value in read_card(dataset.path).items() if key not in ("path", "card_file")}
    schema = pa.schema([*((key, pa.string()) for key in KEYS[:3]), ("phash", pa.uint64()), ("reason", pa.string())])
    before = card.get("tombstones")
    rows = pq.read_table(pa.BufferReader(storage.read(join(dataset.path, before["file"])))).to_pylist() if before else []
    known = {tuple(row[key] for key in KEYS) for row in rows}
    for key in KEYS:
        for value in asked[key]:
            row = {k: (value if k == key else None) for k in KEYS}
            if tuple(row.values()) not in known:
                known.add(tuple(row.values()))
                rows.append({**row, "reason": reason})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    entry = file_entry(dataset.path, f"tombstones-{sha256_hex(data)[:16]}.parquet", data)
    card["tombstones"] = {"file": entry["path"], "sha256": entry["sha256"], "n": len(rows)}
    card["files"] = [e for e in card["files"] if not e["path"].startswith("tombstones-")] + [entry]
    for name in (f"manifest-{card['fingerprint'][:16]}.json", "manifest.json"):
        publish_card(dataset.path, name, card)
    storage.sweep(dataset.path)
    return card["tombstones"]


def show(answer: dict[str, Any]) -> None:
    for shard in answer["shards"]:
        say(f"{shard['index']}: {shard['records']} records")
    for use in answer["used_by"]:
        extra = f": {use['spans']} spans" if "spans" in use else f": {use['steps']} steps" if "steps" in use else ""
        say(f"{use['kind']} {use['path']}{extra}" + (f"  next: {use['next']} …" if "next" in use else ""))
    if "tombstones" in answer:
        say(f"{answer['tombstones']['n']} tombstones in {answer['tombstones']['file']}")
    say(f"{answer['records']} records" + (" would be forgotten" if answer["dry_run"] else " will not be drawn again"), stderr=True)
