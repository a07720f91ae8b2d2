"""The shards of a dataset as they are, below another path: what `compact` makes where there is nothing to join, to split or to leave out.

In: the parts of the parent. Out: the same parts, whose files are the parent's own under a second name. Nothing is read but commit records.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.document import fingerprint
from pipelines.format.errors import VerifyError
from pipelines.format.linking import link
from pipelines.format.part import commit_path, publish_commit
from pipelines.format.shard import Shard


def items(dataset: Dataset, made: dict[str, Any]) -> list[dict[str, Any]]:
    """A part for every part of the parent that has shards, under the number that it has there: keys and file names hold it."""
    out = []
    for part in dict.fromkeys(s.part for s in dataset.shards):
        hashes = [[s.index_sha256, s.tokens_sha256, s.data_sha256 or s.data] for s in dataset.shards if s.part == part]
        out.append({"part": part, "fingerprint": fingerprint({**made, "linked": hashes})})
    return out


def link_part(item: dict[str, Any], dataset: tuple[str, str], root: str) -> dict[str, Any]:
    """Link the files of one part and commit it; returns the commit record."""
    parent = open_cached(*dataset)
    before = storage.read_json(commit_path(parent.path, item["part"]))
    shards = [s for s in parent.shards if s.part == item["part"]]
    if before["written"] != sum(s.records for s in shards):
        raise VerifyError(
            "a commit record and the shard table disagree",
            where=commit_path(parent.path, item["part"]),
            next=f"pipelines verify {parent.path}",
        )
    files = [f for s in shards for f in _files(s)]
    for f in files:
        link(storage.join(parent.path, f["path"]), root, f["path"], f["bytes"], f["sha256"])
    kept = {key: before[key] for key in ("format", "part", "written", "tokens", "sources")}
    new = {"fingerprint": item["fingerprint"], "files": files, "shards": [moved(s, parent, root).as_dict() for s in shards], "items": len(shards)}
    return publish_commit(root, {**kept, **new, "in": before["written"], "filtered": {}, "rejected": {}, "stats": None})


def moved(shard: Shard, parent: Dataset, root: str) -> Shard:
    """A row of the shard table as it reads below `root`: a file of another dataset is seen from there by another path."""
    if not shard.borrowed or shard.data is None:
        return shard
    return replace(shard, data=storage.relative(storage.resolve(shard.data, storage.absolute(parent.path)), storage.absolute(root)))


def _files(s: Shard) -> list[dict[str, Any]]:
    """The shard's own files, data before index."""
    named = [(s.tokens_file, s.tokens_bytes, s.tokens_sha256), (s.index, s.index_bytes, s.index_sha256)]
    named[1:1] = [] if s.borrowed else [(s.data, s.data_bytes, s.data_sha256)]
    return [{"path": path, "bytes": nbytes, "sha256": digest} for path, nbytes, digest in named if path is not None]
