"""Training pictures that evaluations show: pairs, frames of clips and question images that repeat a picture of an evaluation set leave.

    round 0   every picture of a record against every evaluation picture → hits, gathered by group
    round 1   (id, reason): `decontaminate_images.<set>.exact`, `.near` or, with `drop: group`, `.group`

**exact**: the same bytes, or the same pixels in another file. **near**: the same picture re-encoded, resized or compressed (`pipelines/sketches.py`
says how that is judged, docs/decontamination.md how well). Pictures of the training side have often been cropped or framed by our own pipeline
already, while the evaluation shows the whole: so each evaluation picture is sketched as it is, cropped to its middle square, and framed on a white
square (`geometry`). A training picture is taken as it is stored. Plain pictures are known by bytes and pixels alone.

**One hit drops the whole record**: of a clip one frame, of a sample of action-video one of its images, of a question record any of its images. What
is next to a leaked frame shows the same scene; `drop: group` therefore takes everything that must not be split from it (the video's other clips, the
trajectory's other samples). Records whose own group is on a set's held-out side stay: they will not be trained on.

Every worker sketches the evaluation sets once (20 ms a picture of 1 megapixel, 3.2 KB for each geometry) and holds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b, sha256
from itertools import groupby
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipelines.across.evaluation_pictures import Hit, Known, known, sketch_of
from pipelines.across.reference_images import ReferenceImages, image_files
from pipelines.format.chance import held_out
from pipelines.format.record import Record
from pipelines.stage import Across, Map, Reduce, Row

_RECENT = 4096  # pictures whose answer is remembered: samples of one trajectory share frames
_EXAMPLES = 5  # of each set, in the report
Geometry = Literal["as_is", "center_crop", "border"]


class DecontaminateImages(Across):
    """`against`: name → set. `near: false` compares bytes and pixels alone. `geometry`: as what an evaluation picture may turn up. `drop`: the
    record that holds a hit, or its whole group."""

    payloads: ClassVar[bool] = True
    against: dict[str, ReferenceImages] = Field(min_length=1)
    near: bool = True
    geometry: tuple[Geometry, ...] = Field(("as_is", "center_crop", "border"), min_length=1)
    drop: Literal["record", "group"] = "record"

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """Hits by group; then ids."""
        return [(self._hits, self._gathered), (_spread, _ids)]

    def files(self) -> list[str]:
        return list(dict.fromkeys(path for reference in self.against.values() for path in image_files(reference)))

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """Of each set: its pictures and how many were met, records lost and how; distances of near hits; a few hits by name."""
        out: dict[str, dict[str, int]] = {}
        met: dict[str, set[str]] = {}
        bits: Counter[str] = Counter()
        examples: dict[str, list[list[Any]]] = {}
        for kind, name, *said in told[0]:
            row = out.setdefault(name, dict.fromkeys(("pictures", "undecodable", "plain", "met", "exact", "near", "group"), 0))
            if kind == "set":
                row.update(zip(("pictures", "undecodable", "plain"), said, strict=True))
            elif kind == "hit":
                id, image, how, geometry, distance, worst = said
                met.setdefault(name, set()).add(image)
                if how == "near":
                    bits[f"{distance:02d}"] += 1
                examples.setdefault(name, []).append([worst, distance, image, id, how, geometry])
            else:
                row[said[0]] += said[1]
        for name, row in out.items():
            row["met"] = len(met.get(name, ()))
        some = {
            id: f"{name}: {image} ({how}, {geometry}, {distance} bits, {worst} levels)"
            for name in out
            for worst, distance, image, id, how, geometry in sorted(examples.get(name, []), reverse=True)[:_EXAMPLES]
        }
        return {"sets": out, "bits": dict(sorted(bits.items())), "farthest": some}

    # ---- the record's side -------------------------------------------------------------------------------------------------------------

    def _hits(self, records: Iterable[Record]) -> Iterator[Row]:
        sets = {name: known(reference, self.geometry if self.near else (), name) for name, reference in self.against.items()}
        yield from ((0, b"", ["set", name, *s.counts]) for name, s in sets.items())
        sides = [r.held_out for r in self.against.values() if r.held_out is not None]
        recent: dict[bytes, dict[str, list[Hit]]] = {}
        for record in records:
            pictures = [s.payload for s in record.segments if s.kind == "image" and s.payload is not None]
            if not pictures or any(held_out(record.group, side.fraction, side.seed) for side in sides):
                continue
            key = blake2b(record.group.encode(), digest_size=16).digest()
            bucket = int.from_bytes(key[:4], "little")
            if self.drop == "group":
                yield bucket, key, ["in", record.id]
            for name, hits in self._of(pictures, sets, recent).items():
                order = list(self.against).index(name)
                yield from ((bucket, key, ["hit", order, record.id, *hit]) for hit in hits)

    def _of(self, pictures: list[bytes], sets: dict[str, Known], recent: dict[bytes, dict[str, list[Hit]]]) -> dict[str, list[Hit]]:
        """Hits of all of a record's pictures by set, each evaluation picture once, by its nearest."""
        best: dict[str, dict[str, Hit]] = {}
        for data in pictures:
            digest = sha256(data).digest()
            if digest not in recent:
                if len(recent) >= _RECENT:
                    recent.pop(next(iter(recent)))
                recent[digest] = hits_of(data, digest, sets)
            for name, hits in recent[digest].items():
                for hit in hits:
                    mine = best.setdefault(name, {})
                    mine[hit.image] = min(mine.get(hit.image, hit), hit, key=lambda h: (h.how != "exact", h.worst, h.bits))
        return {name: list(mine.values()) for name, mine in best.items()}

    def _gathered(self, rows: Iterable[Row]) -> Iterator[list[Any]]:
        """Hits as they are, and who leaves for which set: of several, the first in the recipe; exact before near."""
        names = list(self.against)
        for key, same in groupby(rows, key=lambda row: row[1]):
            values = [value for _, _, value in same]
            if not key:
                yield from [list(v) for v in dict.fromkeys(map(tuple, values))]  # every part says the same of the sets
                continue
            first: dict[str, tuple[int, str]] = {}
            for kind, *said in values:
                if kind == "hit":
                    order, id, image, how, geometry, bits, worst = said
                    first[id] = min(first.get(id, (order, how)), (order, how))
                    yield ["hit", names[order], id, image, how, geometry, bits, worst]
            if first:
                beside = [v[1] for v in values if v[0] == "in" and v[1] not in first]
                least = min(first.values())[0]
                yield from (["drop", names[order], how, 1, id] for id, (order, how) in sorted(first.items()))
                yield from (["drop", names[least], "group", 1, id] for id in beside)


def hits_of(data: bytes, digest: bytes, sets: dict[str, Known]) -> dict[str, list[Hit]]:
    """What of the sets this picture shows. One that cannot be decoded is compared by its bytes."""
    found = {name: hits for name, one in sets.items() if (hits := one.by_bytes(data, digest))}
    others = {name: one for name, one in sets.items() if name not in found}
    pixels, sketches = sketch_of(data) if others else (None, [])
    if pixels is not None:
        found |= {name: hits for name, one in others.items() if (hits := one.by_look(pixels, sketches[0]))}
    return found


def _spread(values: Iterable[Any]) -> Iterator[Row]:
    yield from ((int.from_bytes(sha256(v[4].encode()).digest()[:4], "little"), b"", v) for v in values if v[0] == "drop")


def _ids(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    yield from ((id, f"decontaminate_images.{name}.{how}") for _, _, (_, name, how, _, id) in rows)
