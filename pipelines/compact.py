"""Small shards → shards of `shard_bytes`: the same records in the same order, in as many files as their bytes ask for.

    parent's shard table ──greedy runs──▶ parts ──copy──▶ shards ──▶ card (parent = the old dataset, in = written + tombstones)

A heavily filtered crawl leaves thousands of tiny shards, each of which costs every reader an index to open and a request to make. Neighbouring
shards are joined while they fit into `shard_bytes`; one that is much larger is split evenly. Which shards form a part follows from what the
parent's shard table and indexes say and from `shard_bytes`, so a killed job goes on, and workers change nothing.

Payloads are copied as they are: nothing is decoded, each distinct one is stored once per new shard, and every record is checked against the sha256
that the parent's index holds, so damage stops the job and is never given a new hash. Only `key`, `member`, offsets and file names change. What
tombstones name is left out. Pictures of a scored dataset, which lie in the files of the one that was scored, are copied, so that it stands
alone. Encoded data that lies in another dataset (`reuse`, `storage: none`) stays there: only shards that point into one such file are joined.
Whatever else the parent's card says (encoding, encoders, statistics, tokenizer) comes along unchanged.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipelines.build import Build, build
from pipelines.compact_linked import items, link_part, moved
from pipelines.compact_runs import Run, find_runs, weights
from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.document import Document, Size, dump, fingerprint, sha256_hex
from pipelines.format.errors import RecipeError, VerifyError
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import REASON, forgotten_rows
from pipelines.format.index import record_of
from pipelines.format.manifest import file_entry, parent, refuse_other_recipe
from pipelines.format.part import FORMAT, SHARD_BYTES, PartWriter, commit_path
from pipelines.format.shard import Foreign
from pipelines.recipe import Resources
from pipelines.stage import Job, Step
from pipelines.terminal import say

VERSION = 1
# What a card says of this one dataset and is made anew; everything else of the parent's card is carried over.
OWN = {"format", "kind", "name", "fingerprint", "recipe", "recipe_fingerprint", "parents", "code", "data", "parts", "shards", "files", "tombstones"}
OWN |= {"records", "bytes", "tokens", "sources", "in", "written", "filtered", "rejected", "path", "card_file"}


class Compact(Document):
    """`shard_bytes` counts data files; for text, which has none, the text itself, as it does when text is curated."""

    dataset: str
    shard_bytes: Size = Field(SHARD_BYTES, ge=1)
    output: str
    engine: Literal["ray", "local"] = "ray"
    resources: Resources = Resources()


class CompactStage:
    """`pipelines run compact -c compact dataset=out/crawl output=out/crawl-compact`."""

    config = Compact
    summary = "many small shards to few of shard_bytes: the same records, curated or encoded"

    def plan(self, config: Compact) -> Estimate:
        """Shards before and after, without copying anything."""
        dataset, sizes, runs, gone = _planned(config)
        after = [sum(sizes[r.first : r.stop]) // r.pieces for r in runs for _ in range(r.pieces)]
        facts = {"records": dataset.card["records"], "bytes": sum(sizes), "shards": len(sizes), "shards_after": len(after), "parts": len(runs)}
        facts |= {"forgotten": sum(map(len, gone.values())), "output": config.output}
        said = ["already compact: its files would be linked, not copied"] if _compact(dataset, runs, gone) else []
        return Estimate(f"compact {dataset.card['name']}", facts, [_spread("now", sizes), _spread("then", after)], said)

    def run(self, config: Compact, job: Job) -> str:
        """Make the compacted dataset; returns its path. Where nothing is to be joined, split or left out, the parent's files are linked."""
        dataset, _, runs, gone = _planned(config)
        output = storage.absolute(config.output)
        if output == dataset.path:
            raise RecipeError("a dataset cannot be compacted into itself", where="output", found=output, next="choose another `output`")
        # No path stands in the fingerprint: the parent is known by how it was made, each part by the hashes of its shards.
        made = {"format": FORMAT, "stage": "compact", "version": VERSION, "shard_bytes": config.shard_bytes}
        whole = fingerprint({**made, "parent": dataset.card.get("recipe_fingerprint") or dataset.fingerprint})
        kwargs = {"dataset": (dataset.path, dataset.fingerprint), "root": output}
        if _compact(dataset, runs, gone):
            job.log("already compact", dataset=dataset.path, shards=len(runs))
            say(f"{dataset.path} is already compact ({len(runs)} shards): its files are linked, not copied", stderr=True)
            step, parts = Step(link_part, kwargs, cpus=config.resources.cpus, name="link"), items(dataset, made)
        else:
            step = Step(compact_part, kwargs, cpus=config.resources.cpus, name="compact")
            parts = [_item(dataset, n, run, gone, made) for n, run in enumerate(runs)]
        _clear(output, whole, {p["part"] for p in parts})
        return build(
            job,
            Build(
                output=output,
                name=dataset.card["name"],
                data=dataset.data,
                recipe=dump(config),
                fingerprint=whole,
                parts=parts,
                chain=[step],
                parents=[parent(dataset.path, output, dataset.fingerprint)],
                versions={"compact": VERSION},
                extras=lambda commits: carried(dataset, output),
            ),
        )


STAGE = CompactStage()


def _planned(config: Compact) -> tuple[Dataset, list[int], list[Run], dict[int, list[int]]]:
    """The parent, what its shards weigh, the runs, and which rows of which shards are forgotten."""
    dataset = Dataset.open(storage.absolute(config.dataset))
    sizes = weights(dataset)
    return dataset, sizes, find_runs(dataset.shards, sizes, config.shard_bytes), forgotten_rows(dataset)


def _clear(output: str, whole: str, parts: set[int]) -> None:
    """Remove commit records of an earlier run that had other parts: the parent may come to fewer, or to other numbers, than it did."""
    refuse_other_recipe(output, "manifest.json", whole)
    folder = storage.join(output, "parts")
    there = storage.listing(folder, (".json",)) if storage.exists(folder) else []
    for number in {int(name.removesuffix(".json")) for name, _, _ in there} - parts:
        storage.delete(commit_path(output, number))


def _compact(dataset: Dataset, runs: list[Run], gone: dict[int, list[int]]) -> bool:
    """Whether there is nothing to do. Pixels that a scored dataset leaves with its parent are brought home: then it stands alone."""
    if any(s.borrowed and not s.foreign for s in dataset.shards):
        return False
    return not gone and all(r.stop - r.first == 1 == r.pieces for r in runs)


def _spread(when: str, sizes: list[int]) -> dict[str, Any]:
    s = sorted(sizes) or [0]
    return {"": when, "shards": len(sizes), "smallest": s[0], "median": s[len(s) // 2], "largest": s[-1]}


def _item(dataset: Dataset, part: int, run: Run, gone: dict[int, list[int]], made: dict[str, Any]) -> dict[str, Any]:
    """One part. The rows to leave out stand in it, so a later tombstone makes anew only the parts that hold what it names."""
    shards = dataset.shards[run.first : run.stop]
    left_out = [gone.get(i, []) for i in range(run.first, run.stop)]
    inputs = [[s.index_sha256, s.tokens_sha256, s.data_sha256 or s.data] for s in shards]
    print_ = fingerprint({**made, "roll": run.roll, "gone": left_out, "inputs": inputs})
    return {"part": part, "first": run.first, "stop": run.stop, "roll": run.roll, "gone": left_out, "fingerprint": print_}


def compact_part(item: dict[str, Any], dataset: tuple[str, str], root: str) -> dict[str, Any]:
    """Copy a run of shards into one or several; returns the commit record. Holds one payload and what a ShardWriter holds."""
    parent = open_cached(*dataset)
    first = parent.shards[item["first"]]
    where = moved(first, parent, root).data if first.foreign else None
    foreign = Foreign(where) if where else None
    kept = {"shard_bytes": item["roll"], "items": item["stop"] - item["first"], "foreign_data": foreign}
    with PartWriter(root, item["part"], fingerprint=item["fingerprint"], encoded=parent.encoding is not None, **kept) as writer:
        for i, gone in zip(range(item["first"], item["stop"]), item["gone"], strict=True):
            _copy(writer, parent, i, frozenset(gone))
            parent.release(i)
        return writer.commit()


def _copy(writer: PartWriter, parent: Dataset, i: int, gone: frozenset[int]) -> None:
    for n, row in enumerate(parent.rows(i)):
        record = record_of(row)
        writer.emit()
        if n in gone:
            writer.drop(record, "compact", REASON)
            continue
        found = writer.add(parent.with_payloads(i, record))
        if found != row["sha256"]:
            shard = parent.shards[i]
            raise VerifyError(
                "a record's bytes are not those that its index names",
                where=f"record {record.id} in {storage.join(parent.path, shard.data or shard.tokens_file or shard.index)}",
                found=found,
                allowed=row["sha256"],
                next=f"pipelines verify {parent.path} --deep",
            )


def carried(dataset: Dataset, output: str) -> dict[str, Any]:
    """What else the parent's card says, and copies of the files that it names beside the shards. Latent statistics stay the parent's to the last
    bit, records left out or not: a model that was trained on the one reads the other."""
    files = [f for f in dataset.card.get("files") or [] if not f["path"].startswith(("shards-", "tombstones-"))]
    return {**{k: v for k, v in dataset.card.items() if k not in OWN}, "files": [_copied(dataset, f, output) for f in files]}


def _copied(dataset: Dataset, file: dict[str, Any], output: str) -> dict[str, Any]:
    data = storage.read(storage.join(dataset.path, file["path"]))
    if sha256_hex(data) != file["sha256"]:
        raise VerifyError("a file differs from its card", where=storage.join(dataset.path, file["path"]), next=f"pipelines verify {dataset.path}")
    return file_entry(output, file["path"], data)
