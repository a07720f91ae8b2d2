"""Where an encoded record came from: the curated dataset at the end of its lineage, and the same record in it, found by its id.

In: an encoded dataset, as encode or compact wrote it. Out: its curated ancestor at the snapshot that was encoded, and for ids the records
with the shard that holds them. Shards of both lie in the same order, so a search goes on where the last one ended; only the column of ids is
read until the shard is found. A parent that is gone or has changed is an InputError that says what to do: nothing can be audited without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.index import record_of
from pipelines.format.manifest import parent_path
from pipelines.format.record import Record

IDS_KEPT = 4  # shards whose column of ids is kept, some megabytes each


def curated_parent(dataset: Dataset, named: str | None = None) -> Dataset:
    """The curated dataset behind an encoded one. `named` is where it lies now, when it was moved."""
    at, wanted = dataset, ""
    while at.encoding is not None:
        if not at.card["parents"]:
            raise InputError("this dataset was not made from pictures and texts: its card names no parent", where=at.path)
        entry = at.card["parents"][0]
        wanted, place = entry["fingerprint"], parent_path(at.card, entry)
        try:
            at = Dataset.open(place, wanted)
        except InputError as error:
            if named is None:
                raise InputError(
                    f"what these latents were made from is not there to be looked at: {error.what}",
                    where=place,
                    found=error.found,
                    allowed=f"the dataset with fingerprint {wanted[:16]}",
                    next="put it back at that place, or name the curated dataset with --parent PATH",
                ) from None
            break
    if named is None:
        return at
    # Which curated dataset an encode read is known; behind a compacted one whose parent is gone it is not, and ids must do.
    pinned = wanted if "encode" in at.card["code"]["stages"] else None
    given = Dataset.open(storage.absolute(named), pinned if at.encoding is not None else at.fingerprint)
    if given.encoding is not None:
        raise InputError("latents are audited against a curated dataset", where=named, found="an encoded one")
    return given


@dataclass(frozen=True, slots=True)
class Found:
    """A record of the parent: the shard that holds it, the record as it lies there, and the sha256 that its index gives."""

    shard: int
    whole: Record
    sha256: str

    @property
    def record(self) -> Record:
        """Without clips kept beside their frames, which encoding leaves out: segment k here is segment k of the encoded record."""
        return replace(self.whole, segments=tuple(s for s in self.whole.segments if s.kind != "video"))


class Origin:
    """The parent's records by id."""

    def __init__(self, parent: Dataset) -> None:
        self.parent, self._next = parent, 0
        self._ids = lru_cache(maxsize=IDS_KEPT)(self._read_ids)

    def find(self, ids: Iterable[str]) -> dict[str, Found]:
        """Those of the ids that the parent holds."""
        left, out = dict.fromkeys(ids), {}
        shards = len(self.parent.shards)
        for k in range(shards):
            if not left:
                break
            i = (self._next + k) % shards
            wanted = list(left)
            rows = pc.index_in(pa.array(wanted, pa.string()), value_set=self._ids(i)).to_pylist()
            at = {row: id for row, id in zip(rows, wanted, strict=True) if row is not None}
            if not at:
                continue
            for row, values in self.parent.take(i, at):
                out[at[row]] = Found(i, record_of(values), values["sha256"])
                del left[at[row]]
            last = i
        self._next = last if out else self._next
        return out

    def _read_ids(self, i: int) -> pa.Array:
        ids = self.parent.index(i, ["id"])["id"].combine_chunks()
        self.parent.release(i)
        return ids.cast(pa.string())
