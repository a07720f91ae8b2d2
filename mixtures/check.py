"""What can be wrong with a plan, and in which file: the check behind `pipelines verify`.

In: the path of a plan and `{"deep": bool}`. Out: a row per problem. Shallow: files are there with the sizes said, datasets are the snapshots
that were planned, and every figure of the card is counted again from the rows. Deep: hashes too, no text or record used twice in a pass, no
training row from a held-out group (nor the other way round), and spans laid out anew, whose lengths must be the plan's. A deep check also finds
what is the same on both sides in any other way (`mixtures.leaks`) and leaves the figures in `options["facts"]`, where `verify` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixtures.layout import layout
from mixtures.leaks import leaks
from mixtures.mixture import HeldOut, Where
from mixtures.plan import Plan
from mixtures.plan_file import SPLITS, listed_files
from mixtures.table import read_table
from mixtures.used import row_files
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import HeadwaterError

Problem = dict[str, str]
LAID_OUT = 512  # rows of each split that a deep check lays out position by position


def check(path: str, options: dict[str, Any]) -> list[Problem]:
    """Every problem found; none when the plan is what its card says."""
    deep = bool(options.get("deep"))
    plan = Plan.open(path)
    problems = [*_files(plan, deep), *_datasets(plan)]
    if not problems:
        problems += _recount(plan)
    if not problems and deep:
        problems += [*_repeats(plan), *_groups(plan), *_lengths(plan), *_leaks(plan, options.get("facts"))]
    return problems


def _files(plan: Plan, deep: bool) -> Iterator[Problem]:
    table = plan.card.get("row_files")
    if table and not storage.exists(storage.join(plan.path, table["file"])):
        yield {"file": table["file"], "what": "is not there"}
        return
    for f in listed_files(plan.path, plan.card):
        where = storage.join(plan.path, f["path"])
        if not storage.exists(where):
            yield {"file": f["path"], "what": "is not there"}
        elif (found := storage.size(where)) != f["bytes"]:
            yield {"file": f["path"], "what": f"has {found:,} bytes, its card says {f['bytes']:,}"}
        elif deep and sha256_hex(storage.read(where)) != f["sha256"]:
            yield {"file": f["path"], "what": "its sha256 differs from the card's"}


def _datasets(plan: Plan) -> Iterator[Problem]:
    try:
        _ = plan.datasets
    except HeadwaterError as e:
        yield {"file": "plan.json", "what": f"a dataset of the plan: {e.what} ({e.where})"}


def _recount(plan: Plan) -> Iterator[Problem]:
    """Rows are numbered without gaps and fit; payload and structure add up to the card's figures, source by source."""
    for split in SPLITS:
        payload: Counter[str] = Counter()
        rows = length = 0
        for name, file in row_files(plan, split):
            if not np.array_equal(file.rows["seq"], np.arange(rows, rows + len(file))):
                yield {"file": name, "what": "its rows are not numbered one after another"}
            if (file.rows["length"] > plan.sequence_length).any():
                yield {"file": name, "what": f"a row is longer than {plan.sequence_length}"}
            rows, length = rows + len(file), length + int(file.rows["length"].sum())
            held = file.spans["stop"].astype(np.int64) - file.spans["start"]
            ends = np.concatenate([[0], np.cumsum(held)])[file.start]  # a row may be empty: all its records were forgotten
            if not np.array_equal(np.diff(ends), file.rows["payload"]):
                yield {"file": name, "what": "a row's payload is not the sum of its spans"}
            for i, source in enumerate(plan.sources):
                payload[source] += int(held[file.spans["source"] == i].sum())
        facts = plan.card if split == "train" else plan.card["heldout"]
        said = {"rows": facts["records"], "positions": facts["tokens"]["all"] + facts["structure"]}
        found = {"rows": rows, "positions": length}
        for source in plan.sources:
            entry = plan.card["sources"][source]
            entry = entry if split == "train" else entry.get("heldout", {"tokens": {"all": 0}})
            said[f"tokens of {source}"], found[f"tokens of {source}"] = entry["tokens"]["all"], payload[source]
        for what, n in said.items():
            if found[what] != n:
                yield {"file": "plan.json", "what": f"{split}: {found[what]:,} {what} counted, {n:,} said"}


def _repeats(plan: Plan) -> Iterator[Problem]:
    """Within one pass of a source no two spans hold the same part of the same record."""
    for split in SPLITS:
        columns: dict[str, list[Any]] = {}
        for _, file in row_files(plan, split):
            for key in ("source", "epoch", "dataset", "shard", "row", "first", "start", "stop", "count"):
                columns.setdefault(key, []).append(file.spans[key].astype(np.int64))
        if not columns:
            continue
        c = {key: np.concatenate(parts) for key, parts in columns.items()}
        same_record = ("source", "epoch", "dataset", "shard", "row")
        order = np.lexsort((c["start"], c["first"], *(c[k] for k in reversed(same_record))))
        a, b = order[:-1], order[1:]
        same = np.logical_and.reduce([c[k][a] == c[k][b] for k in same_record])
        cut_apart = (c["first"][a] == c["first"][b]) & (c["stop"][a] <= c["start"][b])
        atoms_apart = c["first"][a] + c["count"][a] <= c["first"][b]
        n = int((same & ~cut_apart & ~atoms_apart).sum())
        if n:
            yield {"file": f"{SPLITS[split]}-*", "what": f"{n:,} spans repeat a part of a record within one pass"}


def _leaks(plan: Plan, facts: dict[str, Any] | None) -> Iterator[Problem]:
    """One record in two datasets, on both sides; whatever else is the same is told and is no problem of the plan."""
    found = leaks(plan)
    if facts is not None:
        facts["leaks"] = found
    twice = found["ways"]["id"]
    if twice["records"]:
        ids = ", ".join(pair["train"] for pair in twice["examples"])
        yield {"file": "sequences-*", "what": f"{twice['records']:,} records are held out in another source of the plan: {ids}"}


def _groups(plan: Plan) -> Iterator[Problem]:
    """Groups stand on one side only."""
    rule = plan.card["mixture"].get("held_out")
    held = HeldOut(**rule) if rule else None
    kept = [read_table(d, held, Where()) for d in plan.datasets]
    starts = [np.cumsum([0, *(s.records for s in d.shards)]) for d in plan.datasets]
    for split in SPLITS:
        for name, file in row_files(plan, split):
            wrong = 0
            for i, table in enumerate(kept):
                mine = file.spans["dataset"] == i
                at = starts[i][file.spans["shard"][mine]] + file.spans["row"][mine]
                wrong += int((table.held[at] != (split == "heldout")).sum())
            if wrong:
                yield {"file": name, "what": f"{wrong:,} spans belong to the other side of the held-out split"}


def _lengths(plan: Plan) -> Iterator[Problem]:
    for split in SPLITS:
        n = plan.sequences(split)
        for i in sorted({round(k * (n - 1) / max(LAID_OUT - 1, 1)) for k in range(LAID_OUT)} if n else ()):
            row = plan.row(i, split)
            laid = [layout(s, plan.record(s), plan.rules(s.source), plan.specials) for s in row.spans]
            if sum(map(len, laid)) != row.length or sum(x.payload for x in laid) != row.payload:
                yield {"file": f"{SPLITS[split]}, row {i}", "what": f"lays out to {sum(map(len, laid))} positions, said {row.length}"}
