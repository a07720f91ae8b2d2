"""Where the pictures of an encoded dataset lie: in the curated one that it was made from, found by id, a shard at a time.

In: shards of an encoded dataset. Out: for each of their segments the parent's shard and the place of the picture in its data file. Rows of both lie
in the same order, less the records that encoding rejected, so a search begins where a row would be if none had been, and goes on from there; only
the column of ids is read until the record is found. A dataset of `storage: none` needs none of this: its segments point at the pictures already.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.manifest import parent_path

if TYPE_CHECKING:
    from trainer.shard import Shard

IDS_KEPT, PLACES_KEPT = 4, 64  # parent's shards: columns of ids, some megabytes each; places of their segments
LEAVES = ["segments.list.element.kind", "segments.list.element.offset", "segments.list.element.nbytes"]


class Places(NamedTuple):
    """By segment of a shard: the parent's shard (-1: no picture), offset and bytes in its data file."""

    shard: np.ndarray
    offset: np.ndarray
    nbytes: np.ndarray


def curated(dataset: Dataset) -> Dataset:
    """The curated dataset at the end of an encoded one's lineage, at the snapshot that was encoded. InputError where it is gone."""
    at = dataset
    while at.encoding is not None:
        if not at.card["parents"]:
            raise InputError("this dataset was not made from pictures: its card names no parent", where=at.path, next="latents: stored")
        entry = at.card["parents"][0]
        place = parent_path(at.card, entry)
        try:
            at = Dataset.open(place, entry["fingerprint"])
        except InputError as error:
            raise InputError(
                f"the pictures of these latents are not there: {error.what}", where=place, found=error.found,
                allowed=f"the dataset with fingerprint {entry['fingerprint'][:16]}", next="put it back at that place, or use `latents: stored`",
            ) from None  # fmt: skip
    return at


class Origin:
    """The pictures behind one encoded dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.parent = dataset, curated(dataset)
        self._ours = list(accumulate((s.records for s in dataset.shards), initial=0))
        self._theirs = list(accumulate((s.records for s in self.parent.shards), initial=0))
        self._ids = lru_cache(maxsize=IDS_KEPT)(self._read_ids)
        self._segments = lru_cache(maxsize=PLACES_KEPT)(self._read_segments)

    def picture(self, places: Places, i: int) -> memoryview:
        """The bytes of the picture of a shard's i-th segment."""
        return self.parent.slice(int(places.shard[i]), "data", int(places.offset[i]), int(places.nbytes[i]))

    def places(self, shard: Shard) -> Places:
        """Of every segment of a shard. VerifyError where a record is not in the parent, or is built otherwise there."""
        n = len(shard.kind)
        out = Places(np.full(n, -1, np.int32), np.zeros(n, np.int64), np.zeros(n, np.int64))
        for row, (i, theirs) in self._rows(shard).items():
            starts, kind, offset, nbytes = self._segments(i)
            ours = slice(int(shard.offsets[row]), int(shard.offsets[row + 1]))
            there = slice(int(starts[theirs]), int(starts[theirs + 1]))
            if there.stop - there.start != ours.stop - ours.start:
                raise VerifyError("a record is built otherwise than the one it was made from", where=f"{self.dataset.path}, record {shard.ids[row]}",
                                  found=f"{ours.stop - ours.start} segments, its parent's {there.stop - there.start}")  # fmt: skip
            out.shard[ours] = np.where(kind[there], i, -1)
            out.offset[ours], out.nbytes[ours] = offset[there], nbytes[there]
        return out

    def _rows(self, shard: Shard) -> dict[int, tuple[int, int]]:
        """row of the shard -> (shard, row) of the parent."""
        left = pa.array(shard.ids, pa.string())
        rows, count = np.arange(len(shard.ids)), len(self.parent.shards)
        out: dict[int, tuple[int, int]] = {}
        first = max(int(np.searchsorted(self._theirs, self._ours[shard.shard], "right")) - 1, 0)
        for k in range(count):
            i = (first + k) % count
            at = pc.index_in(left, value_set=self._ids(i))
            there = np.asarray(at.is_valid())
            out.update(zip(rows[there].tolist(), ((i, row) for row in at.drop_null().to_pylist()), strict=True))
            left, rows = left.filter(pa.array(~there)), rows[~there]
            if not len(left):
                return out
        raise VerifyError("a record is not in the dataset it was made from", where=self.parent.path, found=left[0].as_py(),
                          next=f"pipelines verify {self.dataset.path} --deep")  # fmt: skip

    def _read_ids(self, i: int) -> pa.Array:
        return self.parent.index(i, ["id"])["id"].combine_chunks().cast(pa.string())

    def _read_segments(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(first segment of each row, whether it is a picture, offset, bytes), without clips kept beside their frames, which encoding leaves out."""
        lists = self.parent.index(i, LEAVES)["segments"].combine_chunks()
        lists = lists.chunk(0) if hasattr(lists, "num_chunks") else lists
        flat = lists.values
        kept = np.asarray(pc.not_equal(flat.field("kind"), "video"))
        starts = np.concatenate([[0], np.cumsum(kept)])[lists.offsets.to_numpy()]
        plain = [np.asarray(pc.equal(flat.field("kind"), "image"))]
        plain += [flat.field(name).fill_null(0).to_numpy(zero_copy_only=False) for name in ("offset", "nbytes")]
        return starts, plain[0][kept], plain[1][kept], plain[2][kept]
