"""The work on one part, as three steps that the engine places, apart or in one worker: load (CPU) -> encode (device) -> write (CPU).

    load     rows of the parent shard -> texts as ids, each distinct image decoded and resized once, as one uint8 array
    Encode   that array -> stored bytes of latents, in padded batches of one size; the only step that holds a network
    write    records with ids and latents -> shards, rejects, statistics, commit record

Only plain values pass between them, at most some hundred MiB per part. A record whose image cannot be read is rejected with the reason; its
text is not kept either, since half a record is another record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from encode.coding import CodedPart
from encode.encoder import ImageEncoder, LoadedTokenizer, Machine, TextEncoder
from encode.memory import coded_as_fits, loaded
from encode.part_moments import commit_stats
from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.errors import Reject
from pipelines.format.forgotten import REASON
from pipelines.format.index import record_of
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from pipelines.format.shard import Foreign

Lost = tuple[str, str, str, str]  # origin, id, reason, detail of a record that cannot be kept
Place = tuple[int, int]  # offset and length of a payload in the parent's data file: what tells distinct images of a part apart


def load(
    item: dict[str, Any],
    dataset: tuple[str, str],
    text: TextEncoder,
    encoder: ImageEncoder | None = None,
    encode_later: bool = False,
    other: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """A part -> its records with token ids, and `pictures` uint8 [n, height, width, 3] with `slots` from place to row.

    `dataset` and `other` are (path, fingerprint); `other` is an encoded dataset whose latents are pointed at; `encode_later` points at the
    parent's image files instead (`storage: none`). In both cases `foreign` is the data file meant, and there are no pictures.
    """
    parent = open_cached(*dataset)
    every = rows(parent, item["shard"], item["first"], item["rows"])
    gone = frozenset(item.get("gone", ()))
    records = [r for n, r in enumerate(every) if n not in gone]
    lost: list[Lost] = []
    out = {"part": item["part"], "fingerprint": item["fingerprint"], "foreign": None, "slots": {}, "pictures": None}
    out["forgotten"] = [replace(r, segments=()) for n, r in enumerate(every) if n in gone]
    if other is not None:
        reused = open_cached(*other)
        records, lost = pointed(records, reused, item["other"])
        out["foreign"] = None if item["other"] is None else data_file(reused, item["other"])
    elif encode_later and encoder is not None:
        grid = encoder.grid()
        records = [with_images(r, lambda s: pointer(s, grid.tokens, grid.channels)) for r in records]
        out["foreign"] = data_file(parent, item["shard"])
    elif encoder is not None:
        out["pictures"], out["slots"], records, lost = prepared(parent, item["shard"], records, encoder)
    return {**out, "records": tokenised(records, tokenizer(text.model_dump_json(), text)), "lost": lost}


def prepared(
    parent: Dataset, i: int, records: list[Record], encoder: ImageEncoder
) -> tuple[np.ndarray | None, dict[Place, int], list[Record], list[Lost]]:
    """Each distinct image decoded once: (pictures of the records that are kept, row of each place, those records, the others)."""
    seen: dict[Place, np.ndarray | Reject] = {}
    for s in (s for r in records for s in r.segments if s.kind == "image"):
        if place(s) not in seen:
            try:
                seen[place(s)] = encoder.read(bytes(parent.payload(i, s)))
            except Reject as e:
                seen[place(s)] = e
    kept, lost = readable(records, {key: e for key, e in seen.items() if isinstance(e, Reject)})
    used = dict.fromkeys(place(s) for r in kept for s in r.segments if s.kind == "image")  # in order of first use
    pictures = [seen[key] for key in used]
    return (np.stack(pictures) if pictures else None), {key: row for row, key in enumerate(used)}, kept, lost  # type: ignore[arg-type]


class Encode:
    """The step that holds the network. Set up once per worker."""

    def __init__(self, encoder: ImageEncoder, codec_name: str, device: str | None = None, threads: int = 1) -> None:
        self.encoding = loaded(encoder, device)
        self.codec_name, self.threads = codec_name, threads

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        part: CodedPart | None = None
        if item["pictures"] is not None:
            with threads(self.encoding.machine, self.threads):
                part = coded_as_fits(self.encoding, item["pictures"], self.codec_name)
        return {**item, "pictures": None, "payloads": None, "coded": None} if part is None else {**item, "pictures": None, **travelling(part)}


def travelling(part: CodedPart) -> dict[str, Any]:
    """A coded part as it leaves the worker: its payloads beside it, since large arrays of a mapping travel without being copied."""
    return {"payloads": part.payloads, "coded": replace(part, payloads=part.payloads[:0])}


def write(item: dict[str, Any], root: str, codec_name: str, shard_bytes: int, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """Publish the part; `shape` = (tokens, channels) of an image that this dataset stores; the item's `ends`, if it has any, where its shards
    end (those of a dataset beside it). Returns the commit record."""
    part: CodedPart | None = item.get("coded")
    payloads: Any = item.get("payloads")  # uint8 [images, bytes of each]
    slots: dict[Place, int] = item["slots"]
    foreign = None if item["foreign"] is None else Foreign(storage.relative(item["foreign"], storage.absolute(root)))
    kept: dict[str, Any] = {"encoded": True, "shard_bytes": shard_bytes, "foreign_data": foreign, "ends": item.get("ends")}
    with PartWriter(root, item["part"], fingerprint=item["fingerprint"], **kept) as writer:
        writer.emit(len(item["records"]) + len(item["lost"]) + len(item["forgotten"]))
        for record in item["forgotten"]:
            writer.drop(record, "encode", REASON)
        for origin, id, reason, detail in item["lost"]:
            writer.reject(origin, "encode", reason, detail, id=id)
        for record in item["records"]:
            if shape is not None:
                record = with_images(record, lambda s: stored(s, payloads[slots[place(s)]].tobytes(), codec_name, *shape))
            writer.add(record)
        if part is None:
            return writer.commit({})
        notes = {"notes": list(part.notes)} if part.notes else {}
        said = {**commit_stats(writer, part.moments, list(payloads)), "error": part.error.as_json()}
        return writer.commit({**said, "images": len(payloads), "encoder": part.fingerprint, **notes})


@contextmanager
def threads(machine: Machine, number: int) -> Iterator[None]:
    """A fixed number of torch threads on a CPU, put back afterwards: another number may split a sum elsewhere and change its last bit."""
    if machine.device != "cpu" or machine.kind == "any":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(dataset: Dataset, i: int, first: int, count: int) -> list[Record]:
    """Records [first, first + count) of shard i, without payloads, and without clips that are kept beside their frames."""
    found = (record_of(row) for row in dataset.index(i).slice(first, count).to_pylist())
    return [replace(r, segments=tuple(s for s in r.segments if s.kind != "video")) for r in found]


def place(s: Segment) -> Place:
    assert s.offset is not None and s.nbytes is not None, "an image of a curated dataset has its bytes in the data file"
    return s.offset, s.nbytes


def with_images(record: Record, change: Callable[[Segment], Segment]) -> Record:
    return replace(record, segments=tuple(change(s) if s.kind == "image" else s for s in record.segments))


def stored(s: Segment, payload: bytes, name: str, tokens: int, channels: int) -> Segment:
    """An image segment as latents that this dataset stores."""
    kept = {"kind": "latents", "dtype": name, "shape": (tokens, channels), "tokens": tokens, "member": None}
    return replace(s, payload=payload, offset=None, nbytes=len(payload), **kept)  # type: ignore[arg-type]


def pointer(s: Segment, tokens: int, channels: int) -> Segment:
    """An image segment that stays an image file in the parent's data, counted as the latents it will become (`storage: none`)."""
    return replace(s, kind="latents", shape=(tokens, channels), tokens=tokens, member=None)


def readable(records: list[Record], bad: dict[Place, Reject]) -> tuple[list[Record], list[Lost]]:
    kept: list[Record] = []
    lost: list[Lost] = []
    for record in records:
        wrong = next((bad[place(s)] for s in record.segments if s.kind == "image" and place(s) in bad), None)
        if wrong is None:
            kept.append(record)
        else:
            lost.append((record.origin, record.id, wrong.reason, wrong.detail))
    return kept, lost


def pointed(records: list[Record], other: Dataset, j: int | None) -> tuple[list[Record], list[Lost]]:
    """Records whose images are the latents that shard j of another dataset stores for the same ids."""
    theirs = {} if j is None else {r.id: [s for s in r.segments if s.kind == "latents"] for r in other.records(j)}
    kept: list[Record] = []
    lost: list[Lost] = []
    for record in records:
        if record.id in theirs:
            kept.append(with_images(record, partial(same_place, iter(theirs[record.id]))))
        else:
            lost.append((record.origin, record.id, "not_encoded", "the reused dataset has no latents for this record"))
    return kept, lost


def same_place(theirs: Iterator[Segment], s: Segment) -> Segment:
    latents = next(theirs)
    kept = {k: getattr(latents, k) for k in ("kind", "dtype", "shape", "tokens", "offset", "nbytes")}
    return replace(s, member=None, **kept)


def data_file(dataset: Dataset, i: int) -> str | None:
    """Where the data file of shard i lies, which may be in yet another dataset."""
    name = dataset.shards[i].data
    return None if name is None else storage.resolve(name, storage.absolute(dataset.path))


def tokenised(records: list[Record], tokenizer: LoadedTokenizer) -> list[Record]:
    """All texts of a part in one call: the tokenizer's own threads share them."""
    texts = [s.text or "" for r in records for s in r.segments if s.kind == "text"]
    ids = iter(tokenizer.encode(texts))
    return [replace(r, segments=tuple(as_tokens(s, next(ids)) if s.kind == "text" else s for s in r.segments)) for r in records]


def as_tokens(s: Segment, ids: np.ndarray) -> Segment:
    payload = ids.astype(ids.dtype.newbyteorder("<")).tobytes()
    return replace(s, kind="tokens", text=None, payload=payload, dtype=ids.dtype.name, shape=(len(ids),), tokens=len(ids), nbytes=len(payload))


_tokenizers: dict[str, LoadedTokenizer] = {}


def tokenizer(key: str, text: TextEncoder) -> LoadedTokenizer:
    """One loaded tokenizer per worker process."""
    if key not in _tokenizers:
        _tokenizers[key] = text.load()
    return _tokenizers[key]
