"""Where records of a dataset are used: which datasets, plans and runs descend from it, and which sequences and steps hold a record.

In: cards. Out: plain rows. A plan is read from the files that its card names, by columns: which model or mixture made it does not
matter here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.format import storage
from pipelines.format.errors import HeadwaterError
from pipelines.format.manifest import CARDS, parent_path, read_card
from pipelines.summary import lineage

Place = tuple[int, int]  # shard and row


def spans(plan: dict[str, Any], dataset: int, places: Iterable[Place]) -> Iterator[dict[str, Any]]:
    """The spans of a plan that lie in records at these places of its dataset number `dataset`: {split, seq, …the span}."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = np.array([shard << 32 | row for shard, row in places], dtype=np.int64)
    for entry in plan["files"]:
        name = entry["path"]
        split = "train" if name.startswith("sequences-") else "heldout" if name.startswith("heldout-") else None
        if split is None:
            continue
        data = pa.BufferReader(pa.py_buffer(storage.map_file(storage.join(plan["path"], name))))
        table = pq.read_table(data, columns=["seq", "spans"])
        column = table["spans"].combine_chunks()
        flat = pc.list_flatten(column)
        owner = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        key = flat.field("shard").to_numpy(zero_copy_only=False).astype(np.int64) << 32 | flat.field("row").to_numpy(zero_copy_only=False)
        hit = (flat.field("dataset").to_numpy(zero_copy_only=False) == dataset) & np.isin(key, wanted)
        for i in np.flatnonzero(hit):
            yield {"split": split, "seq": table["seq"][int(owner[i])].as_py(), **flat[int(i)].as_py()}


def number_in(plan: dict[str, Any], path: str, fingerprint: str) -> int | None:
    """The number by which a plan's spans point at the dataset with this fingerprint; of several, the one at this path. Of the two datasets of a
    dual encoder spans name the one for context images, whose rows are the other's."""
    same = [i for i, entry in enumerate(plan.get("datasets") or plan["parents"]) if entry["fingerprint"] == fingerprint]
    here = [i for i in same if parent_path(plan, (plan.get("datasets") or plan["parents"])[i]) == storage.absolute(path)]
    number = next(iter(here or same), None)
    beside = {s["target"]: s["dataset"] for s in (plan.get("sources") or {}).values() if s.get("target") is not None}
    return None if number is None else beside.get(number, number)


def step_of(run: dict[str, Any], seq: int) -> int | None:
    """The optimiser step of a run that reads training sequence `seq` (C8: with B sequences a step, step s reads [sB, (s+1)B))."""
    batch = (run.get("recipe") or {}).get("batch")
    return seq // batch if isinstance(batch, int) and batch > 0 else None


def descendants(root: str, fingerprint: str, depth: int = 6) -> list[dict[str, Any]]:
    """Every artifact below the local folder `root` that was made, directly or not, from the dataset with this fingerprint."""
    found = []
    for card_path in sorted(_cards(Path(root), depth)):
        try:
            card = read_card(str(card_path.parent))
            above = lineage(card["path"], card)
        except (HeadwaterError, KeyError):
            continue
        if any(parent["fingerprint"] == fingerprint for parent in above):
            found.append({"kind": card["kind"], "path": card["path"], "card": card})
    return found


def _cards(folder: Path, depth: int) -> Iterator[Path]:
    for child in folder.iterdir() if folder.is_dir() else []:
        if child.name in CARDS:
            yield child
        elif depth and child.is_dir() and not child.is_symlink() and not child.name.startswith((".", "_")):
            yield from _cards(child, depth - 1)
