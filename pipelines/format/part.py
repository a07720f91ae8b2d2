"""The part: one unit of work, and the record that says it is done.

A part of the source becomes k ≥ 0 shards, one file of rejects, and `parts/PPPPP.json`, created exclusively and last. The commit record names
every file with bytes and sha256, so it cannot lie; outputs are named by content, so a second attempt writes the same names; and it counts:

    in = written + Σ filtered(by reason) + Σ rejected(by reason)          exact, or the commit fails

`in` is counted where records appear (`emit`), the right-hand side where they end, so that a record lost on the way is found here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipelines.format import storage
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import ConflictError
from pipelines.format.index import record_of
from pipelines.format.record import Record
from pipelines.format.rows import RowFile
from pipelines.format.shard import Foreign, Shard, ShardWriter
from pipelines.format.storage import join

FORMAT = "headwater/1"
SHARD_BYTES = 256 << 20
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "origin", "stage", "outcome", "reason", "error")])
_ERROR_TEXT = 4096  # characters of an error kept per record


def commit_path(root: str, part: int) -> str:
    """Where the commit record of a part lies."""
    return join(root, "parts", f"{part:05d}.json")


def dropped_path(root: str) -> str:
    """Where the dataset of the records that filters dropped lies, below the one they were dropped from."""
    return join(root, "dropped")


class PartWriter:
    """Takes the records of one part in order and publishes them at once. Leave the block without `commit` and nothing was committed.

    With `keep_dropped`, what is dropped becomes a part with the same number of a dataset beside this one (`dropped`), its reason in the field
    `dropped`; it is committed first, so where this part is done, that one is.
    `ends`, as numbers of records written, says where shards end instead of `shard_bytes`: those of another dataset with the same rows."""

    def __init__(
        self,
        root: str,
        part: int,
        *,
        fingerprint: str,
        encoded: bool = False,
        shard_bytes: int = SHARD_BYTES,
        items: int = 1,
        foreign_data: Foreign | None = None,
        keep_dropped: bool = False,
        ends: Sequence[int] | None = None,
    ) -> None:
        self.dropped: PartWriter | None = None
        if keep_dropped:
            self.dropped = PartWriter(dropped_path(root), part, fingerprint=fingerprint, shard_bytes=shard_bytes, items=items)
        self.root, self.part, self.fingerprint, self.encoded = root, part, fingerprint, encoded
        self.shard_bytes, self.items, self.foreign_data = shard_bytes, items, foreign_data
        self.ends = None if ends is None else frozenset(ends)
        self.emitted = self.written = 0
        self.filtered: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self._sources: dict[str, Counter[str]] = {}
        self._tokens: Counter[str] = Counter()
        self._rejects: RowFile | None = None
        self._shards: list[Shard] = []
        self._files: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._shard: ShardWriter | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        if self._rejects is not None:
            self._rejects.close()
        if self.dropped is not None:
            self.dropped.__exit__(*exc)

    def emit(self, n: int = 1) -> None:
        """Count `n` more records (or unreadable items) that came in."""
        self.emitted += n

    def add(self, record: Record) -> str:
        """Write one record, rolling to a new shard when the present one is full. Returns the sha256 of its segments."""
        shard = self._open()
        digest = shard.add(record)
        self.written += 1
        self._count(record)
        if shard.stored >= self.shard_bytes if self.ends is None else self.written in self.ends:
            self._roll()
        return digest

    def keep(self, row: dict[str, Any]) -> None:
        """Write a row of another dataset's index as it is now, while its bytes stay in the data file that `foreign_data` names."""
        self._open().keep(row)
        self.written += 1
        self._count(record_of(row))

    def drop(self, record: Record, stage: str, reason: str) -> None:
        """A record that a filter did not want."""
        self.filtered[reason] += 1
        self._note(record.id, record.origin, stage, "filtered", reason, "")
        if self.dropped is not None:
            self.dropped.emit()
            self.dropped.add(replace(record, fields={**record.fields, "dropped": reason}))

    def reject(self, origin: str, stage: str, reason: str, error: str = "", id: str | None = None) -> None:
        """A record or an item that could not be used."""
        self.rejected[reason] += 1
        self._note(id, origin, stage, "rejected", reason, error)

    def carry(self, before: dict[str, Any], rejects: Iterable[dict[str, Any]]) -> None:
        """Take over what an earlier pass over the same part dropped: its counts and its rows of rejects."""
        self.emitted += before["in"] - before["written"]
        self.filtered.update(before["filtered"])
        self.rejected.update(before["rejected"])
        for row in rejects:
            self._list(row)

    def beside(self, folder: str, data: bytes, suffix: str) -> str:
        """Publish a file of this part that is no shard, as `folder/PPPPP-<hash><suffix>`; the commit record names it. Returns that name."""
        digest = sha256_hex(data)
        name = f"{folder}/{self.part:05d}-{digest[:16]}{suffix}"
        storage.publish(join(self.root, name), data, scratch=self.root)
        self._files.append({"path": name, "bytes": len(data), "sha256": digest})
        return name

    def commit(self, stats: dict[str, Any] | None = None, retries: dict[str, int] | None = None) -> dict[str, Any]:
        """Publish shards, rejects and, exclusively, the commit record. Returns the record; a lost race with equal work returns the winner's.
        `retries` says, by reason, how many rejects of an earlier part this one took up again."""
        ends = self.written + self.filtered.total() + self.rejected.total()
        assert self.emitted == ends, f"part {self.part}: {self.emitted} came in, {ends} went out"
        self._roll()
        if self.dropped is not None:
            self.dropped.commit()
        if self._rejects is not None:
            self._publish_rejects(self._rejects)
        record = {
            "format": FORMAT,
            "part": self.part,
            "fingerprint": self.fingerprint,
            "files": self._files,
            "shards": [s.as_dict() for s in self._shards],
            "items": self.items,
            "in": self.emitted,
            "written": self.written,
            "filtered": dict(sorted(self.filtered.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "tokens": {k: self._tokens[k] for k in ("text", "visual", "loss", "all")},
            "sources": {k: dict(sorted(v.items())) for k, v in sorted(self._sources.items())},
            "stats": stats,
            **({"retries": dict(sorted(retries.items()))} if retries else {}),
        }
        return publish_commit(self.root, record)

    def _open(self) -> ShardWriter:
        if self._shard is None:
            self._shard = ShardWriter(self.root, self.part, self.written, self.encoded, self.foreign_data)
            self._stack.enter_context(self._shard)
        return self._shard

    def _roll(self) -> None:
        if self._shard is not None:
            shard, files = self._shard.publish()
            self._shards.append(shard)
            self._files += files
            self._stack.close()
            self._shard = None

    def _count(self, record: Record) -> None:
        tokens = {"text": 0, "visual": 0, "loss": 0, "all": 0}
        for s in record.segments:
            tokens["text"] += s.tokens if s.kind == "tokens" else 0
            tokens["visual"] += s.tokens if s.kind == "latents" else 0
            tokens["loss"] += s.tokens if s.role == "target" else 0
            tokens["all"] += s.tokens
        source = self._sources.setdefault(record.source, Counter())
        source["records"] += 1
        for name, n in tokens.items():
            source[name] += n
            self._tokens[name] += n

    def _note(self, id: str | None, origin: str, stage: str, outcome: str, reason: str, error: str) -> None:
        self._list({"id": id, "origin": origin, "stage": stage, "outcome": outcome, "reason": reason, "error": error[:_ERROR_TEXT]})

    def _list(self, row: dict[str, Any]) -> None:
        if self._rejects is None:
            self._rejects = RowFile(self.root, REJECT_SCHEMA)
        self._rejects.add(row, len(row["error"] or ""))

    def _publish_rejects(self, rejects: RowFile) -> None:
        b = rejects.finish()
        name = f"rejects/{self.part:05d}-{b.sha256[:16]}.parquet"
        self._files.append({"path": name, "bytes": b.nbytes, "sha256": b.sha256})
        b.publish(self.root, name)


def net(commit: dict[str, Any]) -> dict[str, Any]:
    """`in` and `rejected` of a commit record as they add to a whole: what a retry took up again was counted by the part before it."""
    again: dict[str, int] = commit.get("retries") or {}
    reasons = dict.fromkeys([*commit["rejected"], *again])
    return {"in": commit["in"] - sum(again.values()), "rejected": {r: commit["rejected"].get(r, 0) - again.get(r, 0) for r in reasons}}


def publish_commit(root: str, record: dict[str, Any]) -> dict[str, Any]:
    """Create the commit record exclusively. A loser with the same fingerprint accepts the winner's; with another, it is a conflict."""
    path = commit_path(root, record["part"])
    if storage.create_exclusive(path, canon(record), scratch=root):
        return record
    winner = json.loads(storage.read(path))
    if winner["fingerprint"] == record["fingerprint"]:
        return dict(winner)
    raise ConflictError(
        "another job has committed this part from other inputs",
        where=path,
        found=winner["fingerprint"],
        allowed=record["fingerprint"],
        next="give this job another output, or stop the other one",
    )
