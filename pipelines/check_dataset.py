"""What can be wrong with a dataset, and in which file: the check behind `pipelines verify` for curated and encoded data.

In: the path of a dataset and `{"deep": bool}`. Out: a row per problem, naming the file. Shallow reads the card, the shard table and the
commit records and asks every file for its size: seconds for thousands of shards. Deep reads every byte: the sha256 of every file, then
of every record, and each index row against the bytes it points at. The check trusts nothing it can recompute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from pipelines.format import storage
from pipelines.format.chance import group_hash, hash64
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint, sha256_hex
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import dataset_fingerprint, read_card
from pipelines.format.part import net
from pipelines.format.record import Record
from pipelines.format.shard import Shard, read_shard_table
from pipelines.format.storage import join

Problem = dict[str, str]
_BLOCK = 8 << 20


def check(path: str, options: dict[str, Any]) -> list[Problem]:
    """Every problem found, in the order card, table, parts, files, records."""
    return list(_problems(path, bool(options.get("deep"))))


def _problems(path: str, deep: bool) -> Iterator[Problem]:
    card = read_card(path)
    path = card["path"]
    yield from _law(card["card_file"], card)
    table = join(path, card["shards"]["file"])
    try:
        data = storage.read(table)
    except HeadwaterError as error:
        yield _problem(card["shards"]["file"], error.what)
        return
    if sha256_hex(data) != card["shards"]["sha256"]:
        yield _problem(card["shards"]["file"], "its sha256 differs from the card's")
        return
    shards = read_shard_table(data)
    yield from _totals(card, shards)
    yield from _parts(path, card, shards, deep)
    damaged = set()
    for name, size, digest in _files(card, shards):
        for problem in file_problems(path, name, size, digest, deep):
            damaged.add(name)
            yield problem
    if deep:
        yield from _records(path, shards, damaged, bool(card.get("repeats")))


def file_problems(root: str, name: str, size: int | None, digest: str | None, deep: bool) -> Iterator[Problem]:
    """A file named by a card: is it there, as long as said, and (deep) the same bytes?"""
    where = storage.resolve(name, storage.absolute(root))
    try:
        found = storage.size(where)
        if size is not None and found != size:
            yield _problem(name, f"has {found:,} bytes, its card says {size:,}")
        elif deep and digest is not None and _sha256(where) != digest:
            yield _problem(name, "its sha256 differs from the card's")
    except InputError:
        yield _problem(name, "is not there")


def _problem(file: str, what: str) -> Problem:
    return {"file": file, "what": what}


def _sha256(path: str) -> str:
    digest = sha256()
    with storage.open_read(path) as f:
        while block := f.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _law(file: str, counts: dict[str, Any]) -> Iterator[Problem]:
    """in = written + Σ filtered + Σ rejected."""
    out = counts["written"] + sum(counts["filtered"].values()) + sum(counts["rejected"].values())
    if counts["in"] != out:
        yield _problem(file, f"{counts['in']:,} records came in, {out:,} are accounted for")


def _totals(card: dict[str, Any], shards: list[Shard]) -> Iterator[Problem]:
    file = card["card_file"]
    said = {"shards": card["shards"]["n"], "records": card["records"], "written": card["written"]}
    found = {"shards": len(shards), "records": sum(s.records for s in shards), "written": sum(s.records for s in shards)}
    tokens = card.get("tokens") or {}
    for kind in ("text", "visual"):
        if kind in tokens:
            said[f"{kind} tokens"] = tokens[kind]
            found[f"{kind} tokens"] = sum(getattr(s, f"{kind}_tokens") for s in shards)
    for key, value in said.items():
        if value != found[key]:
            yield _problem(file, f"says {value:,} {key}, the shard table has {found[key]:,}")
    if dataset_fingerprint(card.get("encoding"), shards) != card["fingerprint"]:
        yield _problem(file, "its fingerprint is not that of its encoding and shards")


def _parts(path: str, card: dict[str, Any], shards: list[Shard], deep: bool) -> Iterator[Problem]:
    """Every commit record obeys the law, and together they say what the shard table says."""
    try:
        names = [name for name, _, _ in storage.listing(join(path, "parts"), (".json",))]
    except InputError:
        yield _problem("parts/", "is not there")
        return
    rows: list[dict[str, Any]] = []
    made: list[str] = []
    sums: dict[str, Counter[str]] = {key: Counter() for key in ("counts", "filtered", "rejected", "tokens")}
    for name in sorted(names, key=lambda n: int(n.partition(".")[0])):
        file = f"parts/{name}"
        try:
            commit = storage.read_json(join(path, file))
            yield from _law(file, commit)
            rows += commit["shards"]
            made.append(commit["fingerprint"])
            netted = net(commit)
            sums["counts"].update({"in": netted["in"], "written": commit["written"]})
            sums["rejected"].update(netted["rejected"])
            for key in ("filtered", "tokens"):
                sums[key].update(commit[key])
            yield from _dropped(path, file, commit)
            for entry in (f for f in commit["files"] if f["path"].startswith("moments/")):
                yield from file_problems(path, entry["path"], entry["bytes"], entry["sha256"], deep)
        except (InputError, KeyError, TypeError) as error:
            yield _problem(file, f"cannot be read as a commit record: {error}")
    if sorted(rows, key=_place) != sorted((s.as_dict() for s in shards), key=_place):
        yield _problem(card["shards"]["file"], "the commit records in parts/ name other shards")
    said = {"counts": {"in": card["in"], "written": card["written"]}, **{key: card[key] for key in ("filtered", "rejected", "tokens")}}
    for key, counter in sums.items():
        if Counter(said[key]) != counter:  # a count of nothing equals its absence
            yield _problem(card["card_file"], f"says {said[key]}, the commit records add up to {dict(counter)}")
    parts = card.get("parts")
    if parts and (parts["n"] != len(made) or parts["fingerprint"] != fingerprint(made)):
        yield _problem("parts/", "the commit records are not those that the card was made from")


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """The order of the shard table."""
    return row["part"], row["first_row"]


def _dropped(path: str, file: str, commit: dict[str, Any]) -> Iterator[Problem]:
    """The rejects files hold one row per record that was not written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for entry in commit["files"]:
        if entry["path"].startswith("rejects/"):
            yield from file_problems(path, entry["path"], entry["bytes"], entry["sha256"], deep=True)
            try:
                rows += pq.ParquetFile(pa.BufferReader(storage.read(join(path, entry["path"])))).metadata.num_rows
            except (pa.ArrowException, OSError, InputError, ValueError) as error:  # ValueError: names that are no UTF-8
                yield _problem(entry["path"], f"cannot be read as Parquet: {error}")
                return
    dropped = sum(commit["filtered"].values()) + sum(commit["rejected"].values())
    if rows != dropped:
        yield _problem(file, f"counts {dropped:,} dropped records, the rejects files hold {rows:,}")


def _files(card: dict[str, Any], shards: list[Shard]) -> Iterator[tuple[str, int | None, str | None]]:
    """Every file that the card and the shard table name, once."""
    named: dict[str, tuple[int | None, str | None]] = {e["path"]: (e["bytes"], e["sha256"]) for e in card.get("files") or []}
    for s in shards:
        for name, size, digest in (
            (s.tokens_file, s.tokens_bytes, s.tokens_sha256),
            (s.data, s.data_bytes, s.data_sha256),  # another dataset's file may be named without a hash: it is checked there
            (s.index, s.index_bytes, s.index_sha256),
        ):
            if name is not None:
                named.setdefault(name, (size, digest))
    for name, (size, digest) in named.items():
        yield name, size, digest


def _records(path: str, shards: list[Shard], damaged: set[str], repeats: bool = False) -> Iterator[Problem]:
    """Index rows against what they point at. Shards with a damaged file are left out: their problem is known already. A dataset that `repeats`
    holds a record once for each span of a plan that uses it."""
    dataset = Dataset.open(path)
    seen: Counter[str] = Counter()
    for i, shard in enumerate(shards):
        if {shard.index, shard.data, shard.tokens_file} & damaged:
            continue
        n = text = visual = 0
        for record in dataset.records(i):
            n += 1
            seen[record.id] += 1
            text += sum(s.tokens for s in record.segments if s.kind == "tokens")
            visual += sum(s.tokens for s in record.segments if s.kind == "latents")
        for what, found, said in (("records", n, shard.records), ("text tokens", text, shard.text_tokens)):
            if found != said:
                yield _problem(shard.index, f"has {found:,} {what}, the shard table says {said:,}")
        if visual != shard.visual_tokens:
            yield _problem(shard.index, f"has {visual:,} visual tokens, the shard table says {shard.visual_tokens:,}")
        yield from _rows(dataset, i)
    for id, times in seen.items():
        if times > 1 and not repeats:
            yield _problem(f"record {id}", f"is there {times} times")


def _rows(dataset: Dataset, i: int) -> Iterator[Problem]:
    shard = dataset.shards[i]
    flat = dataset.index(i, ["id", "key", "h", "group", "group_h", "sha256"]).to_pylist()
    for row, record in zip(flat, dataset.records(i), strict=True):
        if row["h"] != hash64(row["id"]):
            yield _problem(shard.index, f"record {row['id']}: h is not that of its id")
        if row.get("group_h") not in (None, group_hash(row["group"])):  # indexes written before the column was there have none
            yield _problem(shard.index, f"record {row['id']}: group_h is not that of its group")
        try:
            digest = record_digest(dataset, i, record)
        except HeadwaterError as error:
            yield _problem(shard.data or shard.index, f"record {row['id']}: {error.what}")
            continue
        if digest != row["sha256"]:
            yield _problem(shard.data or shard.index, f"record {row['id']} ({row['key']}): its sha256 is not that of its segments")


def record_digest(dataset: Dataset, i: int, record: Record) -> str:
    """The record's sha256 as its writer made it: stored payloads in order, the text of text segments, nothing for another dataset's bytes."""
    foreign = dataset.shards[i].data is not None and dataset.shards[i].data_sha256 is None
    digest = sha256()
    for s in record.segments:
        if s.offset is None:
            digest.update((s.text or "").encode())
        elif not (foreign and s.kind != "tokens"):
            digest.update(dataset.payload(i, s))
    return digest.hexdigest()
