"""Show single records: texts, picture sizes, token ids; a plan's sequences; a run's last figures; entries of a list.

pipelines inspect PATH [-n 5] [--skip 0]
pipelines inspect PATH --id ID
pipelines inspect PATH --dropped [--reason R]        what filters and whole-dataset stages dropped (a recipe with `keep_dropped: true`)
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines import look
from pipelines.entries import read_entries
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from pipelines.format.part import dropped_path
from pipelines.terminal import say, short, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--id", metavar="ID", help="this record of a dataset")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument("--skip", type=int, default=0, metavar="K", help="pass over the first K")
    parser.add_argument("--dropped", action="store_true", help="records that the recipe dropped, each with its reason")
    parser.add_argument("--reason", metavar="R", help="of those only what was dropped for R, or R.…: gopher_quality, c4.policy")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    card = read_card(args.path)
    if args.dropped or args.reason is not None:
        card = _dropped(args, card)
        args.path = card["path"]
    head = {"kind": card["kind"], "path": args.path}
    if args.id is not None and card["kind"] != "dataset":
        raise InputError("--id finds records of a dataset", where=args.path, found=card["kind"], next=f"pipelines trace {args.id} {args.path}")
    if card["kind"] == "dataset":
        return head | {"records": _records(args)}
    if card["kind"] == "plan":
        return head | {"sequences": _rows(card, "sequences-", args)}
    if card["kind"] == "run":
        return head | {"metrics": _last_lines(card, args.n)}
    if card["kind"] == "ablation":
        return head | {"results": _rows(card, "results", args)}
    if card["kind"] == "entries":
        return head | {"entries": read_entries(card["path"])[args.skip : args.skip + args.n]}
    return head | {"card": {key: value for key, value in card.items() if key not in ("path", "card_file")}}


def _dropped(args: argparse.Namespace, card: dict[str, Any]) -> dict[str, Any]:
    """The card of what was dropped from this dataset; of the one named, where that is such a dataset itself."""
    if card["kind"] != "dataset":
        raise InputError("only a dataset has dropped records", where=args.path, found=card["kind"], next="give the path of a curated dataset")
    path = dropped_path(card["path"])
    if storage.exists(storage.join(path, "manifest.json")):
        return read_card(path)
    if card["name"].endswith("(dropped)"):
        return card
    if not card.get("filtered"):
        found = f"{card['in']} in, {card['written']} written"
        raise InputError("nothing was dropped from this dataset", where=args.path, found=found, next="what was rejected: pipelines stats")
    raise InputError(
        "what was dropped from this dataset was not kept",
        where=args.path,
        found=_counts(card["filtered"]),
        next="run its recipe again with `keep_dropped=true` (the dataset stays as it is)",
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))


def _for_reason(dataset: Dataset, reason: str, n: int, skip: int) -> Iterator[look.Found]:
    """The n records after the first `skip` that were dropped for this reason, or for one below it."""
    seen: Counter[str] = Counter()
    wanted = 0
    for found in look.first(dataset, sum(s.records for s in dataset.shards)):
        why = str(found.record.fields.get("dropped"))
        seen[why] += 1
        if why == reason or why.startswith(f"{reason}."):
            wanted += 1
            if skip < wanted <= skip + n:
                yield found
            if wanted >= skip + n:
                return
    if not wanted:
        raise InputError("nothing was dropped for this reason", where="--reason", found=reason, allowed=_counts(seen))


def _records(args: argparse.Namespace) -> list[dict[str, Any]]:
    dataset = Dataset.open(args.path)
    words = look.tokenizer(dataset) if dataset.encoding else None
    if args.reason is not None and args.id is None:
        return [look.plain(dataset, found, words) for found in _for_reason(dataset, args.reason, args.n, args.skip)]
    if args.id is None:
        return [look.plain(dataset, found, words) for found in look.first(dataset, args.n, args.skip)]
    found = look.find(dataset, args.id)
    if found is None:
        raise InputError("there is no record of this id", where=args.path, found=args.id, next=f"pipelines inspect {args.path}")
    return [look.plain(dataset, found, words)]


def _rows(card: dict[str, Any], prefix: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the Parquet files that a card names, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    skip = args.skip
    for entry in card["files"]:
        if not (entry["path"].startswith(prefix) and entry["path"].endswith(".parquet")) or len(rows) >= args.n:
            continue
        found = pq.read_table(pa.BufferReader(storage.read(storage.join(card["path"], entry["path"]))))
        part = found.slice(min(skip, found.num_rows), args.n - len(rows))
        skip = max(0, skip - found.num_rows)
        rows += part.to_pylist()
    return rows


def _last_lines(card: dict[str, Any], n: int) -> list[dict[str, Any]]:
    where = storage.join(card["path"], "metrics.jsonl")
    lines = storage.read(where).splitlines()[-n:] if storage.exists(where) else []
    return [json.loads(line) for line in lines]


def show(answer: dict[str, Any]) -> None:
    if answer["kind"] == "dataset":
        for record in answer["records"]:
            _show_record(record)
    elif answer["kind"] == "plan":
        for row in answer["sequences"]:
            say(f"sequence {row['seq']}: {row['length']} positions, {row['payload']} payload tokens, {len(row['spans'])} spans")
            columns = ["dataset", "source", "shard", "row", "first", "count", "start", "stop", "epoch"]
            table("", columns, [[span[c] for c in columns] for span in row["spans"]])
    elif answer["kind"] == "entries":
        for entry in answer["entries"]:
            say(short(entry))
    elif "card" in answer:
        table(answer["path"], ["", ""], [[key, short(value, 100)] for key, value in answer["card"].items()])
    else:
        rows = answer.get("metrics") or answer.get("results") or []
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table(answer["path"], columns, [[_figure(row.get(c)) for c in columns] for row in rows])


def _figure(x: Any) -> Any:
    return f"{x:.4g}" if isinstance(x, float) else x


def _scores(scores: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items()))


def _show_record(record: dict[str, Any]) -> None:
    say(f"{record['id']}  {record['data']} from {record['source']}: {short(record['origin'])}")
    if "dropped" in record.get("fields", {}):
        say(f"  dropped by: {record['fields']['dropped']}")
    for key in ("group", "licence", "url", "scores", "fields"):
        if key in record and not (key == "group" and record["group"] == record["id"]):
            say(f"  {key}: {_scores(record[key]) if key == 'scores' else short(record[key], 160)}")
    for i, s in enumerate(record["segments"]):
        what = [s["kind"], s["role"]]
        what += [f"atom {s['atom']}"] if "atom" in s else []
        what += [f"turn {s['turn']}"] if "turn" in s else []
        what += [f"{s['time_s']:.1f} s"] if "time_s" in s else []
        what += ["×".join(map(str, s["shape"]))] if s.get("shape") else []
        what += [f"{s['tokens']} tokens"] if s.get("tokens") else []
        text = s.get("text")
        said = f" “{short(text, 160)}”" if text else f" {s['ids']}" if "ids" in s else f" {s['member']}" if s.get("member") else ""
        say(f"  {i:3} {', '.join(what)}{said}")
    say()
