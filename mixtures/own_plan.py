"""The plan over a materialised dataset: the first plan's rows, its spans pointing at the copies.

In: the first plan and the dataset of its spans. Out: `sequences-*.parquet`, `heldout-*.parquet` and `plan.json` in the same form as any plan's.
Figures are the first plan's, less what was forgotten since; rows without a forgotten span are the same to the bit.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.materialise import VERSION, Materialise, opened_rows
from mixtures.plan import Plan
from mixtures.plan_file import SCHEMA, SPLITS, RowWriter, list_files
from mixtures.units import expand
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, fingerprint, sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.part import commit_path


def publish_plan(config: Materialise, plan: Plan, root: str, dataset: Dataset, parts: int) -> str:
    """Write the plan at `root` over `dataset`, part by part; one that is there already for the same bytes is left as it is. Returns `root`."""
    asked = config.identity(plan)
    identity = fingerprint({"asked": asked, "dataset": dataset.fingerprint})
    refuse_other_recipe(root, "plan.json", asked)
    path = storage.join(root, "plan.json")
    if storage.exists(path) and storage.read_json(path)["fingerprint"] == identity:
        return root
    shards = {part: list(mine) for part, mine in groupby(range(len(dataset.shards)), key=lambda i: dataset.shards[i].part)}
    writers = {split: RowWriter(root, split) for split in SPLITS}
    lost: dict[str, dict[str, Counter[str]]] = {split: {} for split in SPLITS}
    forgotten: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for part in range(parts):
        commit = storage.read_json(commit_path(dataset.path, part))
        split = commit["stats"]["split"]
        moved = _moved(dataset, commit)
        writers[split].add(_rows(plan, commit, moved, dataset, shards.get(part, [])))
        for name, sums in commit["stats"]["lost"].items():
            lost[split].setdefault(name, Counter()).update(sums)
            forgotten.setdefault((split, name), set()).update(_forgotten(plan, commit, moved, name))
    for (split, name), records in forgotten.items():
        lost[split][name]["records"] = len(records)
    files = [f for split in SPLITS for f in writers[split].close()]
    entries, more = list_files(root, files)
    encoding = dict(plan.card["encoding"])
    if said := encoding.get("stats"):
        entries.append(file_entry(root, said["file"], _same_bytes(storage.join(plan.path, said["file"]), said["sha256"])))
    facts = {k: plan.card[k] for k in ("sequence_length", "count", "mixture")} | _figures(plan, lost)
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


def _moved(dataset: Dataset, commit: dict[str, Any]) -> pa.Table:
    """Where each span of a part went."""
    name = commit["stats"]["rows"]
    digest = next(f["sha256"] for f in commit["files"] if f["path"] == name)
    return pq.read_table(pa.BufferReader(_same_bytes(storage.join(dataset.path, name), digest)))


def _same_bytes(path: str, digest: str) -> bytes:
    data = storage.read(path)
    if sha256_hex(data) != digest:
        raise VerifyError("a file differs from what names it", where=path, next="remove it, and run the same command again")
    return data


def _rows(plan: Plan, commit: dict[str, Any], moved: pa.Table, dataset: Dataset, shards: list[int]) -> pa.Table:
    """The plan's rows of one part, its spans pointing into the dataset; a forgotten one is not there."""
    file, first, stop = opened_rows(plan, commit["stats"])
    a, b = int(file.start[first]), int(file.start[stop])
    to = {name: moved[name].to_numpy() for name in moved.column_names}
    kept = to["row"] >= 0
    at = np.flatnonzero(kept) + a
    starts = np.array([dataset.shards[i].first_row for i in shards] or [0])
    local = np.searchsorted(starts, to["row"][kept], side="right") - 1
    bits = file.bit_start[at + 1] - file.bit_start[at]
    spans = {
        **{name: file.spans[name][at] for name in ("source", "count", "image_first", "epoch")},
        **{name: to[name][kept] for name in ("first", "caption", "start", "stop")},
        "dataset": np.zeros(len(at), np.int16),
        "shard": np.array(shards or [0])[local],
        "row": to["row"][kept] - starts[local],
    }
    row = np.repeat(np.arange(stop - first), np.diff(file.start[first : stop + 1]))
    count = lambda weights: np.bincount(row, weights=weights, minlength=stop - first)
    payload = (file.spans["stop"][a:b] - file.spans["start"][a:b]).astype(np.int64)
    gone = to["lost"].astype(np.float64)
    rows = {name: file.rows[name][first:stop] for name in ("seq", "stage")}
    rows["length"] = file.rows["length"][first:stop] - count(gone).astype(np.int64)
    rows["payload"] = file.rows["payload"][first:stop] - count(np.where(kept, 0, payload)).astype(np.int64)
    rows["cost"] = (file.rows["cost"][first:stop] - count(gone + gone**2 / plan.sequence_length)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(count(kept))]).astype(np.int32)
    flat = file.bits[expand(file.bit_start[at], file.bit_start[at + 1])[0]]
    loss = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(bits)]), pa.int32()), pa.array(flat))
    fields = list(SCHEMA.field("spans").type.value_type)
    structs = pa.StructArray.from_arrays([loss if f.name == "loss" else pa.array(spans[f.name], f.type) for f in fields], fields=fields)
    lists = pa.ListArray.from_arrays(pa.array(offsets), structs)
    return pa.Table.from_arrays([lists if f.name == "spans" else pa.array(rows[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def _forgotten(plan: Plan, commit: dict[str, Any], moved: pa.Table, source: str) -> set[tuple[int, ...]]:
    """The forgotten records of a source in a part: dataset, shard, row."""
    file, first, _ = opened_rows(plan, commit["stats"])
    at = np.flatnonzero(moved["row"].to_numpy() < 0) + int(file.start[first])
    at = at[file.spans["source"][at] == plan.sources.index(source)]
    return set(zip(*(file.spans[k][at].tolist() for k in ("dataset", "shard", "row")), strict=True))


def _figures(plan: Plan, lost: dict[str, dict[str, Counter[str]]]) -> dict[str, Any]:
    """What the card counts, overall and by source: the first plan's figures without what is gone."""
    sources = {name: _source(entry, lost, name, plan.card["count"]) for name, entry in plan.card["sources"].items()}
    gone = {split: sum(lost[split].values(), Counter()) for split in SPLITS}
    structure = plan.card["structure"] - gone["train"]["structure"]
    tokens = _less(plan.card["tokens"], gone["train"])
    space = plan.card["records"] * plan.sequence_length
    held = plan.card["heldout"]
    return {
        "records": plan.card["records"],
        "sources": sources,
        "tokens": tokens,
        "structure": structure,
        "padding": space - structure - tokens["all"],
        "fill": round((structure + tokens["all"]) / space, 6) if space else 0.0,
        "heldout": held | {"tokens": _less(held["tokens"], gone["heldout"]), "structure": held["structure"] - gone["heldout"]["structure"]},
    }


def _source(entry: dict[str, Any], lost: dict[str, dict[str, Counter[str]]], name: str, count: str) -> dict[str, Any]:
    out, gone = {**entry, "dataset": 0}, lost["train"].get(name, Counter())
    if gone:
        taken = entry["taken"] - gone["begun" if count == "records" else count]
        out |= {k: entry[k] - gone[k] for k in ("spans", "structure", "continued", "records")}
        out |= {"taken": taken, "tokens": _less(entry["tokens"], gone), "loss_tokens": entry["loss_tokens"] - gone["loss"]}
        out |= {"epochs": round(taken / entry["available"], 6) if entry["available"] else 0.0}
    if (held := entry.get("heldout")) and (gone := lost["heldout"].get(name, Counter())):
        out["heldout"] = held | {"records": held["records"] - gone["records"], "tokens": _less(held["tokens"], gone)}
    return out


def _less(tokens: dict[str, int], gone: Counter[str]) -> dict[str, int]:
    return {k: n - gone[k] for k, n in tokens.items()}
