"""The same picture twice: equal bytes, or perceptual hashes that differ in few bits. Of what repeats, one record stays.

    round 0   records → by sha256 of the image's bytes          equal bytes: the first in rank stays, the others leave as `image_hash.exact`
    round 1   who stays → by hash                               equal hash: the first in rank speaks for all, the others leave as `image_hash.near`
    round 2   distinct hashes → by every mask (`hamming.py`)    pairs of hashes within `distance` bits
    round 3   all pairs in one bucket                           in rank order: who is near one that stays leaves as `image_hash.near`
    round 4   (id, reason)

**Nearest survivor, not connected clusters**: a record leaves only for one that stays and is itself within `distance` of it, and no two that stay are
that near. Clusters that connect whatever is near grow with the pool, since a chain of small steps leads from any screenshot to any other; there a
record could leave for one that it does not resemble. The rank is a seeded draw, or (`keep: largest`) more pixels first, so nothing depends on order,
shards or workers. Flat pictures (`hamming.flat`) are told apart by bytes alone: all white ones would be one picture otherwise.

The hash is `record.phash` where a transform has set it; else the bytes are decoded here, in the guarded child. A record with several pictures is
compared by the bytes of all of them, in order, and never by hash. The last step takes about 400 bytes for each pair of near hashes.

With `confirm` a near hash only proposes: both pictures are looked at once more, cell by cell (`pipelines/sketches.py`), so that drawings on one
template and shapes on plain ground stay. It costs a second reading of the set, and a decode of every picture in a near pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b, sha256
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipelines.across.confirming import apart, carried, id_of, sides, wanted
from pipelines.across.exact_text import folded
from pipelines.format.chance import draw
from pipelines.format.errors import RecipeError, Reject
from pipelines.format.hamming import ALL, flat, masks, near_pairs, spread
from pipelines.format.record import Record
from pipelines.media import hashing
from pipelines.sketches import GRID
from pipelines.stage import Across, Map, Reduce, Row

_DATA = ("image-text", "vqa")
FIRST, EACH = 1 << 14, 64  # of hashes that agree on one mask: how many, by rank, all are compared with, and how many neighbours one may have
_MOST_PIXELS = 10**12
_LARGEST = 10  # groups named in the report


class ImageHash(Across):
    """`distance`: bits of 64 in which two hashes may differ (0 to 8; they differ by even numbers); null compares bytes alone. `keep`: which copy
    stays, `draw` or `largest`, by the record's fields `size_fields` or else the stored picture. `same_text`: copies only if their texts are the
    same, too (for questions on an image). `confirm`: near hashes count only where the pictures' cells agree. `seed` decides among equals."""

    payloads: ClassVar[bool] = True
    distance: int | None = Field(4, ge=0, le=8)
    keep: Literal["draw", "largest"] = "draw"
    size_fields: tuple[str, str] = ("original_width", "original_height")
    same_text: bool = False
    confirm: bool = False
    seed: int = 0

    @property
    def again(self) -> tuple[int, ...]:  # type: ignore[override]
        """The round that looks at pictures once more."""
        return (2,) if self.confirm else ()

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """Bytes, hashes, masks, pairs, ids."""
        if self.confirm:
            return [(self._hashed, _same_bytes), (self._masked, self._near), (self._shown, _alike), (_paired, _stay), (_dropped, _ids)]
        return [(self._hashed, _same_bytes), (_by_hash, _same_hash), (self._masked, self._near), (_paired, _stay), (_dropped, _ids)]

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """How much was found, in groups of which sizes."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        largest: list[list[Any]] = []
        if self.confirm:  # nobody reads the set twice to hand the first round's counts on
            for row in (*told[0], *told[2]):
                counts.update(row[1] if row[0] == "count" else {})
        for kind, *said in told[3]:
            if kind == "count":
                counts.update(said[0])
            elif kind == "sizes":
                sizes.update(said[0])
                largest = sorted([*largest, *said[1]], key=lambda g: (-g[1], g[0]))[:_LARGEST]
        keys = ("records", "flat", "unhashed", "exact", "near", "groups", *(("pairs", "confirmed") if self.confirm else ()))
        return {**{k: counts[k] for k in keys}, "sizes": dict(sorted(sizes.items())), "largest": [{"id": i, "records": n} for i, n in largest]}

    # ---- the record's side -------------------------------------------------------------------------------------------------------------

    def _hashed(self, records: Iterable[Record]) -> Iterator[Row]:
        for record in records:
            if record.data not in _DATA:
                raise RecipeError("image_hash compares still pictures", where="across: image_hash", found=record.data, allowed=" or ".join(_DATA))
            pictures = [s.payload for s in record.segments if s.kind == "image" and s.payload is not None]
            if not pictures:
                continue
            digest = sha256(pictures[0] if len(pictures) == 1 else b"".join(sha256(p).digest() for p in pictures)).digest()
            text = self._text(record)
            yield int.from_bytes(digest[:4], "little"), digest + text, [self._rank(record), self._hash(record, pictures), text.hex()]

    def _text(self, record: Record) -> bytes:
        if not self.same_text:
            return b""
        texts = "\n".join(folded(s.text) for s in record.segments if s.text is not None)
        return blake2b(texts.encode(), digest_size=8).digest()

    def _rank(self, record: Record) -> str:
        """Sorts first who stays; ends in the id."""
        return f"{_MOST_PIXELS - self._pixels(record):013d}{draw(record.h, self.seed, 'survivor'):020d}.{record.id}"

    def _pixels(self, record: Record) -> int:
        if self.keep == "draw":
            return 0
        known = [record.fields.get(f) for f in self.size_fields]
        width, height = (n if isinstance(n, int) and n > 0 else 0 for n in known)
        stored = sum(s.shape[0] * s.shape[1] for s in record.segments if s.kind == "image" and len(s.shape) >= 2)
        return min(width * height or stored, _MOST_PIXELS)

    def _hash(self, record: Record, pictures: list[bytes]) -> int | None:
        if self.distance is None or len(pictures) > 1:
            return None
        if record.phash is not None:
            return record.phash
        try:
            return hashing.phash(pictures[0])
        except Reject:
            return None

    # ---- near hashes -------------------------------------------------------------------------------------------------------------------

    def _masked(self, values: Iterable[Any]) -> Iterator[Row]:
        every = masks(self.distance or 0) or [ALL] * self.confirm
        for value in values:
            if value[0] != "hash":
                yield carried(value)
                continue
            _, hash, text, rank, n = value
            if n > 1:
                yield carried(["group", rank, n])
            for i, mask in enumerate(every):
                key = bytes([i]) + (hash & mask).to_bytes(8, "big") + bytes.fromhex(text)
                yield spread(hash & mask) + i, key, [rank, hash]

    def _near(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        every = masks(self.distance or 0) or [ALL]
        for key, same in groupby(rows, key=lambda row: row[1]):
            values = [value for _, _, value in same]
            if not key:
                yield from values
            elif len(values) > 1:
                hashes = np.array([hash for _, hash in values], np.uint64)
                for i, j, bits in near_pairs(hashes, self.distance or 0, every[key[0]], FIRST, EACH):
                    yield ["pair", values[i][0], values[j][0], bits]


    # ---- pictures looked at once more ----------------------------------------------------------------------------------------------------

    def _shown(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[Row]:
        """The pictures of every record in a near pair; who left already, and how many others a record stands for."""
        looks = wanted((v[1], v[2], [(0, 0)]) for v in told[1] if v[0] == "pair")
        kept = {v[1] if v[0] == "drop" else id_of(v[1]): v for v in told[1] if v[0] in ("drop", "group")}
        for record in records:
            if record.id in kept:
                yield carried(kept[record.id])
            if record.id in looks:
                yield from sides(replace(record, segments=tuple(s for s in record.segments if s.kind == "image")), looks, GRID)


def _alike(rows: Iterable[Row]) -> Iterator[list[Any]]:
    counts: Counter[str] = Counter()
    for key, same in groupby(rows, key=lambda row: row[1]):
        values = [value for _, _, value in same]
        if not key:
            yield from values
            continue
        (pair, _, (x,)), (_, _, (y,)) = values
        worst = apart(x, y)
        counts.update({"pairs": 1, "confirmed": worst is not None})
        if worst is not None:
            a, b = pair.split(" ")
            yield ["pair", a, b, worst]
    if counts:
        yield ["count", dict(counts)]


def _same_bytes(rows: Iterable[Row]) -> Iterator[list[Any]]:
    counts: Counter[str] = Counter()
    for _, same in groupby(rows, key=lambda row: row[1]):
        (rank, hash, text), *others = (value for _, _, value in same)
        for other, also, _ in others:
            hash = also if hash is None else hash
            yield ["drop", id_of(other), "image_hash.exact"]
        n = 1 + len(others)
        counts.update({"records": n, "exact": len(others), "unhashed": hash is None, "flat": hash is not None and flat(hash)})
        if hash is not None and not flat(hash):
            yield ["hash", hash, text, rank, n]
        elif others:
            yield ["group", rank, n]
    yield ["count", dict(counts)]


def _by_hash(values: Iterable[Any]) -> Iterator[Row]:
    for value in values:
        if value[0] == "hash":
            _, hash, text, rank, n = value
            yield spread(hash), hash.to_bytes(8, "big") + bytes.fromhex(text), [rank, n, hash, text]
        else:
            yield carried(value)


def _same_hash(rows: Iterable[Row]) -> Iterator[list[Any]]:
    near = 0
    for key, same in groupby(rows, key=lambda row: row[1]):
        values = [value for _, _, value in same]
        if not key:
            yield from values
            continue
        (rank, n, hash, text), *others = values
        near += len(others)
        yield ["hash", hash, text, rank, n + sum(other[1] for other in others)]
        yield from (["drop", id_of(other[0]), "image_hash.near"] for other in others)
    yield ["count", {"near": near}]


def _stay(rows: Iterable[Row]) -> Iterator[list[Any]]:
    return survivors(rows, "image_hash.near")


def _paired(values: Iterable[Any]) -> Iterator[Row]:
    yield from (carried(value) for value in values)


def survivors(rows: Iterable[Row], reason: str) -> Iterator[list[Any]]:
    """In rank order, who has no neighbour that stays, stays; each of the others leaves for `reason` and counts for its nearest. Rows other than
    ["pair", better, worse, distance] and ["group", rank, n] are handed on."""
    better: dict[str, list[tuple[int, str]]] = {}
    size: dict[str, int] = {}
    for _, _, value in rows:
        if value[0] == "pair":
            better.setdefault(value[2], []).append((value[3], value[1]))
        elif value[0] == "group":
            size[value[1]] = value[2]
        else:
            yield value
    gone: set[str] = set()
    for rank in sorted(better):
        stays = [pair for pair in better[rank] if pair[1] not in gone]
        if stays:
            gone.add(rank)
            home = min(stays)[1]
            size[home] = size.get(home, 1) + size.pop(rank, 1)
            yield ["drop", id_of(rank), reason]
    if size:
        bars = Counter(f"{n:02d}" if n < 10 else f"10^{len(str(n)) - 1}+" for n in size.values())
        yield ["count", {"near": len(gone), "groups": len(size)}]
        yield ["sizes", dict(bars), [[id_of(rank), n] for rank, n in sorted(size.items(), key=lambda g: (-g[1], g[0]))[:_LARGEST]]]


def _dropped(values: Iterable[Any]) -> Iterator[Row]:
    yield from (carried(value) for value in values if value[0] == "drop")


def _ids(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    yield from ((id, reason) for _, _, (_, id, reason) in rows)
