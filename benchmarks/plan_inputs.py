"""Indexes of encoded datasets of any size, and nothing behind them: what a planner reads, made in columns, a million records in some seconds.

The field's synthetic mix: a quarter of the records each texts (log-normal), pairs (an image of 256 tokens and a caption), clips of 4 to 15 frames
of 256 tokens, questions on an image. Shards of 20,000 texts or 10,000 records with images. Everything that a planner reads is as it would be
(ids, hashes, groups, atoms, token counts, bytes; segments of questions); the other columns are null, and data files do not exist.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format.chance import group_hashes
from pipelines.format.document import fingerprint, sha256_hex
from pipelines.format.index import INDEX_SCHEMA
from pipelines.format.manifest import card, publish_card
from pipelines.format.part import FORMAT
from pipelines.format.shard import SHARD_SCHEMA

KINDS = {"text": "text", "pairs": "image-text", "clips": "video", "vqa": "vqa"}
IMAGE, WIDTH = 256, 1152
PER_SHARD = {"text": 20_000, "pairs": 10_000, "clips": 10_000, "vqa": 10_000}
ENCODING = {
    "text": {"tokenizer_sha256": "0", "vocab": 50_005, "specials": {"bos": 50_000, "eos": 50_001, "boi": 50_002, "eoi": 50_003, "pad": 50_004}},
    "image": {"encoder": "siglip2", "fingerprint": "0", "tokens": IMAGE, "width": WIDTH, "codec": "bf16"},
}


def make(root: Path, records: int, processes: int = 2) -> dict[str, Path]:
    """Four datasets that hold `records` in all, below `root`; those that are there are left as they are."""
    made = {}
    with ProcessPoolExecutor(processes) as pool:
        for name in KINDS:
            made[name] = root / name
            if not (root / name / "manifest.json").exists():
                _dataset(pool, root / name, name, records // 4)
    return made


def _dataset(pool: ProcessPoolExecutor, root: Path, name: str, n: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    size = PER_SHARD[name]
    counts = [min(size, n - first) for first in range(0, n, size)]
    rows = list(pool.map(partial(_shard, root, name), range(len(counts)), counts))
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    file = f"shards-{sha256_hex(data)[:16]}.parquet"
    (root / file).write_bytes(data)
    text, visual = (sum(r[k] for r in rows) for k in ("text_tokens", "visual_tokens"))
    identity = fingerprint({"format": FORMAT, "rows": sha256_hex(data)})
    encoding = ENCODING if name != "text" else {"text": ENCODING["text"]}
    tokens = {"text": text, "visual": visual, "loss": sum(r["loss_tokens"] for r in rows), "all": text + visual}
    facts: dict[str, Any] = {"data": KINDS[name], "records": n, "tokens": tokens, "bytes": 0, "encoding": encoding}
    facts |= {"shards": {"file": file, "sha256": sha256_hex(data), "n": len(rows)}, "files": []}
    facts |= {"in": n, "written": n, "filtered": {}, "rejected": {}}
    publish_card(str(root), "manifest.json", card("dataset", name, identity, {}, sources={}, **facts))


def _shard(root: Path, name: str, part: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng([list(KINDS).index(name), part])
    digest = rng.integers(0, 1 << 63, (n, 2), np.uint64)
    ids = _hex(digest)
    text, frames = np.zeros(n, np.int64), np.zeros(n, np.int64)
    segments: Any = pa.nulls(n, INDEX_SCHEMA.field("segments").type)
    if name == "text":
        text = np.clip(rng.lognormal(6.2, 1.1, n), 8, 60_000).astype(np.int64)
        start, atoms, images = np.arange(n + 1), text, np.zeros(n, np.int64)
        in_atom = np.ones(n, np.int64)
        loss = text
    elif name == "pairs":
        text, frames = np.clip(rng.lognormal(3.3, 0.6, n), 2, 256).astype(np.int64), np.ones(n, np.int64)
        start, atoms = np.arange(n + 1) * 2, np.stack([np.full(n, IMAGE), text], 1).ravel()
        images, in_atom = np.tile([1, 0], n), np.ones(2 * n, np.int64)
        loss = text + IMAGE
    elif name == "clips":
        frames = rng.integers(4, 16, n)
        start = np.concatenate([[0], np.cumsum(frames)])
        atoms, images, in_atom = (np.full(int(start[-1]), k) for k in (IMAGE, 1, 1))
        loss = frames * IMAGE
    else:
        question, answer = rng.integers(6, 40, n), rng.integers(1, 30, n)
        text, frames, loss = question + answer, np.ones(n, np.int64), answer
        start, atoms, images, in_atom = np.arange(n + 1), text + IMAGE, np.ones(n, np.int64), np.full(n, 3)
        segments = _conversations(question, answer)
    columns: dict[str, Any] = {
        "id": ids, "group": ids, "h": digest[:, 0], "group_h": group_hashes(ids.to_pylist()), "data": pa.array([KINDS[name]] * n),
        "n_segments": np.add.reduceat(in_atom, start[:-1]),
        "text_tokens": text, "visual_tokens": frames * IMAGE, "loss_tokens": loss, "nbytes": frames * IMAGE * WIDTH * 2 + text * 2,
        "atoms": (start, atoms), "atom_segments": (start, in_atom), "atom_images": (start, images), "segments": segments,
    }  # fmt: skip
    arrays = []
    for field in INDEX_SCHEMA:
        value = columns.get(field.name)
        if value is None:
            value = pa.nulls(n, field.type)
        elif isinstance(value, tuple):
            value = pa.ListArray.from_arrays(pa.array(value[0], pa.int32()), pa.array(value[1], pa.int32()))
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), sink, compression="zstd", compression_level=3, row_group_size=10_000)
    data = sink.getvalue()
    file = f"index-{part:05d}-{fingerprint([name, part])[:16]}.parquet"
    (root / file).write_bytes(data)
    said = {"part": part, "tokens_file": "tokens.bin", "tokens_bytes": 0, "tokens_sha256": "0", "data": None, "data_bytes": None, "data_sha256": None}
    said |= {"index": file, "index_bytes": data.size, "index_sha256": "0", "records": n, "first_row": 0}
    return said | {"text_tokens": int(text.sum()), "visual_tokens": int(frames.sum() * IMAGE), "loss_tokens": int(loss.sum())}


def _hex(digest: np.ndarray) -> pa.Array:
    """[n, 2] uint64 → 32 hex digits each."""
    n = len(digest)
    digits = np.frombuffer(digest.astype("<u8").tobytes(), np.uint8).reshape(n, 16)
    table = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), np.uint8).reshape(256, 2)
    text = np.ascontiguousarray(table[digits].reshape(n, 32))
    offsets = pa.array(np.arange(n + 1) * 32, pa.int32())
    return pa.StringArray.from_buffers(n, offsets.buffers()[1], pa.py_buffer(text))


def _conversations(question: np.ndarray, answer: np.ndarray) -> pa.Array:
    """An image, a question, its answer: kinds, roles, turns and counts."""
    n = len(question)
    kind = INDEX_SCHEMA.field("segments").type.value_type
    tokens = np.stack([np.full(n, IMAGE), question, answer], 1).ravel()
    given = {
        "kind": pa.array(["latents", "tokens", "tokens"] * n), "role": pa.array(["context", "context", "target"] * n),
        "atom": pa.array(np.zeros(3 * n, np.int16)), "turn": pa.array(np.tile([-1, 0, 0], n), pa.int16()), "tokens": pa.array(tokens, pa.int32()),
    }  # fmt: skip
    arrays = [given.get(f.name, pa.nulls(3 * n, f.type)).cast(f.type) for f in kind]
    structs = pa.StructArray.from_arrays(arrays, fields=list(kind))
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * 3, pa.int32()), structs)
