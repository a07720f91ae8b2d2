"""A curated dataset as the source of another: filters, transforms and whole-dataset stages over what is there, without the raw world.

    raw files ──▶ dataset A ──this source──▶ filters, transforms, across ──▶ dataset B, whose card has A for its parent

A part is one shard of A, and its fingerprint holds that shard's hashes: when A grows, only what is new is read. Records keep their id, source,
origin, group, scores, fields, licence, url and phash, so what B says of a record can be joined with what A says, and the held-out split stays
the same. What was forgotten of A is rejected as `tombstone`. Payloads are read record by record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.format import storage
from pipelines.format.dataset import Dataset as Curated
from pipelines.format.errors import InputError
from pipelines.format.forgotten import REASON, forgotten_rows
from pipelines.format.manifest import read_card
from pipelines.format.record import Record
from pipelines.stage import Rejected, Source, SourcePart


class Dataset(Source):
    """The curated dataset at `path`, whose kind is the kind of record that comes out."""

    path: str

    @property
    def data(self) -> str:  # type: ignore[override]
        """text, image-text, video, action-video or vqa: here the parent's card says it."""
        return self._open().data

    def _open(self) -> Curated:
        dataset = Curated.open(storage.absolute(self.path))
        if dataset.encoding is not None:
            raise InputError(
                "an encoded dataset has neither text nor pictures to filter",
                where=f"source: dataset: path: {self.path}",
                found="token ids and latents",
                allowed="a curated dataset",
                next="name the dataset that it was encoded from, and encode what comes of it",
            )
        return dataset

    def parents(self) -> list[tuple[str, str]]:
        dataset = self._open()
        return [(dataset.path, dataset.fingerprint)]

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """How the parent was made, and not where it lies: a dataset that was moved gives the same one again."""
        card = read_card(storage.absolute(self.path))
        return {"parent": card.get("recipe_fingerprint") or card["fingerprint"]}

    def parts(self) -> list[SourcePart]:
        """A shard a part. The rows that are forgotten stand in its spec, so that a later tombstone makes anew only the parts it concerns."""
        dataset = self._open()
        gone = forgotten_rows(dataset)
        out = []
        for i, s in enumerate(dataset.shards):
            files = [(s.index, s.index_bytes, s.index_sha256), (s.data, s.data_bytes, s.data_sha256)]
            spec = {"shard": s.index_sha256, **({"gone": gone[i]} if i in gone else {})}
            out.append(SourcePart(spec, [list(f) for f in files if f[0] is not None]))
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        """The records of one shard in their order, as they are; the recipe's name does not become their source."""
        dataset = self._open()
        i = next((i for i, s in enumerate(dataset.shards) if s.index_sha256 == spec["shard"]), None)
        if i is None:
            raise InputError("the dataset was made anew while it was read", where=self.path, next="run the same command again")
        gone = frozenset(spec.get("gone", ()))
        for n, record in enumerate(dataset.records(i)):
            yield Rejected(record.origin, REASON) if n in gone else dataset.with_payloads(i, record)
