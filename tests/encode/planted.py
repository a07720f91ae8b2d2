"""Damage that no hash tells: an encoded dataset written again, well formed in every way, with other latents or ids in some places."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.format.codec import decode_latents, encode_latents
from pipelines.format.dataset import Dataset
from pipelines.format.manifest import dataset_fingerprint, file_entry
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from pipelines.format.shard import Shard, shard_table

Change = Callable[[list[Record]], list[Record]]


def planted(encoded: str, out: str, change: Change) -> str:
    """The dataset at `encoded` with its records changed, part by part and with payloads in memory, as a dataset at `out` beside it."""
    old = Dataset.open(encoded)
    shards: list[Shard] = []
    for part in sorted({s.part for s in old.shards}):
        commit = json.loads((Path(encoded) / "parts" / f"{part:05d}.json").read_text())
        records = [r for i, s in enumerate(old.shards) if s.part == part for r in old.records(i, payloads=True)]
        with PartWriter(out, part, fingerprint=commit["fingerprint"], encoded=True) as w:
            for record in change(records):
                w.emit()
                w.add(record)
            shards += [Shard(**s) for s in w.commit(commit["stats"])["shards"]]
    card = json.loads((Path(encoded) / "manifest.json").read_text())
    kept = [f for f in card["files"] if not f["path"].startswith("shards-")]
    for f in kept:
        shutil.copy(Path(encoded) / f["path"], Path(out) / f["path"])
    table = shard_table(shards)
    entry = file_entry(out, f"shards-{len(table)}.parquet", table)
    card |= {"shards": {"file": entry["path"], "sha256": entry["sha256"], "n": len(shards)}, "files": [entry, *kept]}
    card["fingerprint"] = dataset_fingerprint(card["encoding"], shards)
    (Path(out) / "manifest.json").write_text(json.dumps(card))
    return out


def latents(s: Segment) -> np.ndarray:
    return decode_latents(s.payload or b"", str(s.dtype), *s.shape)


def with_latents(s: Segment, x: np.ndarray) -> Segment:
    return replace(s, payload=encode_latents(x, str(s.dtype)), offset=None)


def with_segment(record: Record, k: int, s: Segment) -> Record:
    return replace(record, segments=(*record.segments[:k], s, *record.segments[k + 1 :]))
