"""The plan over a materialised dataset: the first plan's rows, its spans pointing at the copies.

In: the first plan, the dataset of its spans and the parts it was made in. Out: `sequences-*.parquet`, `heldout-*.parquet` and `plan.json` in the
same form as any plan's. Figures are the first plan's, but for rows that tombstones have changed since; all others are the same to the bit.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.materialise import VERSION, Materialise, part_rows
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, SCHEMA, SPLITS, RowWriter, list_files, row_path
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, fingerprint, sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.part import commit_path


def publish_plan(config: Materialise, plan: Plan, root: str, dataset: Dataset, items: list[dict[str, Any]]) -> str:
    """Write the plan at `root` over `dataset`, part by part; one that is there already for the same bytes is left as it is. Returns `root`."""
    asked = config.identity(plan)
    identity = fingerprint({"asked": asked, "dataset": dataset.fingerprint})
    refuse_other_recipe(root, "plan.json", asked)
    path = storage.join(root, "plan.json")
    if storage.exists(path) and storage.read_json(path)["fingerprint"] == identity:
        return root
    shards = {part: list(mine) for part, mine in groupby(range(len(dataset.shards)), key=lambda i: dataset.shards[i].part)}
    writers = {split: RowWriter(root, split) for split in SPLITS}
    changes: dict[str, dict[str, Counter[str]]] = {split: {} for split in SPLITS}
    for item in items:
        commit = storage.read_json(commit_path(dataset.path, item["part"]))
        writers[item["split"]].add(_rows(dataset, commit, shards.get(item["part"], [])))
        for name, sums in commit["stats"]["more"].items():
            for key, n in sums.items():
                changes[item["split"]].setdefault(name, Counter())[key] += n
    for split, by_source in changes.items():
        for name, counted in by_source.items():
            counted["records"] = _records(plan, items, split, plan.sources.index(name))
    files = [f for split in SPLITS for f in writers[split].close()]
    entries, more = list_files(root, files)
    encoding = dict(plan.card["encoding"])
    if said := encoding.get("stats"):
        entries.append(file_entry(root, said["file"], _same_bytes(storage.join(plan.path, said["file"]), said["sha256"])))
    facts = {k: plan.card[k] for k in ("sequence_length", "count", "mixture")} | _figures(plan, changes)
    entry = parent(dataset.path, root, dataset.fingerprint)
    facts |= {"datasets": [entry | {"name": dataset.card["name"], "data": dataset.data}], "encoding": encoding, "files": entries}
    made = card(
        "plan",
        plan.card["name"],
        identity,
        dump(config),
        parents=[entry, parent(plan.path, root, plan.card["fingerprint"])],
        stages={"materialize": VERSION},
        recipe_fingerprint=asked,
        bytes=sum(f["bytes"] for f in files),
        **facts,
        **more,
    )
    publish_card(root, "plan.json", made)
    storage.sweep(root)
    return root


def _rows(dataset: Dataset, commit: dict[str, Any], shards: list[int]) -> pa.Table:
    """The rows of one part as its worker wrote them, with the shard and the row in it for the number of a record in the part."""
    name = commit["stats"]["rows"]
    digest = next(f["sha256"] for f in commit["files"] if f["path"] == name)
    table = pq.read_table(pa.BufferReader(_same_bytes(storage.join(dataset.path, name), digest)), schema=SCHEMA).combine_chunks()
    lists = table["spans"].combine_chunks()
    structs, kind = lists.flatten(), SCHEMA.field("spans").type.value_type
    number = structs.field("row").to_numpy()
    starts = np.array([dataset.shards[i].first_row for i in shards] or [0])
    local = np.searchsorted(starts, number, side="right") - 1
    moved = {"shard": np.array(shards or [0])[local], "row": number - starts[local]}
    columns = [pa.array(moved[f.name], f.type) if f.name in moved else structs.field(f.name) for f in kind]
    spans = pa.ListArray.from_arrays(lists.offsets, pa.StructArray.from_arrays(columns, fields=list(kind)))
    return table.set_column(table.schema.get_field_index("spans"), SCHEMA.field("spans"), spans)


def _same_bytes(path: str, digest: str) -> bytes:
    data = storage.read(path)
    if sha256_hex(data) != digest:
        raise VerifyError("a file differs from what names it", where=path, next="remove it, and run the same command again")
    return data


def _records(plan: Plan, items: list[dict[str, Any]], split: str, source: int) -> int:
    """Distinct records of a source in a split, as its rows are now."""
    now = {row.seq: row for item in items if item["split"] == split and item["changed"] for old, row in part_rows(plan, item) if row is not old}
    seen = [np.array([(s.shard << 32) + s.row for row in now.values() for s in row.spans if s.source == source], np.int64)]
    for start in range(0, plan.sequences(split), ROWS_PER_FILE):
        file = plan.file(row_path(plan.path, split, start))
        seq = np.repeat(start + np.arange(len(file)), np.diff(file.start))
        mine = (file.spans["source"] == source) & ~np.isin(seq, list(now))
        seen.append(np.unique((file.spans["shard"][mine].astype(np.int64) << 32) + file.spans["row"][mine]))
    return len(np.unique(np.concatenate(seen)))


def _figures(plan: Plan, more: dict[str, dict[str, Counter[str]]]) -> dict[str, Any]:
    """What the card counts, overall and by source: the first plan's figures, and what changed rows add to them or take away."""
    sources = {name: _source(entry, more, name, plan.card["count"]) for name, entry in plan.card["sources"].items()}
    whole: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, by_source in more.items():
        for sums in by_source.values():
            for key, n in sums.items():
                whole[split][key] += n
    held = plan.card["heldout"]
    structure, tokens = plan.card["structure"] + whole["train"]["structure"], _with(plan.card["tokens"], whole["train"])
    space = plan.card["records"] * plan.sequence_length
    return {
        "records": plan.card["records"],
        "sources": sources,
        "tokens": tokens,
        "structure": structure,
        "padding": space - structure - tokens["all"],
        "fill": round((structure + tokens["all"]) / space, 6) if space else 0.0,
        "heldout": {**held, "tokens": _with(held["tokens"], whole["heldout"]), "structure": held["structure"] + whole["heldout"]["structure"]},
    }


def _source(entry: dict[str, Any], more: dict[str, dict[str, Counter[str]]], name: str, count: str) -> dict[str, Any]:
    out = {**entry, "dataset": 0}
    if sums := more["train"].get(name):
        taken = entry["taken"] + sums["begun" if count == "records" else count]
        out |= {k: entry[k] + sums[k] for k in ("spans", "structure", "continued")}
        out |= {"taken": taken, "tokens": _with(entry["tokens"], sums), "loss_tokens": entry["loss_tokens"] + sums["loss"]}
        out |= {"records": sums["records"], "epochs": round(taken / entry["available"], 6) if entry["available"] else 0.0}
    if (held := entry.get("heldout")) and (sums := more["heldout"].get(name)):
        out["heldout"] = {**held, "records": sums["records"], "tokens": _with(held["tokens"], sums)}
    return out


def _with(tokens: dict[str, int], sums: Counter[str]) -> dict[str, int]:
    return {k: n + sums[k] for k, n in tokens.items()}
