"""The same clip twice: the same frames to the byte, or frames that look the same one by one. Of what repeats, one record stays.

    round 0   records → by sha256 of their frames               equal frames: the first in rank stays, the others leave as `clip_hash.exact`
    round 1   frames of who stays → by every mask               pairs of frames of two clips whose hashes are within `distance` bits
    round 2   pairs of frames → by the two clips                pairs of clips: at least `share` of the shorter one's frames are in the other
    round 3   clips of such pairs, once more → by pair          confirmed: those frames show the same, cell by cell (`pipelines/sketches.py`)
    round 4   all pairs in one bucket                           in rank order: who repeats one that stays leaves as `clip_hash.near`
    round 5   (id, reason)

No time is compared: a copy at another rate, with a shifted start or cut short shows the same pictures, if more or fewer of them, and it is enough
that most of the shorter clip's are in the longer. What is found by design: re-encoded, resized, at another speed, sampled at another rate whose times
meet, started a whole number of samples later, and any stretch of a clip. What is not: another crop, mirrored or written over. Where a start is
shifted by a part of the sampling interval, frames are alike only as far as the scene moves slowly (docs/decontamination.md has figures).

Clips of one `group` (one file, one trajectory) are neighbours in time and often look alike; among themselves only equal bytes count. Of a clip,
runs of frames within two bits count once, plain frames not at all, and at most `FRAMES` are compared. The longest stays (`keep: longest`), then the
one with more pixels, then by a seeded draw. A frame of 224 × 224 costs 2 ms, once more for frames of near clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipelines.across.confirming import apart, carried, id_of, sides, wanted
from pipelines.across.evaluation_pictures import sketch_of
from pipelines.across.image_hash import EACH, FIRST, survivors
from pipelines.format.chance import draw
from pipelines.format.errors import RecipeError
from pipelines.format.hamming import ALL, flat, masks, near_pairs, spread
from pipelines.format.record import Record
from pipelines.sketches import plain
from pipelines.stage import Across, Map, Reduce, Row

_DATA = ("video", "action-video")
FRAMES = 64  # of a clip that are compared; of more, those whose hashes come first in a fixed disorder, which is the same in a copy
CONFIRM = 8  # pairs of frames of two clips that are compared cell by cell
_CELLS = 16  # a side
_STILL = 2  # bits within which neighbouring frames count once
_MOST = 10**12
_LARGEST = 10


class ClipHash(Across):
    """`distance`: bits of 64 in which frames may differ (null: equal bytes only). `share` of the shorter clip's frames that must be in the other.
    `keep`: which copy stays, `longest` or by `draw`. `seed` decides among equals."""

    payloads: ClassVar[bool] = True
    again: ClassVar[tuple[int, ...]] = (3,)
    distance: int | None = Field(4, ge=0, le=8)
    share: float = Field(0.5, gt=0, le=1)
    keep: Literal["longest", "draw"] = "longest"
    seed: int = 0

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """Bytes, frames, clips, cells, who stays, ids."""
        near = partial(survivors, reason="clip_hash.near")
        rounds = [(self._framed, _same_frames), (self._masked, self._near), (_by_pair, self._votes)]
        return [*rounds, (self._shown, self._confirmed), (_together, near), (_dropped, _ids)]

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """How much was found, in groups of which sizes."""
        counts: Counter[str] = Counter()
        for row in (*told[0], *told[2], *told[3]):
            if row[0] == "count":
                counts.update(row[1])
        sizes = [row for row in told[4] if row[0] == "sizes"]
        for row in told[4]:
            if row[0] == "count":
                counts.update(row[1])
        keys = ("clips", "without_frames", "exact", "near", "groups", "pairs", "confirmed")
        largest = {id: n for row in sizes for id, n in row[2][:_LARGEST]}
        return {**{k: counts[k] for k in keys}, "sizes": sizes[0][1] if sizes else {}, "largest": largest}

    # ---- bytes -------------------------------------------------------------------------------------------------------------------------

    def _framed(self, records: Iterable[Record]) -> Iterator[Row]:
        hashes: dict[bytes, int | None] = {}
        for record in records:
            if record.data not in _DATA:
                raise RecipeError("clip_hash compares clips", where="across: clip_hash", found=record.data, allowed=" or ".join(_DATA))
            frames = [(k, s.payload) for k, s in enumerate(record.segments) if s.kind == "image" and s.payload is not None]
            if not frames:
                continue
            digests = [sha256(data).digest() for _, data in frames]
            digest = sha256(b"".join(digests)).digest()
            seen = [] if self.distance is None else [(k, _hash(hashes, d, data)) for d, (k, data) in zip(digests, frames, strict=True)]
            yield int.from_bytes(digest[:4], "little"), digest, [self._rank(record), record.group, distinct(seen)]

    def _rank(self, record: Record) -> str:
        """Sorts first who stays; ends in the id."""
        frames = [s for s in record.segments if s.kind == "image"]
        times = [s.time_s for s in frames if s.time_s is not None]
        pixels = sum(s.shape[0] * s.shape[1] for s in frames if len(s.shape) > 1)
        long = (round(1000 * (max(times) - min(times))) if times else 0, len(frames), pixels)
        first = "".join(f"{_MOST - min(n, _MOST):013d}" for n in long) if self.keep == "longest" else ""
        return f"{first}{draw(record.h, self.seed, 'survivor'):020d}.{record.id}"

    # ---- frames ------------------------------------------------------------------------------------------------------------------------

    def _masked(self, values: Iterable[Any]) -> Iterator[Row]:
        every = masks(self.distance or 0) or [ALL]
        for value in values:
            if value[0] != "clip":
                yield carried(value)
                continue
            _, rank, group, frames = value
            kin = int.from_bytes(sha256(group.encode()).digest()[:6], "little")
            for k, hash in frames:
                for i, mask in enumerate(every):
                    yield spread(hash & mask) + i, bytes([i]) + (hash & mask).to_bytes(8, "big"), [rank, kin, len(frames), k, hash]

    def _near(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        every = masks(self.distance or 0) or [ALL]
        for key, same in groupby(rows, key=lambda row: row[1]):
            values = [value for _, _, value in same]
            if not key:
                yield from values
            elif len({v[1] for v in values}) > 1:
                hashes, kin = np.array([v[4] for v in values], np.uint64), np.array([v[1] for v in values], np.int64)
                for i, j, bits in near_pairs(hashes, self.distance or 0, every[key[0]], FIRST, EACH, kin):
                    a, b = sorted((values[i], values[j]))
                    yield ["frames", a[0], b[0], a[2], b[2], a[3], b[3], bits]

    def _votes(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        """Pairs of clips of which the shorter one's frames are in the other, with the best pairs of frames to look at."""
        found = 0
        for key, same in groupby(rows, key=lambda row: row[1]):
            values = [value for _, _, value in same]
            if not key:
                yield from values
                continue
            (_, a, b, n_a, n_b, *_), side = values[0], 6 if values[0][4] < values[0][3] else 5
            best: dict[int, tuple[int, int, int]] = {}
            for value in values:
                pair = (value[7], value[5], value[6])
                best[value[side]] = min(best.get(value[side], pair), pair)
            if len(best) >= self.share * min(n_a, n_b):
                found += 1
                yield ["clips", a, b, [[i, j] for _, i, j in sorted(best.values())[:CONFIRM]]]
        if found:
            yield ["count", {"pairs": found}]

    # ---- cells -------------------------------------------------------------------------------------------------------------------------

    def _shown(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[Row]:
        """The frames to look at, of every clip in a pair; and who left already."""
        looks, gone = wanted((v[1], v[2], v[3]) for v in told[2] if v[0] == "clips"), {v[1]: v[2] for v in told[2] if v[0] == "drop"}
        for record in records:
            if record.id in gone:
                yield carried(["drop", record.id, gone[record.id]])
            yield from sides(record, looks, _CELLS)

    def _confirmed(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        counts: Counter[str] = Counter()
        for key, same in groupby(rows, key=lambda row: row[1]):
            values = [value for _, _, value in same]
            if not key:
                yield from values
            elif len(values) == 2:
                a, b = values[0][0].split(" ")
                worst = [apart(x, y) for x, y in zip(values[0][2], values[1][2], strict=True)]
                good = [w for w in worst if w is not None]
                if len(good) * 2 > len(worst):
                    counts["confirmed"] += 1
                    yield ["pair", a, b, max(good)]
        if counts:
            yield ["count", dict(counts)]


def distinct(frames: list[tuple[int, int | None]]) -> list[list[int]]:
    """(segment, hash) of a clip's frames that have structure, of a run of frames within two bits the first; at most `FRAMES`."""
    out: list[list[int]] = []
    for k, hash in frames:
        if hash is not None and not flat(hash) and not (out and (hash ^ out[-1][1]).bit_count() <= _STILL):
            out.append([k, hash])
    return sorted(sorted(out, key=lambda f: (spread(f[1]), f[0]))[:FRAMES])


def _hash(known: dict[bytes, int | None], digest: bytes, data: bytes) -> int | None:
    """The perceptual hash of a frame, remembered: samples of one trajectory share frames."""
    if digest not in known:
        if len(known) >= 4096:
            known.pop(next(iter(known)))
        made = sketch_of(data)[1]
        known[digest] = None if not made or plain(made[0].cells) else made[0].phash
    return known[digest]


def _same_frames(rows: Iterable[Row]) -> Iterator[list[Any]]:
    counts: Counter[str] = Counter()
    for _, same in groupby(rows, key=lambda row: row[1]):
        (rank, group, frames), *others = sorted((value for _, _, value in same), key=lambda v: v[0])
        counts.update({"clips": 1 + len(others), "exact": len(others), "without_frames": not frames})
        yield from (["drop", id_of(other[0]), "clip_hash.exact"] for other in others)
        if frames:
            yield ["clip", rank, group, frames]
    yield ["count", dict(counts)]


def _by_pair(values: Iterable[Any]) -> Iterator[Row]:
    for value in values:
        if value[0] == "frames":
            key = sha256(f"{value[1]} {value[2]}".encode()).digest()
            yield int.from_bytes(key[:4], "little"), key, value
        elif value[0] == "drop":
            yield carried(value)


def _together(values: Iterable[Any]) -> Iterator[Row]:
    yield from (carried(value) for value in values if value[0] in ("pair", "drop"))


def _dropped(values: Iterable[Any]) -> Iterator[Row]:
    yield from (carried(value) for value in values if value[0] == "drop")


def _ids(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    yield from ((id, reason) for _, _, (_, id, reason) in rows)
