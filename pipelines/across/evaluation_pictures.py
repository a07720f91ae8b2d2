"""What an evaluation set looks like, held in memory to be asked: bytes, pixels and sketches of its pictures, or a list of their hashes.

What comes in: a `ReferenceImages` and the geometries to sketch each picture in. What goes out: `Known`, one for a set and process. A dozen bytes a
picture for each digest, a name, and 3.2 KB for each sketch: 50,000 pictures in three geometries take 0.5 GB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from hashlib import new, sha256
from typing import NamedTuple

from pipelines.across.reference_images import ReferenceImages, image_files, is_dataset, reference_images
from pipelines.format import storage
from pipelines.format.document import fingerprint
from pipelines.format.errors import InputError, Reject
from pipelines.format.hamming import flat
from pipelines.hash_list import HashList, hash_list
from pipelines.media import hashing
from pipelines.sketches import Sketch, SketchIndex, plain

_LISTED = 4  # bits within which a listed perceptual hash counts: there are no cells to confirm it by
_LIST = "(listed)"  # in place of a name


class Hit(NamedTuple):
    """An evaluation picture that a training picture shows: `how` exact or near, in which geometry, bits between hashes, levels between cells."""

    image: str
    how: str
    geometry: str = "as_is"
    bits: int = 0
    worst: int = 0


class Known:
    """One evaluation set. `counts`: pictures of different bytes, those that could not be decoded, plain ones. `alias`: each name → the name
    under which its bytes or pixels are known."""

    def __init__(self, pictures: Iterable[tuple[str, bytes]], hows: tuple[str, ...], listed: HashList | None = None) -> None:
        self._listed = listed
        self.alias: dict[str, str] = {}
        self._bytes: dict[bytes, str] = {}
        self._pixels: dict[bytes, str] = {}
        self._names: list[str] = []
        sketches: list[Sketch] = []
        counts: Counter[str] = Counter()
        for image, data in pictures:
            digest = sha256(data).digest()
            self.alias[image] = self._bytes.setdefault(digest, image)
            if self.alias[image] != image:
                continue
            counts["pictures"] += 1
            pixels, made = sketch_of(data, hows or (hashing.AS_IS,))
            if pixels is None:
                counts["undecodable"] += 1
                continue
            counts["plain"] += plain(made[0].cells)
            self.alias[image] = self._pixels.setdefault(pixels, image)
            if hows and self.alias[image] == image:
                sketches += made
                self._names += [image] * len(made)
        self._hows = [s.how for s in sketches]
        self._index = SketchIndex(sketches)
        if self._listed is not None:
            counts["pictures"] = max([len(d) for d in self._listed.digests.values()] + [len(self._listed.near.hashes) if self._listed.near else 0])
        self.counts = [counts[k] for k in ("pictures", "undecodable", "plain")]

    def by_bytes(self, data: bytes, digest: bytes) -> list[Hit]:
        """A picture with these very bytes (`digest` is their sha256)."""
        if digest in self._bytes:
            return [Hit(self.alias[self._bytes[digest]], "exact")]
        kinds = self._listed.digests if self._listed else {}
        listed = any((digest if kind == "sha256" else new(kind, data, usedforsecurity=False).digest()) in d for kind, d in kinds.items())
        return [Hit(_LIST, "exact")] if listed else []

    def by_look(self, pixels: bytes, sketch: Sketch) -> list[Hit]:
        """Pictures with these pixels, or else those that show the same: each once, in its nearest geometry."""
        if pixels in self._pixels:
            return [Hit(self._pixels[pixels], "exact")]
        if self._listed is not None:
            near = self._listed.near.nearest(sketch.phash) if self._listed.near is not None and not flat(sketch.phash) else None
            return [Hit(_LIST, "near", bits=near)] if near is not None else []
        best: dict[str, Hit] = {}
        for match in self._index.matches(sketch):
            hit = Hit(self._names[match.at], "near", self._hows[match.at], match.bits, match.worst)
            best.setdefault(hit.image, hit)
        return list(best.values())


def sketch_of(data: bytes, hows: tuple[str, ...] = (hashing.AS_IS,)) -> tuple[bytes | None, list[Sketch]]:
    """(sha256 of the pixels, sketches); (None, []) of what cannot be decoded."""
    try:
        return hashing.sketches(data, hows)
    except Reject:
        return None, []


def known(reference: ReferenceImages, hows: tuple[str, ...], name: str) -> Known:
    """The set, read once in a process as long as its listing does not change."""
    root = image_files(reference)[0] if is_dataset(reference.path) else reference.path
    return _known(reference, hows, name, fingerprint([list(entry) for entry in storage.listing(root)]))


@lru_cache(maxsize=8)
def _known(reference: ReferenceImages, hows: tuple[str, ...], name: str, listed: str) -> Known:
    found = Known(() if reference.hashes else reference_images(reference), hows, _list_of(reference) if reference.hashes else None)
    if not found.counts[0]:
        raise InputError("this set has no pictures", where=f"against.{name}", found=reference.path)
    return found


def _list_of(reference: ReferenceImages) -> HashList:
    path = storage.absolute(reference.path)
    return hash_list((path,), (storage.listing(path)[0][2],), _LISTED)
