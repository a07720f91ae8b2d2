"""Who has used records of a dataset, whatever snapshot they pinned: its descendants, sequences of plans, steps of runs, arms of ablations.

In: a dataset and what is looked for. Out: plain rows. A record has one place in each snapshot, since rewriting moves rows and appending adds shards,
so every snapshot that is still there is looked at; of one that was erased only its descendants can be named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines import uses
from pipelines.committed import snapshots
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import HeadwaterError
from pipelines.format.forgotten import rows_named
from pipelines.tombstones import SCHEMA

Places = dict[int, list[int]]  # shard → rows


@dataclass(slots=True)
class Matched:
    """Where the records lie in each snapshot, by its fingerprint, and their ids."""

    dataset: Dataset
    places: dict[str, Places] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    erased: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Places:
        """In the newest snapshot."""
        return self.places[self.dataset.fingerprint]


def matched(dataset: Dataset, asked: dict[str, list[Any]]) -> Matched:
    """The records that any of `asked` names (lists of id, url, sha256, phash), in every snapshot of the dataset."""
    rows = [{key: value} for key, values in asked.items() for value in values]
    stones = pa.Table.from_pylist(rows, schema=SCHEMA)
    gone = set(dataset.card.get("erased") or [])
    out = Matched(dataset, erased=sorted(gone))
    looked: dict[str, list[int]] = {}  # an index that several snapshots have is read once
    for card in [dataset.card, *(c for c in snapshots(dataset.path) if c["fingerprint"] not in gone)]:
        found = dataset if card is dataset.card else Dataset(dataset.path, card)
        places = out.places[found.fingerprint] = {}
        try:
            for i, shard in enumerate(found.shards):
                if shard.index not in looked:
                    looked[shard.index] = rows_named(found, i, stones)[0].tolist() if rows else []
                    if looked[shard.index]:
                        out.ids |= set(found.index(i, ["id"])["id"].take(looked[shard.index]).to_pylist())
                    found.release(i)
                if looked[shard.index]:
                    places[i] = looked[shard.index]
        except HeadwaterError:
            if found is dataset:
                raise
    return out


def used_by(found: Matched, within: str) -> list[dict[str, Any]]:
    """Every descendant below the folder `within`; for plans the number of spans that hold the records, for runs the steps that read them, for
    ablations the runs that did and their arms."""
    children: dict[str, dict[str, Any]] = {}
    for fingerprint in [*found.places, *found.erased]:
        for child in uses.descendants(within, fingerprint):
            children.setdefault(child["path"], child)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for child in children.values():
        by_kind.setdefault(child["kind"], []).append(child)
    datasets = by_kind.get("dataset", [])
    below = [found, *(matched(Dataset.open(d["path"]), {"id": sorted(found.ids)}) for d in datasets)]
    rows = [{"kind": "dataset", "path": d["path"], "next": f"pipelines forget {d['path']}"} for d in datasets]
    hits: dict[str, list[int]] = {}
    for plan in by_kind.get("plan", []):
        seqs, problem = _sequences(plan["card"], below)
        hits[plan["card"]["fingerprint"]] = seqs
        rows.append({"kind": "plan", "path": plan["path"], "spans": len(seqs), **problem})
    runs = [_run(run, hits) for run in by_kind.get("run", [])]
    rows += runs
    for ablation in by_kind.get("ablation", []):
        root = storage.absolute(ablation["path"]).rstrip("/") + "/"
        inside = [storage.absolute(r["path"])[len(root) :] for r in runs if r["steps"] and storage.absolute(r["path"]).startswith(root)]
        arms = sorted({name.split("/")[1] for name in inside if name.startswith("arms/")})
        rows.append({"kind": "ablation", "path": ablation["path"], "runs": len(inside), "arms": arms})
    return rows


def _run(run: dict[str, Any], hits: dict[str, list[int]]) -> dict[str, Any]:
    above = {parent["fingerprint"] for parent in run["card"].get("parents") or []}
    done = run["card"].get("steps")
    steps = {uses.step_of(run["card"], seq) for plan, seqs in hits.items() if plan in above for seq in seqs} - {None}
    read = {step for step in steps if done is None or step is None or step < done}
    return {"kind": "run", "path": run["path"], "steps": len(read)}


def _sequences(plan: dict[str, Any], below: list[Matched]) -> tuple[list[int], dict[str, Any]]:
    """Training sequences of a plan that hold the records, once for each span; and what could not be looked at."""
    seqs: dict[tuple[Any, ...], int] = {}  # the two datasets of a dual encoder name the same spans
    problem: dict[str, Any] = {}
    pinned = {entry["fingerprint"] for entry in plan.get("datasets") or plan.get("parents") or []}
    for one in below:
        if pinned & set(one.erased):
            problem = {"problem": "pins an erased snapshot: plan again"}
        for fingerprint in sorted(pinned & set(one.places)):
            number = uses.number_in(plan, one.dataset.path, fingerprint)
            if number is not None:
                places = [(i, row) for i, rows in one.places[fingerprint].items() for row in rows]
                found = (hit for hit in uses.spans(plan, number, places) if hit["split"] == "train")
                seqs |= {(number, *(hit[k] for k in ("seq", "shard", "row", "first", "start", "epoch"))): hit["seq"] for hit in found}
    return list(seqs.values()), problem
