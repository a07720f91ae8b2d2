"""Tiny records and datasets, made by the same writers that jobs use, so that a test never has a format of its own.

`records(data, n)` are n small records of one kind; `curated(root, …)` and `encoded(root, …)` are whole datasets with cards, shard tables and commit
records; `plan(root, dataset)` is a plan of one source whose rows hold one record each. Everything follows from its arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import codec
from pipelines.format.document import fingerprint, sha256_hex
from pipelines.format.manifest import card, dataset_fingerprint, file_entry, parent, publish_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Segment, Text
from pipelines.format.shard import Shard, shard_table

WORDS = ("river", "stone", "cloud", "lamp", "field", "glass", "north", "seven")


@cache
def jpeg(seed: int, side: int = 32) -> bytes:
    """A small picture that differs for each seed."""
    from pipelines.media.images import encode_jpeg

    grid = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode_jpeg(np.kron(grid, np.ones((side // 4, side // 4, 1), dtype=np.uint8)), 90)


def words(i: int, n: int = 5) -> str:
    return " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(n))


def record(data: str, i: int, source: str = "toy") -> Record:
    """Record number i of a kind, as api and contracts draw it."""
    origin = f"file{i}.dat"
    if data == "text":
        return Record.make(source, origin, data, [Text(words(i, 20))])
    if data == "image-text":
        return Record.make(source, origin, data, [Image(jpeg(i), atom=0, shape=(32, 32, 3)), Text(words(i), atom=1, name="original")])
    if data == "video":
        frames = [Image(jpeg(i + k), atom=k, shape=(32, 32, 3), time_s=float(k)) for k in range(3)]
        return Record.make(source, f"clip{i}.mp4@ms0-3000", data, frames)
    if data == "action-video":
        context = [Image(jpeg(i + k), role="context", atom=0, shape=(32, 32, 3)) for k in range(4)]
        action = Text("action: dx=+1.000, dy=+0.000, dyaw=+0.000, rel_t=+0.100", role="context", atom=0)
        return Record.make(source, origin, data, [*context, action, Image(jpeg(i + 4), atom=0, shape=(32, 32, 3))])
    assert data == "vqa", data
    asked = [Text("Question: what is it? Answer:", role="context", atom=0, turn=0), Text(f" {WORDS[i % 8]}", atom=0, turn=0)]
    fields = {"questions": [{"turn": 0, "question": "what is it?", "answers": [WORDS[i % 8]], "type": "what"}]}
    return Record.make(source, origin, data, [Image(jpeg(i), role="context", atom=0, shape=(32, 32, 3)), *asked], fields=fields)


def records(data: str, n: int, source: str = "toy") -> Iterator[Record]:
    return (record(data, i, source) for i in range(n))


def curated(root: str, data: str = "image-text", n: int = 6, parts: int = 2, source: str = "toy") -> str:
    """A curated dataset: n records in `parts` parts, and per part one filtered and one rejected record more."""
    commits = []
    for part in range(parts):
        with PartWriter(root, part, fingerprint=fingerprint([source, data, n, part])) as w:
            for i in range(part * n // parts, (part + 1) * n // parts):
                w.emit()
                w.add(record(data, i, source))
            w.emit(2)
            w.drop(record(data, 1000 + part, source), "toy_filter", "toy_filter")
            w.reject(f"bad{part}.dat", "source", "unreadable", "no such picture")
            commits.append(w.commit())
    recipe = {"source": {"toy": {"path": "toys/"}}, "name": source}
    return seal(root, source, data, commits, recipe)


def encode(r: Record, width: int = 8) -> Record:
    """Words become ids (their place in WORDS), pictures two rows of latents that follow from their bytes."""
    out = []
    for s in r.segments:
        if s.kind == "text":
            ids = np.array([sum(w.encode()) % 50 for w in (s.text or "").split()], dtype="<u2")
            out.append(Segment("tokens", s.role, s.atom, s.turn, s.member, None, ids.tobytes(), "uint16", (len(ids),), len(ids)))
        else:
            seed = int(sha256_hex(s.payload or b"")[:8], 16)
            x = np.random.Generator(np.random.Philox(seed)).standard_normal((2, width), dtype=np.float32)
            payload = codec.encode_latents(x, "f32")
            out.append(Segment("latents", s.role, s.atom, s.turn, None, None, payload, "f32", (2, width), 2, s.time_s))
    from dataclasses import replace

    return replace(r, segments=tuple(out))


def encoded(root: str, of: str, data: str = "image-text", n: int = 6, parts: int = 2, source: str = "toy") -> str:
    """The encoded form of `curated(of, data, n, parts, source)`, same ids."""
    from pipelines.format.manifest import read_card

    commits = []
    for part in range(parts):
        with PartWriter(root, part, fingerprint=fingerprint(["encode", source, n, part]), encoded=True) as w:
            for i in range(part * n // parts, (part + 1) * n // parts):
                w.emit()
                w.add(encode(record(data, i, source)))
            commits.append(w.commit())
    specials = {"bos": 50, "eos": 51, "boi": 52, "eoi": 53, "pad": 54}
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 55, "specials": specials}}
    if data != "text":
        encoding["image"] = {"encoder": "toy", "fingerprint": "0" * 64, "tokens": 2, "width": 8, "codec": "f32"}
    parents = [parent(of, root, read_card(of)["fingerprint"])]
    return seal(root, f"{source}-encoded", data, commits, {"dataset": of}, encoding, parents)


def seal(
    root: str,
    name: str,
    data: str,
    commits: list[dict[str, Any]],
    recipe: dict[str, Any],
    encoding: dict[str, Any] | None = None,
    parents: list[dict[str, str]] | None = None,
) -> str:
    """Shard table and card over commit records."""
    shards = [Shard(**s) for c in commits for s in c["shards"]]
    table = shard_table(shards)
    entry = file_entry(root, f"shards-{sha256_hex(table)[:16]}.parquet", table)
    sums: dict[str, Counter[str]] = {key: Counter() for key in ("filtered", "rejected", "tokens")}
    for c in commits:
        for key, counter in sums.items():
            counter.update(c[key])
    facts = {
        "data": data,
        "records": sum(s.records for s in shards),
        "bytes": sum((s.tokens_bytes or 0) + (s.data_bytes or 0) + s.index_bytes for s in shards),
        "in": sum(c["in"] for c in commits),
        "written": sum(c["written"] for c in commits),
        **{key: dict(counter) for key, counter in sums.items()},
        "sources": {name: {"records": sum(s.records for s in shards), "tokens": dict(sums["tokens"])}},
        "shards": {"file": entry["path"], "sha256": entry["sha256"], "n": len(shards)},
        "files": [entry],
    }
    if encoding:
        facts["encoding"] = encoding
    whole = card("dataset", name, dataset_fingerprint(encoding, shards), recipe, parents=parents, **facts)
    publish_card(root, "manifest.json", whole)
    return root


_SPAN = pa.struct(
    [
        ("dataset", pa.int16()),
        ("source", pa.int16()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("first", pa.int16()),
        ("count", pa.int16()),
        ("caption", pa.int16()),
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("image_first", pa.bool_()),
        ("loss", pa.list_(pa.bool_())),
        ("epoch", pa.int16()),
    ]
)


def plan(root: str, of: str, source: str = "toy") -> str:
    """A plan whose row k holds record k of the dataset, whole: enough to follow a record into a plan."""
    from pipelines.format.dataset import Dataset

    dataset = Dataset.open(of)
    rows = []
    for i in range(len(dataset.shards)):
        for row, r in enumerate(dataset.records(i)):
            n = sum(s.tokens for s in r.segments)
            count = len(r.segments)
            span = {
                "dataset": 0,
                "source": 0,
                "shard": i,
                "row": row,
                "first": 0,
                "count": count,
                "caption": -1,
                "start": 0,
                "stop": n,
                "image_first": True,
            }
            span |= {"loss": [True] * count, "epoch": 0}
            rows.append({"seq": len(rows), "stage": 0, "length": n + 2, "payload": n, "cost": 1.0, "spans": [span]})
    schema = pa.schema(
        [
            ("seq", pa.int64()),
            ("stage", pa.int16()),
            ("length", pa.int32()),
            ("payload", pa.int32()),
            ("cost", pa.float32()),
            ("spans", pa.list_(_SPAN)),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    entry = file_entry(root, "sequences-00000.parquet", sink.getvalue().to_pybytes())
    above = [parent(of, root, dataset.fingerprint)]
    named = {source: {"wanted": 10, "taken": 10, "available": 10, "epochs": 1.0, "records": len(rows)}}
    facts = {"records": len(rows), "sources": named, "files": [entry], "tokens": {"all": sum(r["payload"] for r in rows)}}
    facts["datasets"] = [{"path": above[0]["path"], "fingerprint": dataset.fingerprint}]
    publish_card(root, "plan.json", card("plan", "toy-plan", fingerprint(rows), {"sequence_length": 64}, parents=above, **facts))
    return root
