"""Where records of a dataset are used: which datasets, plans and runs descend from it, and which sequences and steps hold a record.

In: cards. Out: plain rows. A plan is read from the files that its card names, by columns: which model or mixture made it does not
matter here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import HeadwaterError
from pipelines.format.manifest import CARDS, parent_path, read_card
from pipelines.summary import lineage

Place = tuple[int, int]  # shard and row


_AT = ("dataset", "shard", "row")


def spans(plan: dict[str, Any], dataset: int, places: Iterable[Place]) -> Iterator[dict[str, Any]]:
    """The spans of a plan that lie in records at these places of its dataset number `dataset`: {split, seq, …the span}.

    Three leaves of the nested column are read; the rest of a file only where one of its spans is meant. A file whose statistics show that no span
    lies in these shards is not read at all."""
    import numpy as np

    wanted = np.array(sorted(shard << 32 | row for shard, row in places), dtype=np.int64)
    for name, split in _row_files(plan):
        file = _parquet(plan, name)
        for group in range(file.num_row_groups):
            if len(wanted) and _may_hold(file.metadata.row_group(group), dataset, int(wanted[0]) >> 32, int(wanted[-1]) >> 32):
                yield from ({"split": split, **hit} for hit in _hits(file, group, dataset, wanted))


def _row_files(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, split) of a plan's files of rows, also where the card names a table of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    more = plan.get("row_files")
    listed = pq.read_table(pa.BufferReader(storage.read(storage.join(plan["path"], more["file"])))).to_pylist() if more else []
    for entry in [*plan["files"], *listed]:
        split = {"sequences": "train", "heldout": "heldout"}.get(entry["path"].partition("-")[0])
        if split is not None and entry["path"].endswith(".parquet"):
            yield entry["path"], split


def _parquet(plan: dict[str, Any], name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(storage.map_file(storage.join(plan["path"], name)))))


def _may_hold(group: Any, dataset: int, first: int, last: int) -> bool:
    """Whether the least and the largest dataset and shard number of a row group leave room for these shards."""
    for k in range(group.num_columns):
        column = group.column(k)
        low, high = {"dataset": (dataset, dataset), "shard": (first, last)}.get(column.path_in_schema.rpartition(".")[2], (None, None))
        known = column.statistics if low is not None else None
        if known is not None and known.has_min_max and (known.min > high or known.max < low):
            return False
    return True


def _hits(file: Any, group: int, dataset: int, wanted: Any) -> Iterator[dict[str, Any]]:
    import numpy as np

    column = file.read_row_group(group, columns=[f"spans.list.element.{k}" for k in _AT])["spans"].combine_chunks()
    flat = column.flatten()
    at = {k: np.asarray(flat.field(k)).astype(np.int64) for k in _AT}
    hit = np.flatnonzero((at["dataset"] == dataset) & np.isin(at["shard"] << 32 | at["row"], wanted))
    if len(hit):
        whole = file.read_row_group(group, columns=["seq", "spans"])
        owner = np.searchsorted(np.asarray(column.offsets), hit + int(column.offsets[0].as_py()), "right") - 1
        items = whole["spans"].combine_chunks().flatten()
        yield from ({"seq": whole["seq"][row].as_py(), **items[i].as_py()} for i, row in zip(hit.tolist(), owner.tolist(), strict=True))


def sequences(plan: dict[str, Any], first: int, last: int, split: str = "train") -> Iterator[dict[str, Any]]:
    """Rows [first, last) of a split, each span with the `id` of its record and the name of its source; files hold 4,096 rows (C8)."""
    ids: dict[tuple[int, int], list[str]] = {}
    stem = {"train": "sequences", "heldout": "heldout"}[split]
    for number in range(first // 4096, -(-last // 4096)):
        table = _parquet(plan, f"{stem}-{number:05d}.parquet").read()
        begin = max(first - number * 4096, 0)
        for row in table.slice(begin, min(last - number * 4096, table.num_rows) - begin).to_pylist():
            for span in row["spans"]:
                span |= {"id": _id(plan, span, ids), "source": sorted(plan["sources"])[span["source"]]}
            yield row


def _id(plan: dict[str, Any], span: dict[str, Any], known: dict[tuple[int, int], list[str]]) -> str | None:
    """None where the dataset is gone: what a plan says of itself can still be read."""
    place = (span["dataset"], span["shard"])
    if place not in known:
        entry = (plan.get("datasets") or plan["parents"])[span["dataset"]]
        try:
            dataset = Dataset.open(parent_path(plan, entry), entry["fingerprint"])
            known[place] = dataset.index(span["shard"], ["id"])["id"].to_pylist()
        except HeadwaterError:
            known[place] = []
    return known[place][span["row"]] if span["row"] < len(known[place]) else None


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


def stood_in(run: dict[str, Any], id: str) -> list[dict[str, Any]]:
    """Where a run read another record than its plan names, and this record was the one forgotten or the one that came: {seq, step, forgotten, id}.
    A run that was started again after more was forgotten has several such files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for name, _, _ in storage.listing(run["path"], (".parquet",)):
        if name.startswith("stand-ins-"):
            rows += pq.ParquetFile(pa.BufferReader(storage.read(storage.join(run["path"], name)))).read(["seq", "forgotten", "id"]).to_pylist()
    mine = {(r["seq"], r["forgotten"], r["id"] or "") for r in rows if id in (r["forgotten"], r["id"])}
    return [{"seq": seq, "step": step_of(run, seq), "forgotten": gone, "id": came or None} for seq, gone, came in sorted(mine)]


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
