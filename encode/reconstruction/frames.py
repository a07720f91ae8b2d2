"""What a decoder learns from: distinct frames of a dataset, each as pixels to reach and as the latents that the frozen encoder makes of it.

In: an encoded dataset (its latents are read as stored, with what the codec cost them; its pixels lie in the curated parent), or a curated one and an
encoder (latents are made on the way, and cost a forward pass each time). Out: frames by number; which of them are held out, by group; random
access in any order. What is in memory is where frames lie: 40 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encode.encoder import Grid, ImageEncoder, ImageEncoding, opened
from pipelines.format import chance, codec, storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, Reject
from pipelines.format.forgotten import living_rows
from pipelines.format.manifest import parent_path
from pipelines.media import images

Ints = np.ndarray
KEPT = 1 << 30  # bytes of prepared pictures that stay in memory: a small set is decoded once, a large one as it is drawn


@dataclass(frozen=True)
class Segments:
    """All segments of one kind of a dataset, in order: the shard, the record (counted over the dataset) and the bytes of each."""

    shard: Ints
    record: Ints
    offset: Ints
    nbytes: Ints


@dataclass
class Frames:
    """Frames 0 … n - 1. `curated` holds the pixels; `encoded`, if there is one, the latents; `encoder` made them, or will."""

    curated: Dataset
    encoder: ImageEncoder
    pixels: Segments
    groups: list[str]
    ids: list[str]
    encoded: Dataset | None = None
    latents_at: Segments | None = None
    target: ImageEncoder | None = None  # prepares the pixels to reach, where they are not of the encoder's own size
    size: tuple[int, int] = (0, 0)
    encoding: ImageEncoding | None = field(default=None, repr=False)
    kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pixels.offset)

    @property
    def grid(self) -> Grid:
        return self.encoder.grid()

    def reach(self, size: tuple[int, int]) -> None:
        """Pictures of `height, width`: the same part of the frame, prepared as the encoder prepares it, at the size that the decoder makes."""
        grid, self.size = self.grid, size
        if size != (grid.height, grid.width) and size[0] == size[1] and "size" in type(self.encoder).model_fields:
            try:
                self.target = type(self.encoder).model_validate({**self.encoder.model_dump(), "size": size[0]})
            except ValueError:  # raw pixels want a multiple of their patch; such a picture is stretched below
                self.target = None

    def picture(self, i: int) -> np.ndarray:
        """uint8 [height, width, 3] of frame i."""
        if i in self.kept:
            return self.kept[i]
        picture = self._prepared(i)
        if (len(self.kept) + 1) * picture.nbytes <= KEPT:
            self.kept[i] = picture
        return picture

    def _prepared(self, i: int) -> np.ndarray:
        at = self.pixels
        data = self.curated.slice(int(at.shard[i]), "image", int(at.offset[i]), int(at.nbytes[i]))
        try:
            picture = (self.target or self.encoder).picture(images.decode(bytes(data)))
        except Reject as e:
            name = self.ids[int(at.record[i])]
            where, next = f"{self.curated.path}, record {name}", "fit to an encoded dataset: encoding leaves such records out"
            raise InputError("a frame cannot be read", where=where, found=e, next=next) from None
        return picture if picture.shape[:2] == self.size else images.stretch(picture, *self.size)

    def pictures(self, numbers: Iterable[int], pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """uint8 [n, height, width, 3]."""
        found = list((pool.map if pool else map)(self.picture, [int(i) for i in numbers]))
        return np.stack(found) if found else np.empty((0, *self.size, 3), np.uint8)

    def latents(self, numbers: Iterable[int]) -> np.ndarray:
        """float32 [n, tokens, channels], in the encoder's own units."""
        if self.encoded is None:
            if self.encoding is None:
                self.encoding = ImageEncoding(self.encoder)
            own = [self._seen(int(i)) for i in numbers]
            return self.encoding.encode(np.stack(own) if own else np.empty((0, self.grid.height, self.grid.width, 3), np.uint8))
        at, grid = self.latents_at, self.grid
        assert at is not None
        name = self.encoded.card["encoding"]["image"]["codec"]
        views = [self.encoded.slice(int(at.shard[i]), "latents", int(at.offset[i]), int(at.nbytes[i])) for i in numbers]
        found = [codec.decode_latents(v, name, grid.tokens, grid.channels) for v in views]
        return np.stack(found) if found else np.empty((0, grid.tokens, grid.channels), np.float32)

    def _seen(self, i: int) -> np.ndarray:
        at = self.pixels
        return self.encoder.picture(images.decode(bytes(self.curated.slice(int(at.shard[i]), "image", int(at.offset[i]), int(at.nbytes[i])))))

    def split(self, fraction: float, seed: int, most: int) -> tuple[Ints, Ints]:
        """Numbers of the frames to train on, and of at most `most` held-out ones, by group: frames of one clip or walk stay on one side."""
        held = np.asarray(chance.held_out(self.groups, fraction, seed), bool)[self.pixels.record]
        ours, others = np.flatnonzero(~held), np.flatnonzero(held)
        if not len(ours) or not len(others):
            side = "to train on" if len(others) else "held out"
            found = f"{len(set(self.groups))} groups, held out: {fraction:.1%}"
            raise InputError(f"no frame is {side}", where=self.curated.path, found=found, next="change held_out.fraction or held_out.seed")
        drawn = chance.order(chance.draw(others.astype(np.uint64), seed, "held out frame"), seed, "order")
        return ours, np.sort(others[drawn[:most]])


def open_frames(dataset: str, encoder: ImageEncoder | None) -> Frames:
    """The frames of the dataset at this path. InputError when pixels or an encoder are missing."""
    found = Dataset.open(storage.absolute(dataset))
    if found.encoding is None:
        if encoder is None:
            raise InputError("a curated dataset says nothing about latents", where=dataset, next="name the `encoder`, or the dataset encoded by it")
        return _curated(found, encoder)
    if encoder is not None:
        raise InputError("an encoded dataset names its own encoder", where=dataset, next="leave `encoder` out, or name the curated dataset")
    image = found.encoding.get("image")
    written = found.card.get("encoders", {}).get("image")
    if image is None or written is None:
        raise InputError("this dataset holds no latents whose encoder is known", where=dataset)
    made_by = opened(written)
    assert isinstance(made_by, ImageEncoder)
    above = parent(found)
    return _curated(above, made_by) if image["codec"] == "none" else _paired(found, above, made_by)


def parent(encoded: Dataset) -> Dataset:
    """The curated dataset that an encoded one was made from."""
    for entry in encoded.card["parents"]:
        place = parent_path(encoded.card, entry)
        if storage.exists(storage.join(place, "manifest.json")):
            curated = Dataset.open(place, entry["fingerprint"])
            if curated.encoding is None:
                return curated
    said = [p["path"] for p in encoded.card["parents"]]
    found = f"parents {', '.join(said)}"
    raise InputError("the frames that these latents were made from are not there", where=encoded.path, found=found, next="curate them again")


def _curated(dataset: Dataset, encoder: ImageEncoder) -> Frames:
    at, ids, groups = segments(dataset, "image")
    kept = distinct(at)
    return Frames(dataset, encoder, taken(at, kept), groups, ids)


def _paired(encoded: Dataset, curated: Dataset, encoder: ImageEncoder) -> Frames:
    """The k-th latents of a record are of the k-th image of the curated record with its id."""
    ours, our_ids, groups = segments(encoded, "latents")
    theirs, their_ids, _ = segments(curated, "image", living=False)  # a match for each that is left of ours
    where = pc.index_in(pa.array(our_ids, pa.string()), value_set=pa.array(their_ids, pa.string()))
    lost = where.null_count
    counts, there = np.bincount(ours.record, minlength=len(our_ids)), np.bincount(theirs.record, minlength=len(their_ids))
    row = where.fill_null(0).to_numpy(zero_copy_only=False)
    if lost or not np.array_equal(counts, there[row] if len(row) else counts):
        found = f"{lost} ids unknown to {curated.path}, or another number of images"
        raise InputError("these latents are not of these frames", where=encoded.path, found=found)
    first = np.concatenate([[0], np.cumsum(there)])[row]  # of each of our records: its first image in the parent
    nth = np.arange(len(ours.record)) - np.concatenate([[0], np.cumsum(counts)])[ours.record]
    kept = distinct(ours)
    pixels = taken(theirs, (first[ours.record] + nth)[kept])
    pixels = Segments(pixels.shard, ours.record[kept], pixels.offset, pixels.nbytes)  # counted in our records, whose groups we have
    return Frames(curated, encoder, pixels, groups, our_ids, encoded, taken(ours, kept))


def segments(dataset: Dataset, kind: str, living: bool = True) -> tuple[Segments, list[str], list[str]]:
    """(segments of a kind, id of each record, group of each record) over all shards; with `living`, without forgotten records."""
    columns = ["id", "group", "segments"]
    found: list[list[np.ndarray]] = [[], [], [], []]
    ids: list[str] = []
    groups: list[str] = []
    for i in range(len(dataset.shards)):
        table = living_rows(dataset, i, columns) if living else dataset.index(i, columns)
        lists = table["segments"].combine_chunks()
        flat = pc.list_flatten(lists)
        chosen = pc.equal(pc.struct_field(flat, "kind"), kind)
        rows = pc.list_parent_indices(lists).filter(chosen).to_numpy(zero_copy_only=False) + len(ids)
        offset, nbytes = (pc.struct_field(flat, name).filter(chosen).to_numpy(zero_copy_only=False) for name in ("offset", "nbytes"))
        for column, values in zip(found, (np.full(len(rows), i), rows, offset, nbytes), strict=True):
            column.append(np.asarray(values, np.int64))
        ids += table["id"].to_pylist()
        groups += table["group"].to_pylist()
    if not sum(map(len, found[0])):
        raise InputError("this dataset has no images", where=dataset.path, allowed="a dataset with frames")
    return Segments(*(np.concatenate(c) for c in found)), ids, groups


def distinct(at: Segments) -> Ints:
    """Places of the first mention of each payload, in order: records that share frames count them once."""
    return np.sort(np.unique(np.stack([at.shard, at.offset]), axis=1, return_index=True)[1])


def taken(at: Segments, places: Ints) -> Segments:
    return Segments(*(getattr(at, name)[places] for name in ("shard", "record", "offset", "nbytes")))


def facts(frames: Frames) -> dict[str, Any]:
    """For a card: what was learned from."""
    made = "stored" if frames.encoded is not None else "encoded on the way"
    return {"frames": len(frames), "groups": len(set(frames.groups)), "latents": made}
