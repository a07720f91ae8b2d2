"""Show single records: texts, picture sizes, token ids; what was dropped and why; a plan's sequences; a run's last figures; entries of a list.

pipelines inspect PATH [-n 5] [--skip 0] [--chars 160]
pipelines inspect PATH --id ID
pipelines inspect PLAN --seq 17 [--split heldout]      one sequence: its documents with their records and sources
pipelines inspect RUN --step 120                       what an optimiser step of a run read: tokens by source, and its first N sequences
pipelines inspect PATH --dropped [--reason gopher_quality] [-n 10]      some dropped for each reason, then some that stayed (keep_dropped: true)
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipelines import dropped, look, uses
from pipelines.entries import read_entries
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from pipelines.look import per_frame
from pipelines.summary import lineage
from pipelines.terminal import count, say, short, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--id", metavar="ID", help="this record of a dataset")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument("--skip", type=int, default=0, metavar="K", help="pass over the first K")
    parser.add_argument("--seq", type=int, metavar="K", help="this sequence of a plan")
    parser.add_argument("--split", choices=("train", "heldout"), default="train", help="of the plan (default: train)")
    parser.add_argument("--step", type=int, metavar="S", help="what this step of a run read")
    parser.add_argument("--chars", type=int, default=160, metavar="C", help="characters shown of a text (default: 160)")
    parser.add_argument("--dropped", action="store_true", help="what the recipe dropped, N for each reason, and N of what it kept")
    parser.add_argument("--reason", metavar="R", help="of that only this reason, or all those of a filter (`c4`, `c4.curly_bracket`)")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    card = read_card(args.path)
    head = {"kind": card["kind"], "path": args.path}
    if args.id is not None and card["kind"] != "dataset":
        raise InputError("--id finds records of a dataset", where=args.path, found=card["kind"], next=f"pipelines trace {args.id} {args.path}")
    if args.seq is not None or args.step is not None:
        return head | _read_by(args, card)
    if args.dropped or args.reason is not None:
        return head | {"chars": args.chars, **_dropped(args, card)}
    if card["kind"] == "dataset":
        return head | {"chars": args.chars, "records": _records(args)}
    if card["kind"] == "plan":
        return head | {"sequences": _rows(card, "sequences-", args)}
    if card["kind"] == "run":
        return head | {"metrics": _last_lines(card, args.n)}
    if card["kind"] == "ablation":
        return head | {"results": _rows(card, "results", args)}
    if card["kind"] == "entries":
        return head | {"entries": read_entries(card["path"])[args.skip : args.skip + args.n]}
    return head | {"card": {key: value for key, value in card.items() if key not in ("path", "card_file")}}


def _read_by(args: argparse.Namespace, card: dict[str, Any]) -> dict[str, Any]:
    """One sequence of a plan, or those that a step of a run read (C8: with B sequences a step, step s reads [sB, (s+1)B))."""
    option, kind = ("--seq", "plan") if args.seq is not None else ("--step", "run")
    if card["kind"] != kind:
        raise InputError(f"{option} is asked of a {kind}", where=args.path, found=card["kind"], next=f"give the path of a {kind}")
    plan, batch, number = card, 1, args.seq
    if kind == "run":
        plan, batch, number = _plan_of(card), card["recipe"].get("batch"), args.step
        if not isinstance(batch, int) or batch < 1:
            raise InputError("the run does not say how many sequences a step reads", where=args.path, found=batch)
    n = int(plan["records"] if args.split == "train" else (plan.get("heldout") or {}).get("records", 0))
    steps = -(-n // batch)
    if not 0 <= number < steps:
        raise InputError(f"there is no such {'step' if kind == 'run' else 'sequence'}", where=args.path, found=number, allowed=f"0 to {steps - 1}")
    rows = list(uses.sequences(plan, number * batch, min((number + 1) * batch, n), args.split))
    by: dict[str, dict[str, int]] = {}
    for span in (span for row in rows for span in row["spans"]):
        counts = by.setdefault(span["source"], {"documents": 0, "tokens": 0})
        counts["documents"], counts["tokens"] = counts["documents"] + 1, counts["tokens"] + span["stop"] - span["start"]
    told = {"read": f"{'step' if kind == 'run' else 'sequence'} {number}", "n": len(rows), "by_source": dict(sorted(by.items()))}
    return told | {"sequences": rows[args.skip : args.skip + args.n]}


def _plan_of(card: dict[str, Any]) -> dict[str, Any]:
    for parent in lineage(card["path"], card):
        if parent.get("kind") == "plan" and parent["found"] == "yes":
            return read_card(parent["path"])
    raise InputError("the run's plan is no longer there", where=card["path"])


def _records(args: argparse.Namespace) -> list[dict[str, Any]]:
    dataset = Dataset.open(args.path)
    words = look.tokenizer(dataset) if dataset.encoding else None
    if args.id is None:
        return [look.plain(dataset, found, words) for found in look.first(dataset, args.n, args.skip)]
    found = look.find(dataset, args.id)
    if found is None:
        raise InputError("there is no record of this id", where=args.path, found=args.id, next=f"pipelines inspect {args.path}")
    return [look.plain(dataset, found, words)]


def _dropped(args: argparse.Namespace, card: dict[str, Any]) -> dict[str, Any]:
    """Reasons with their examples, and kept records from all over the dataset beside them."""
    if card["kind"] != "dataset":
        raise InputError("only a dataset has dropped records", where=args.path, found=card["kind"], next="give the path of a curated dataset")
    gone = dropped.beside(args.path)
    if gone is None:
        lost = ", ".join(f"{reason} {n}" for reason, n in sorted((card.get("filtered") or {}).items()))
        if not lost:
            raise InputError("nothing was dropped from this dataset", where=args.path, next=f"what was rejected: pipelines stats {args.path}")
        next = "run its recipe again with keep_dropped=true: the dataset stays as it is, only what is missing is made"
        raise InputError("what was dropped from this dataset was not kept", where=args.path, found=lost, next=next)
    told = [
        {"reason": r.reason, "dropped": r.dropped, "examples": [look.plain(gone, f) for f in r.examples]}
        for r in dropped.by_reason(gone, args.n, args.reason)
    ]
    kept = Dataset.open(args.path)
    return {"dropped": told, "kept": [look.plain(kept, found) for found in look.spread(kept, args.n)]}


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
    if "dropped" in answer:
        for r in answer["dropped"]:
            say(f"── dropped by {r['reason']}: {count(r['dropped'])}, {len(r['examples'])} shown\n")
            for record in r["examples"]:
                _show_record(record, answer["chars"])
        say(f"── kept: {len(answer['kept'])} shown\n")
    if answer["kind"] == "dataset":
        for record in answer["records"] if "records" in answer else answer["kept"]:
            _show_record(record, answer["chars"])
    elif "read" in answer:
        _show_read(answer)
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
    elif answer.get("metrics"):
        _show_metrics(answer["path"], answer["metrics"])
    else:
        rows = answer.get("results") or []
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table(answer["path"], columns, [[_figure(row.get(c)) for c in columns] for row in rows])


def _show_metrics(path: str, rows: list[dict[str, Any]]) -> None:
    """What is one figure a step as a table of steps; what is several (by source, time, layer: `text/vqa`) of the last step, a line a kind."""
    columns = list(dict.fromkeys(key for row in rows for key in row if "/" not in key))
    table(path, columns, [[_figure(row.get(c)) for c in columns] for row in rows])
    kinds: dict[str, list[str]] = {}
    for key, value in rows[-1].items():
        kind, slash, of = key.rpartition("/")
        if slash:
            kinds.setdefault(kind, []).append(f"{of} {_figure(value)}")
    if kinds:
        table(f"step {rows[-1].get('step')}", ["", ""], [[kind, "   ".join(of)] for kind, of in kinds.items()])


def _show_read(answer: dict[str, Any]) -> None:
    by = answer["by_source"]
    table(f"{answer['read']}: {count(answer['n'])} sequences", ["source", "documents", "tokens"], [[n, *c.values()] for n, c in by.items()])
    for row in answer["sequences"]:
        spans = [[s["source"], s["id"], s["stop"] - s["start"], s["start"], s["epoch"]] for s in row["spans"]]
        title = f"sequence {row['seq']}, stage {row['stage']}: {row['length']} positions, {row['payload']} tokens, cost {row['cost']:.0f}"
        table(title, ["source", "record", "tokens", "from", "pass"], spans)
    if answer["n"] > len(answer["sequences"]):
        say(f"{len(answer['sequences'])} of {count(answer['n'])} sequences shown: -n and --skip show others")


def _figure(x: Any) -> Any:
    return f"{x:.4g}" if isinstance(x, float) else x


def _scores(scores: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items()))


def _show_record(record: dict[str, Any], chars: int) -> None:
    say(f"{record['id']}  {record['data']} from {record['source']}: {short(record['origin'])}")
    for key in ("group", "licence", "url", "scores", "fields"):
        if key in record and not (key == "group" and record["group"] == record["id"]):
            told = {k: v for k, v in record[key].items() if k != "frames"} if key == "fields" else record[key]
            say(f"  {key}: {_scores(told) if key == 'scores' else short(told, 160)}")
    each = per_frame(record.get("fields", {}), len(record["segments"]))
    for i, s in enumerate(record["segments"]):
        what = [s["kind"], s["role"]]
        what += [f"atom {s['atom']}"] if "atom" in s else []
        what += [f"turn {s['turn']}"] if "turn" in s else []
        what += [f"{s['time_s']:.1f} s"] if "time_s" in s else []
        what += ["×".join(map(str, s["shape"]))] if s.get("shape") else []
        what += [f"{s['tokens']} tokens"] if s.get("tokens") else []
        text = s.get("text")
        said = f" “{short(text, chars)}”" if text else f" {s['ids']}" if "ids" in s else f" {s['member']}" if s.get("member") else ""
        say(f"  {i:3} {', '.join(what)}{said}{'  ' + each[i] if each[i] else ''}")
    say()
