"""Adding tombstones to a dataset: what `pipelines forget` writes before anything else.

In: ids, urls, hashes. Out: `tombstones-HASH.parquet` with the old rows first and the new ones after them, and a card that names it. A tombstone
is never taken back and keeps its number, so that who reads them can tell which came later.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from pipelines.format.forgotten import NAMED_BY
from pipelines.format.manifest import file_entry, publish_card, read_card
from pipelines.format.shard import parquet_bytes
from pipelines.format.storage import join

SCHEMA = pa.schema([*((key, pa.string()) for key in NAMED_BY[:3]), ("phash", pa.uint64()), ("reason", pa.string())])


def add(dataset: Dataset, asked: dict[str, list[Any]], reason: str) -> dict[str, Any]:
    """The tombstones so far and the new ones, in one file named by content; then the card, as its own snapshot and as the newest. Returns its entry
    {file, sha256, n}. What is named already is not named again."""
    card = {key: value for key, value in read_card(dataset.path).items() if key not in ("path", "card_file")}
    before = card.get("tombstones")
    rows = pq.read_table(pa.BufferReader(storage.read(join(dataset.path, before["file"])))).to_pylist() if before else []
    known = {tuple(row.get(key) for key in NAMED_BY) for row in rows}
    for key in NAMED_BY:
        for value in asked.get(key, []):
            row = {k: (value if k == key else None) for k in NAMED_BY}
            if tuple(row.values()) not in known:
                known.add(tuple(row.values()))
                rows.append({**row, "reason": reason})
    if before and len(rows) == before["n"]:
        return dict(before)
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA))
    entry = file_entry(dataset.path, f"tombstones-{sha256_hex(data)[:16]}.parquet", data)
    card["tombstones"] = {"file": entry["path"], "sha256": entry["sha256"], "n": len(rows)}
    card["files"] = [e for e in card["files"] if not e["path"].startswith("tombstones-")] + [entry]
    publish_snapshot(dataset.path, card)
    return dict(card["tombstones"])


def publish_snapshot(root: str, card: dict[str, Any]) -> None:
    """A dataset's card under the name of its snapshot, then as the newest: equal bytes."""
    for name in (f"manifest-{card['fingerprint'][:16]}.json", "manifest.json"):
        publish_card(root, name, card)
    storage.sweep(root)
