"""Near duplicates of text: documents whose word 5-grams overlap by about 72 % or more, found by MinHash; of each cluster one stays.

    round 0   map     record → a row per band: (band, its hashes)          the same signatures as datatrove's, bit for bit
              reduce  the same band and hashes → pairs
    round 1   reduce  one bucket holds all pairs: union-find → clusters → (id, reason) of all but the survivor

Broder, "On the Resemblance and Containment of Documents" (1997), with banding (14 bands of 8 hashes, as FineWeb used: 92 % of pairs with
similarity 0.8 are found). The survivor of a cluster is the record with the smallest draw(h, seed, "survivor"), ties by id, so it depends
neither on the order of files nor on sharding; datatrove keeps the one that its file numbers favour. A cluster is what is connected: A may
leave with C for the sake of B. Memory of the last step: about 300 bytes for each record that has a near duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import draw, hash64
from pipelines.format.record import Record
from pipelines.shingles import runs, words_simplified
from pipelines.stage import Across, Map, Reduce, Row
from pipelines.words import text_of

_PRIME = (1 << 61) - 1  # Mersenne: a remainder is a shift and an add
_BLOCK = 512  # shingles at a time: 512 × 112 products stay in the cache


class Minhash(Across):
    """`n_grams` words a shingle, `num_buckets` bands of `hashes_per_bucket`. `hash_seed` makes the hash functions (1 is datatrove's
    default), `seed` decides which copy survives. `language` (ISO 639-3) picks the word tokenizer."""

    n_grams: int = 5
    num_buckets: int = 14
    hashes_per_bucket: int = 8
    hash_seed: int = 1
    seed: int = 0
    language: str = "eng"

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """By band and hashes; then all pairs together."""
        return [(self._banded, _pairs), (_together, self._leave)]

    def signature(self, text: str) -> NDArray[np.uint64] | None:
        """uint64 [num_buckets, hashes_per_bucket], equal to datatrove's; None for a text of fewer than `n_grams` words."""
        shingles = runs(words_simplified(text, self.language), self.n_grams)
        if not len(shingles):
            return None
        a, b = self._functions
        prime, least = np.uint64(_PRIME), np.full(len(a), _PRIME, np.uint64)
        for start in range(0, len(shingles), _BLOCK):
            x = shingles[start : start + _BLOCK, None] * a  # modulo 2^64, as numpy does there
            x += b
            high = x >> np.uint64(61)
            x &= prime
            x += high
            np.subtract(x, prime, out=high)  # wraps round to a huge number where x < prime already
            np.minimum(x, high, out=x)
            np.minimum(least, x.min(axis=0), out=least)
        return least.reshape(self.num_buckets, self.hashes_per_bucket)

    @cached_property
    def _functions(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """a and b of the hash functions a·x + b, drawn as datatrove draws them."""
        generator, size = np.random.RandomState(self.hash_seed), self.num_buckets * self.hashes_per_bucket
        prime = np.uint64(_PRIME)
        return generator.randint(1, prime, dtype=np.uint64, size=size), generator.randint(0, prime, dtype=np.uint64, size=size)

    def _banded(self, records: Iterable[Record]) -> Iterator[Row]:
        for record in records:
            signature = self.signature(text_of(record))
            if signature is None:
                continue
            for band, hashes in enumerate(signature):
                yield int(hashes[0] % np.uint64(self.buckets)), band.to_bytes(2, "big") + hashes.astype("<u8").tobytes(), record.id

    def _leave(self, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
        for cluster in clusters(value for _, _, value in rows):
            _, *others = sorted(cluster, key=lambda id: (draw(hash64(id), self.seed, "survivor"), id))
            yield from ((id, "minhash") for id in others)


def _pairs(rows: Iterable[Row]) -> Iterator[list[str]]:
    """Neighbours among the records of one band with the same hashes: enough to connect them all."""
    for _, same in groupby(rows, key=lambda row: row[1]):
        yield from (list(pair) for pair in pairwise(value for _, _, value in same))


def _together(pairs: Iterable[list[str]]) -> Iterator[Row]:
    yield from ((0, b"", pair) for pair in pairs)


def clusters(pairs: Iterable[tuple[str, str] | list[str]]) -> list[list[str]]:
    """What the pairs connect, each cluster in the order its members were met. Union-find with path halving, by size."""
    parent: dict[str, str] = {}
    size: dict[str, int] = {}

    def root(x: str) -> str:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        a, b = root(a), root(b)
        if a != b:
            if size.get(a, 1) < size.get(b, 1):
                a, b = b, a
            parent[b], size[a] = a, size.get(a, 1) + size.get(b, 1)
    found: dict[str, list[str]] = {}
    for x in parent:
        found.setdefault(root(x), []).append(x)
    return list(found.values())
