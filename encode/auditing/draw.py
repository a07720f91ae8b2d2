"""Which stored payloads an audit looks at: a sample that follows from the seed and the dataset alone.

In: an encoded dataset, an amount (`0.1%`, `0.001`, `500`), a seed. Out: per shard the places that are drawn, and how many there are in all. A
payload of latents has one place (its offset in the shard's file), however many records show it; a text is a place of its own (the number of
its segment in the shard). Whether a place is drawn depends on its own draw, so a larger share holds every smaller one, two audits agree, and
100 % is everything. A share draws each place with that chance, at least one in all; a count takes the smallest draws.

Memory: the segments' kinds and offsets of one shard at a time, and 24 bytes a drawn place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow.compute as pc

from pipelines.format.chance import draw, uniform
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import forgotten_rows
from pipelines.format.sizes import read_size

KINDS = ("latents", "tokens")


@dataclass(frozen=True, slots=True)
class Amount:
    """A share in (0, 1], or a number of payloads of each kind."""

    share: Fraction | None = None
    count: int | None = None

    @classmethod
    def read(cls, text: str) -> Amount:
        """`0.1%` and `0.001` are shares; a whole number (`500`, `2K`) is a count."""
        try:
            if text.endswith("%") or ("." in text and text[-1:].isdigit()):
                share = Fraction(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
                if 0 < share <= 1:
                    return cls(share=share)
            elif (count := read_size(text)) > 0:
                return cls(count=count)
        except (ValueError, ZeroDivisionError):
            pass
        raise InputError("this says no amount", where="--audit", found=text, allowed="a share above 0, up to 100% (0.1%, 0.001), or a count (500)")


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of one kind in a shard: the `row` that each belongs to, which of its record's segments it is (`within`), and its `place`."""

    row: np.ndarray
    within: np.ndarray
    place: np.ndarray

    def at(self, places: np.ndarray) -> dict[int, list[int]]:
        """Row -> segments of its record that lie at one of the places."""
        chosen = np.isin(self.place, places)
        out: dict[int, list[int]] = {}
        for row, k in zip(self.row[chosen].tolist(), self.within[chosen].tolist(), strict=True):
            out.setdefault(row, []).append(k)
        return out


def segments(dataset: Dataset, i: int, kind: str, gone: list[int]) -> Segments:
    """Segments of a kind in shard i, but for those of forgotten rows."""
    column = dataset.index(i, ["segments.list.element.kind", "segments.list.element.offset"])["segments"].combine_chunks()
    rows, flat = pc.list_parent_indices(column).to_numpy(zero_copy_only=False), column.flatten()
    within = np.arange(len(rows)) - np.searchsorted(rows, rows)
    number = np.flatnonzero(np.asarray(pc.equal(flat.field("kind"), kind)) & ~np.isin(rows, gone))
    place = number if kind == "tokens" else flat.field("offset").take(number).to_numpy(zero_copy_only=False)
    return Segments(rows[number], within[number], place.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Places by shard, sorted; `of` = distinct places there are."""

    places: dict[int, np.ndarray]
    of: int

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))


def drawn(dataset: Dataset, kind: str, amount: Amount, seed: int, gone: dict[int, list[int]] | None = None) -> Drawn:
    """The sample of payloads of a kind."""
    found = np.zeros((0, 3), np.uint64)  # draw, shard, place
    least, of = found, 0
    for key, i, place in _draws(dataset, kind, seed, gone if gone is not None else forgotten_rows(dataset)):
        of += len(key)
        rows = np.stack([key, np.full(len(key), i, np.uint64), place.astype(np.uint64)], axis=1)
        least = _smallest(np.concatenate([least, rows]), 1)
        if amount.count is not None:
            found = _smallest(np.concatenate([found, rows]), amount.count)
        else:
            assert amount.share is not None
            found = np.concatenate([found, rows[uniform(key) < float(amount.share)]])
    found = found if len(found) else least
    shards = np.unique(found[:, 1]).astype(np.int64).tolist()
    return Drawn({i: np.sort(found[found[:, 1] == i, 2]).astype(np.int64) for i in shards}, of)


def _draws(dataset: Dataset, kind: str, seed: int, gone: dict[int, list[int]]) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """(draw of each distinct place, shard, places), shard by shard."""
    for i in range(len(dataset.shards)):
        place = np.unique(segments(dataset, i, kind, gone.get(i, [])).place)
        dataset.release(i)
        if len(place):
            yield draw(place.astype(np.uint64), seed, "audit", kind, dataset.fingerprint, i), i, place


def _smallest(rows: np.ndarray, n: int) -> np.ndarray:
    """The n rows with the smallest draws, ties by shard and place."""
    return rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))[:n]]
