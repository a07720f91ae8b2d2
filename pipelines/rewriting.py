"""Shards without the bytes of forgotten records: a dataset's next snapshot.

    tombstones ──▶ shards that hold what they name ──copy the rest──▶ new shards ──▶ shard table, card (new fingerprint) ──▶ commit records

Other records keep their ids, keys, order and payload bytes; a payload that a living record shares is kept once. What changes is where in the files
they lie. Latent statistics, moments of parts and figures stay what they were: a model was trained on latents normalised by them, and they are sums
over many records. A part counts what left it as filtered `tombstone` and keeps its fingerprint, so that a resumed job does not make it anew.

New files have new names, so until the card is replaced readers see the old snapshot and after it the new one; the old one stays beside it for
plans that pinned it. Killed anywhere, the same command again finishes it: what is still to be done is read from the commit records, which are
replaced last.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build import read_commits
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.forgotten import REASON, rows_named, tombstones
from pipelines.format.index import record_of
from pipelines.format.manifest import dataset_fingerprint, file_entry, publish_card, read_card
from pipelines.format.part import REJECT_SCHEMA, commit_path
from pipelines.format.rows import RowFile
from pipelines.format.shard import Foreign, Shard, ShardWriter, shard_table
from pipelines.format.storage import join
from pipelines.tombstones import publish_snapshot

COUNTED = ["id", "origin", "source", "text_tokens", "visual_tokens", "loss_tokens"]
Commit = dict[str, Any]


def rewrite(path: str) -> dict[str, Any]:
    """Make the snapshot without what tombstones name. Returns {records, shards, bytes, fingerprint, before}; nothing is written where nothing is left
    to leave out. InputError where a shard has no commit record; VerifyError where a record's bytes are not those that its index names."""
    dataset = Dataset.open(path)
    stones = tombstones(dataset)
    before = dataset.fingerprint
    told: dict[str, Any] = {"records": 0, "shards": 0, "bytes": 0, "before": before, "fingerprint": before}
    if stones is None or not len(stones):
        return told
    pairs = []
    for commit in read_commits(dataset.path, _parts(dataset)):
        new, facts = _part(dataset, commit, stones)
        if new is not None:
            pairs.append((commit, new))
            for key, n in facts.items():
                told[key] += n
    if _card_is_old(dataset, pairs):
        told["fingerprint"] = _next_card(dataset, pairs)
    for _, new in pairs:
        storage.replace(commit_path(dataset.path, new["part"]), canon(new), scratch=dataset.path)
    storage.sweep(dataset.path)
    return told


def _parts(dataset: Dataset) -> list[int]:
    folder = join(dataset.path, "parts")
    names = storage.listing(folder, (".json",)) if storage.exists(folder) else []
    there = sorted(int(name.removesuffix(".json")) for name, _, _ in names)
    missing = {s.part for s in dataset.shards} - set(there)
    if missing:
        where = commit_path(dataset.path, min(missing))
        raise InputError("a part has no commit record, so its shards cannot be exchanged", where=where, next=f"pipelines verify {dataset.path}")
    return there


def _part(dataset: Dataset, commit: Commit, stones: pa.Table) -> tuple[Commit | None, dict[str, int]]:
    """The part's commit record as it shall be, its new files published; None where it holds nothing that is to be forgotten."""
    held = Dataset(dataset.path, dataset.card)
    held.__dict__["shards"] = [Shard(**s) for s in commit["shards"]]
    shards: list[dict[str, Any]] = []
    files = {f["path"]: f for f in commit["files"]}
    gone: list[dict[str, Any]] = []
    changed = 0
    for k, shard in enumerate(held.shards):
        rows, _ = rows_named(held, k, stones)
        if not len(rows):
            shards.append(commit["shards"][k])
            continue
        changed += 1
        gone += held.index(k, COUNTED).take(rows).to_pylist()
        made, new = _shard(held, k, frozenset(rows.tolist()))
        for name in (shard.tokens_file, shard.data, shard.index):
            files.pop(name or "", None)
        files |= {f["path"]: f for f in new}
        shards += [made.as_dict()] if made is not None else []
        held.release(k)
    if not gone:
        return None, {}
    was = [f for name, f in files.items() if name.startswith("rejects/")]
    rejects = _rejects(dataset.path, commit["part"], [f["path"] for f in was], gone)
    listed = [f for f in files.values() if f not in was] + [rejects]
    new_commit = {**commit, "files": listed, "shards": shards, **_counts(commit, gone)}
    freed = sum(f["bytes"] for f in commit["files"]) - sum(f["bytes"] for f in listed)
    return new_commit, {"records": len(gone), "shards": changed, "bytes": freed}


def _shard(dataset: Dataset, k: int, gone: frozenset[int]) -> tuple[Shard | None, list[dict[str, Any]]]:
    """A shard without some rows: (its row of the table, its files); nothing where no row is left. Pictures that lie in another dataset's file stay
    there, and only the rows that name them go."""
    shard = dataset.shards[k]
    foreign = Foreign(shard.data, shard.data_bytes, shard.data_sha256) if shard.data is not None and (shard.borrowed or shard.foreign) else None
    with ShardWriter(dataset.path, shard.part, shard.first_row, dataset.encoding is not None, foreign) as writer:
        for n, row in enumerate(dataset.rows(k)):
            if n in gone:
                continue
            if shard.borrowed and not shard.foreign:
                writer.keep(row)
                continue
            found = writer.add(dataset.with_payloads(k, record_of(row)), row["key"])
            if found != row["sha256"]:
                raise VerifyError(
                    "a record's bytes are not those that its index names",
                    where=f"record {row['id']} in {join(dataset.path, shard.data or shard.tokens_file or shard.index)}",
                    found=found,
                    allowed=row["sha256"],
                    next=f"pipelines verify {dataset.path} --deep",
                )
        return writer.publish() if writer.records else (None, [])


def _rejects(root: str, part: int, files: list[str], gone: list[dict[str, Any]]) -> dict[str, Any]:
    """The part's file of rejects with a row for each record that is left out now; its entry."""
    out = RowFile(root, REJECT_SCHEMA)
    try:
        for name in files:
            for row in pq.read_table(pa.BufferReader(storage.read(join(root, name)))).to_pylist():
                out.add(row, len(row["error"] or ""))
        for row in gone:
            out.add({"id": row["id"], "origin": row["origin"], "stage": "forget", "outcome": "filtered", "reason": REASON, "error": ""}, 0)
        b = out.finish()
        name = f"rejects/{part:05d}-{b.sha256[:16]}.parquet"
        b.publish(root, name)
        return {"path": name, "bytes": b.nbytes, "sha256": b.sha256}
    finally:
        out.close()


def _counts(of: dict[str, Any], gone: list[dict[str, Any]]) -> dict[str, Any]:
    """`written`, `filtered`, `tokens` and `sources` of a commit record once these records are left out."""
    tokens, sources = Counter(of["tokens"]), {name: Counter(s) for name, s in of["sources"].items()}
    for row in gone:
        lost = {"text": row["text_tokens"], "visual": row["visual_tokens"], "loss": row["loss_tokens"]}
        lost["all"] = lost["text"] + lost["visual"]
        tokens.subtract(lost)
        sources[row["source"]].subtract({**lost, "records": 1})
    return {
        "written": of["written"] - len(gone),
        "filtered": dict(sorted({**of["filtered"], REASON: of["filtered"].get(REASON, 0) + len(gone)}.items())),
        "tokens": dict(tokens),
        "sources": {name: dict(sorted(s.items())) for name, s in sorted(sources.items()) if s["records"]},
    }


def _card_is_old(dataset: Dataset, pairs: list[tuple[Commit, Commit]]) -> bool:
    """Whether the card still names a shard that shall be exchanged: not so after a kill between card and commit records."""
    named = {s.index for s in dataset.shards}
    return any(s["index"] in named for old, new in pairs for s in old["shards"] if s not in new["shards"])


def _next_card(dataset: Dataset, pairs: list[tuple[Commit, Commit]]) -> str:
    """Publish shard table and card over the exchanged shards; the old card stays as its snapshot. Returns the new fingerprint."""
    now = {old["part"]: new for old, new in pairs}
    shards, seen = [], set()
    for s in dataset.shards:
        if s.part not in now:
            shards.append(s)
        elif s.part not in seen:
            shards += [Shard(**row) for row in now[s.part]["shards"]]
            seen.add(s.part)
    old = {key: value for key, value in read_card(dataset.path).items() if key not in ("path", "card_file")}
    new = {**old, "records": sum(s.records for s in shards)}
    new["written"], new["filtered"] = new["records"], Counter(old["filtered"])
    new["tokens"], sources = Counter(old["tokens"]), {name: _flat(s) for name, s in old["sources"].items()}
    for was, will in (p for p in pairs if p[0]["part"] in seen):
        new["bytes"] += sum(f["bytes"] for f in will["files"]) - sum(f["bytes"] for f in was["files"])
        new["filtered"][REASON] += was["written"] - will["written"]
        new["tokens"].subtract({k: n - will["tokens"].get(k, 0) for k, n in was["tokens"].items()})
        for name, counts in was["sources"].items():
            left = will["sources"].get(name, {})
            sources.setdefault(name, Counter()).subtract({k: n - left.get(k, 0) for k, n in counts.items()})
    new["filtered"], new["tokens"] = dict(sorted(new["filtered"].items())), dict(new["tokens"])
    new["sources"] = {name: {"records": s.pop("records"), "tokens": dict(s)} for name, s in sources.items() if s["records"] > 0}
    table = shard_table(shards)
    entry = file_entry(dataset.path, f"shards-{sha256_hex(table)[:16]}.parquet", table)
    new["shards"] = {"file": entry["path"], "sha256": entry["sha256"], "n": len(shards)}
    new["files"] = [entry, *(e for e in old["files"] if not e["path"].startswith("shards-"))]
    new["fingerprint"] = dataset_fingerprint(old.get("encoding"), shards)
    publish_card(dataset.path, f"manifest-{old['fingerprint'][:16]}.json", old)
    publish_snapshot(dataset.path, new)
    return str(new["fingerprint"])


def _flat(source: dict[str, Any]) -> Counter[str]:
    return Counter({"records": source["records"], **source["tokens"]})
