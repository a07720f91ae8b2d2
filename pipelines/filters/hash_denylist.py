"""Pictures that must not come in: their bytes, or what they look like, are on a list of hashes.

For the lists of known bad content that operators are given, for withdrawn and opted-out pictures, for evaluation images. It is meant for the first
place in `filters:`, where the bytes are still those that the world serves: lists hash the file, not what a transform made of it. `lists` are files
as `hash_list.py` reads them; their bytes are part of the dataset's fingerprint, so another list makes another dataset. One listed picture of a
record drops the record, as `hash_denylist.bytes` or `hash_denylist.near`; the reason does not say which entry it was.

Digests cost about a microsecond a kilobyte and are computed for the kinds that the lists hold. Perceptual hashes cost a decode of the picture
in the guarded child (5 ms at 640 × 480), unless the record has one; what cannot be decoded is rejected, not let through. Flat pictures are judged by
bytes alone.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import new

from pydantic import Field

from pipelines.format import storage
from pipelines.format.hamming import flat
from pipelines.format.record import Record
from pipelines.hash_list import HashList, hash_list
from pipelines.media import hashing
from pipelines.stage import Filter


class HashDenylist(Filter):
    """`lists`: files of hashes. `distance`: bits of 64 in which a perceptual hash may differ from a listed one; they differ by even numbers."""

    lists: tuple[str, ...] = Field(min_length=1)
    distance: int = Field(4, ge=0, le=16)

    def files(self) -> list[str]:
        return list(self.lists)

    def reason(self, record: Record) -> str | None:
        listed = self._listed
        pictures = [s.payload for s in record.segments if s.kind == "image" and s.payload is not None]
        for kind, digests in listed.digests.items():
            if any(new(kind, picture, usedforsecurity=False).digest() in digests for picture in pictures):
                return "hash_denylist.bytes"
        if listed.near is not None:
            hashes = [record.phash] if record.phash is not None and len(pictures) == 1 else [hashing.phash(p) for p in pictures]
            if any(h is not None and not flat(h) and listed.near.nearest(h) is not None for h in hashes):
                return "hash_denylist.near"
        return None

    @cached_property
    def _listed(self) -> HashList:
        """Looked up once a part: in an object store every look is a request."""
        paths = tuple(map(storage.absolute, self.lists))
        return hash_list(paths, tuple(storage.listing(path)[0][2] for path in paths), self.distance)
