"""The images of an audit: the parent's pictures through the encoder that the card names, against the latents that are stored.

In: drawn segments, one by one, with the parent's records. Out: a problem for each that is not what the encoder says, after each full batch.
Bytes are compared where the part's fingerprint is the one that the encoder has here. A picture's latents do not depend on its place in a
batch (tested on CPUs; measured on a GPU, benchmarks/gpu.md); should they do so somewhere, a difference within the bars is looked at in every
place of a batch before it is called one. If no image at all is equal to the byte and all are within the bars, the arithmetic is another
after all (another torch, other libraries), which is told as a note and not as damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from encode.auditing.compare import IMAGE, Verdict, compare
from encode.auditing.origin import Found
from encode.chain import threads
from encode.decode import image_encoder
from encode.encoder import ImageEncoder, ImageEncoding
from pipelines.check_dataset import record_digest
from pipelines.format import storage
from pipelines.format.codec import encode_latents
from pipelines.format.dataset import Dataset
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError, InputError, Reject
from pipelines.format.part import commit_path
from pipelines.format.record import Record

TRIES = 4  # differences within the bars that are looked at in every place of a batch, before that is given up as vain
KEPT = 1000  # differences that are kept to be told

Problem = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One stored payload beside the picture that it should be of."""

    shard: int
    record: str
    segment: int
    stored: bytes
    codec: str
    picture: np.ndarray
    found: Found


class ImageAudit:
    """Holds the network and at most one batch of pictures."""

    def __init__(self, dataset: Dataset, parent: Dataset) -> None:
        self.dataset, self.parent = dataset, parent
        encoder, self.others = recorded_encoder(dataset)
        self.encoding = ImageEncoding(encoder)
        self.threads = int((dataset.card["recipe"].get("resources") or {}).get("cpus") or 1)
        self.items: list[Item] = []
        self.shard, self.seen = -1, set[tuple[int, int | None, int, int | None]]()
        self.made_by: dict[int, str] = {}
        self.pictures = self.equal = self.same = self.differ = self.vain = self.moved = self.close = 0
        self.worst = 1.0
        self.near: list[Problem] = []  # other bytes from the same arithmetic, within the bars

    def add(self, i: int, record: Record, k: int, found: Found) -> Iterator[Problem]:
        """Segment k of a record of shard i; what its batch brings to light, once it is full."""
        ours, theirs = record.segments[k], found.record.segments[k]
        if i != self.shard:
            self.shard = i
            self.seen.clear()
        place = (ours.offset or 0, ours.nbytes, found.shard, theirs.offset)
        if place in self.seen:
            return
        self.seen.add(place)
        grid = self.encoding.grid
        if ours.shape != (grid.tokens, grid.channels):
            yield self._problem(i, record.id, k, f"latents of shape {ours.shape}, the encoder gives {(grid.tokens, grid.channels)}")
            return
        try:
            picture = self.encoding.encoder.read(parents_bytes(self.parent, found.shard, theirs))
        except Reject as e:
            yield self._problem(i, record.id, k, f"the parent's picture cannot be read any more: {e.reason} {e.detail}".rstrip())
            return
        stored = bytes(self.dataset.payload(i, ours))
        self.items.append(Item(i, record.id, k, stored, str(ours.dtype), picture, found))
        if len(self.items) == self.encoding.encoder.batch:
            yield from self.flush()

    def flush(self) -> Iterator[Problem]:
        """Encode and compare what is waiting."""
        items, self.items = self.items, []
        if not items:
            return
        latents = self._encode(np.stack([item.picture for item in items]))
        for item, ours in zip(items, latents, strict=True):
            verdict = compare(ours, item.stored, item.codec)
            same = self._made_by(item.shard) == self.encoding.fingerprint
            if same and not verdict.equal and verdict.within and self._elsewhere(item):
                verdict = Verdict(True, verdict.cosine, verdict.row, verdict.row_cosine, True)
            self.pictures += 1
            self.equal += verdict.equal
            self.same += same
            self.worst = min(self.worst, verdict.cosine)
            if not verdict.within or (same and not verdict.equal):
                yield from self._differs(item, verdict)

    def finish(self) -> list[Problem]:
        """The rest, and differences within the bars if they are any."""
        out = list(self.flush())
        return [*out, *self.near] if self.equal else out

    def facts(self) -> dict[str, Any]:
        """What was found, for people and scripts."""
        machine = self.encoding.machine
        out: dict[str, Any] = {"pictures": self.pictures, "equal": self.equal, "differ": self.differ, "worst_cosine": self.worst, "bar": IMAGE}
        out |= {"machine": f"{machine.kind}, {machine.dtype}", "same_arithmetic": self.same}
        if self.near and not self.equal:
            out["differ"] -= self.close
            out["note"] = "none is equal to the byte, all are within the bars: the same kind of machine with other versions of its libraries"
        if self.others:
            out["note"] = f"this version of the encoder has another {', '.join(self.others)} than the one that made these latents: compared by cosine"
        return out

    def _encode(self, pictures: np.ndarray) -> np.ndarray:
        with threads(self.encoding.machine, self.threads):
            return self.encoding.encode(pictures)

    def _differs(self, item: Item, verdict: Verdict) -> Iterator[Problem]:
        self.differ += 1
        what = f"latents are not those of the parent's picture: {verdict}"
        if verdict.within:
            what = f"latents differ in bytes from what the same arithmetic gives: {verdict}"
        if not self._parent_is_whole(item.found):
            what = f"the parent's own bytes differ from its index (pipelines verify {self.parent.path} --deep), and so do latents: {verdict}"
        problem = self._problem(item.shard, item.record, item.segment, what) | {"cosine": verdict.cosine}
        if verdict.within:
            self.close += 1
            self.near += [problem] if len(self.near) < KEPT else []
        else:
            yield problem

    def _elsewhere(self, item: Item) -> bool:
        """Whether the stored bytes are those of the same picture at another place of a batch."""
        if self.vain >= TRIES and not self.moved:
            return False
        everywhere = self._encode(np.stack([item.picture] * self.encoding.encoder.batch))
        found = any(encode_latents(x, item.codec) == item.stored for x in everywhere)
        self.moved += found
        self.vain += not found
        return found

    def _parent_is_whole(self, found: Found) -> bool:
        try:
            return record_digest(self.parent, found.shard, found.whole) == found.sha256
        except HeadwaterError:
            return False

    def _made_by(self, i: int) -> str:
        """Fingerprint of the encoder that made the latents of shard i: its part's own, or the dataset's where latents lie elsewhere."""
        if i not in self.made_by:
            assert self.dataset.encoding is not None
            whole, shard = self.dataset.encoding["image"]["fingerprint"], self.dataset.shards[i]
            path = commit_path(self.dataset.path, shard.part)
            stats = None if shard.foreign or not storage.exists(path) else storage.read_json(path).get("stats")
            self.made_by[i] = str((stats or {}).get("encoder", whole))
        return self.made_by[i]

    def _problem(self, i: int, record: str, k: int, what: str) -> Problem:
        shard = self.dataset.shards[i]
        said = f"shard {i}, record {record}, segment {k}: {what}"
        return {"file": shard.data or shard.index, "what": said, "shard": i, "record": record, "segment": k}


def recorded_encoder(dataset: Dataset) -> tuple[ImageEncoder, list[str]]:
    """The encoder that the card names, and the keys of its identity that differ from what the card says: a later version of the code may have
    more settings, or prepare pictures otherwise, and cosines tell how much. Other weights are an InputError: they would differ everywhere."""
    encoder = image_encoder(dataset)
    assert encoder is not None, "stored latents have an encoder"
    was: dict[str, Any] = (dataset.card.get("identity") or {}).get("image") or {}
    now = encoder.identity()
    others = [key for key in sorted(now) if was and canon(was.get(key)) != canon(now[key])]
    if "weights" in others:
        raise InputError(
            "the weights there now are not those that made these latents",
            where=getattr(encoder, "weights", None) or now["encoder"],
            found=now["weights"],
            allowed=was.get("weights"),
            next="put those back where the card names them",
        )
    return encoder, others


def parents_bytes(parent: Dataset, i: int, segment: Any) -> bytes:
    """A picture's bytes; InputError that names the parent when its data file is gone."""
    try:
        return bytes(parent.payload(i, segment))
    except InputError as e:
        raise InputError("the parent's pictures are not there", where=e.where, next=f"pipelines verify {parent.path}") from None
