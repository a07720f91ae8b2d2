"""`form: ours`: an encoded dataset whose records are the plan's spans in the order of consumption, and a plan over it.

    <output>/plan.json, sequences-*.parquet, heldout-*.parquet     the same rows, pointing into
    <output>/spans/manifest.json, tokens-*.bin, latents-*.bin …    one record a span: a text as it is cut, an image with the caption that was drawn

Read one after another, the records are the plan; read through the plan, batches are those of the first plan bit for bit, and the datasets that it
was made from may be gone. A part holds the index rows of at most 4,096 spans and one span's payload; a shard stores each distinct payload once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.cut_out import cut_out, held
from mixtures.layout import layout
from mixtures.materialise import Materialise, opened, opened_rows, parts, read_plan
from mixtures.own_plan import publish_plan
from mixtures.plan import Plan
from mixtures.span import Row, Span
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.forgotten import REASON
from pipelines.format.index import record_of
from pipelines.format.manifest import file_entry, parent
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment

SPANS = "spans"  # the folder of the dataset, below that of its plan
AT_ONCE = 4096  # spans whose index rows are in memory together
RECENT = 64  # payloads kept as one object: the frames that the samples of a trajectory share are read and hashed once

MOVED = pa.schema([("row", pa.int32()), ("seq", pa.int64()), *((n, pa.int32()) for n in ("first", "caption", "start", "stop", "lost"))])


def make(config: Materialise, job: Any) -> str:
    """Make dataset and plan; returns the path of the plan."""
    plan = read_plan(config)
    root, of = storage.absolute(config.output), storage.absolute(plan.path)
    target, items = storage.join(root, SPANS), parts(config, plan)
    kinds = sorted({s["data"] for s in plan.card["sources"].values()})
    job.build(
        write_part,
        {"plan": of, "print_": plan.card["fingerprint"], "root": target, "shard_bytes": config.shard_bytes},
        output=target,
        name=plan.card["name"],
        data=kinds[0] if len(kinds) == 1 else "mixed",
        recipe=dump(config),
        fingerprint=config.identity(plan),
        parts=items,
        parents=[parent(of, target, plan.card["fingerprint"])],
        versions={"materialize": 1},
        extras=lambda commits: _extras(plan, target),
    )
    return publish_plan(config, plan, root, Dataset.open(target), len(items))


def _extras(plan: Plan, root: str) -> dict[str, Any]:
    """How the dataset is encoded, and the tokenizer where there is one. `repeats`: a record stands here once for each span that uses it."""
    encoding = {k: v for k, v in plan.card["encoding"].items() if k in ("text", "image")}
    files: list[dict[str, Any]] = []
    for dataset in plan.datasets:
        for entry in dataset.card.get("files") or []:
            if entry["path"] == "tokenizer.json" and not files:
                data = storage.read(storage.join(dataset.path, entry["path"]))
                if sha256_hex(data) != entry["sha256"]:
                    raise VerifyError("a file differs from its card", where=storage.join(dataset.path, entry["path"]))
                files.append(file_entry(root, entry["path"], data))
    return {"encoding": encoding, "files": files, "repeats": True}


def write_part(item: dict[str, Any], plan: str, print_: str, root: str, shard_bytes: int) -> dict[str, Any]:
    """Copy the spans of a run of sequences; returns the commit record. How they stand in the new plan lies beside the shards (`rows/`)."""
    source = opened(plan, print_)
    file, first, stop = opened_rows(source, item)
    gone, taken = frozenset(item["gone"]), Payloads(source)
    lost: dict[str, Counter[str]] = {}
    moved: list[dict[str, Any]] = []
    n = 0
    with PartWriter(root, item["part"], fingerprint=item["fingerprint"], encoded=True, shard_bytes=shard_bytes, items=stop - first) as writer:
        for row, span, record, digest in _spans(source, [file.row(i) for i in range(first, stop)]):
            writer.emit()
            n += 1
            if n - 1 in gone:
                writer.drop(record, "materialize", REASON)
                length = len(layout(span, record, source.rules(span.source), source.specials))
                _count(lost.setdefault(source.sources[span.source], Counter()), span, record, length)
                moved.append({"row": -1, "seq": row.seq, "first": 0, "caption": -1, "start": 0, "stop": 0, "lost": length})
                continue
            made, new = cut_out(span, record)
            found = writer.add(taken.fill(made, span))
            _refuse_damage(made, record, found, digest, source.datasets[span.dataset], span)
            at = {"first": new.first, "caption": new.caption, "start": new.start, "stop": new.stop}
            moved.append({"row": writer.written - 1, "seq": row.seq, **at, "lost": 0})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(moved, MOVED), sink, compression="zstd", compression_level=3)
        name = writer.beside("rows", sink.getvalue().to_pybytes(), ".parquet")
        run = {key: item[key] for key in ("split", "first", "stop")}
        return writer.commit(stats={"rows": name, **run, "lost": {k: dict(sorted(v.items())) for k, v in sorted(lost.items())}})


def _count(sums: Counter[str], span: Span, record: Record, length: int) -> None:
    """What a forgotten span takes from the figures of its source, as a plan's card counts them."""
    tokens = held(span, record)
    single = span.count == 1 and tokens["text"] == span.payload
    sums.update({k: n for k, n in tokens.items() if n})
    sums.update(spans=1, structure=length - span.payload, continued=span.payload if single and span.start > 0 else 0)
    sums["begun"] += int(span.first == 0 and span.start == 0)


def _spans(plan: Plan, rows: list[Row]) -> Iterator[tuple[Row, Span, Record, str]]:
    """Every span in order, with its record and the sha256 that the index says; some thousand index rows in memory at a time."""
    held: list[tuple[Row, Span]] = []
    for row in rows:
        held += [(row, span) for span in row.spans]
        if len(held) >= AT_ONCE:
            yield from _looked_up(plan, held)
            held = []
    yield from _looked_up(plan, held)


def _looked_up(plan: Plan, held: list[tuple[Row, Span]]) -> Iterator[tuple[Row, Span, Record, str]]:
    wanted: dict[tuple[int, int], set[int]] = {}
    for _, span in held:
        wanted.setdefault((span.dataset, span.shard), set()).add(span.row)
    found: dict[tuple[int, int, int], tuple[Record, str]] = {}
    for (dataset, shard), rows in sorted(wanted.items()):
        for row, values in plan.datasets[dataset].take(shard, rows):
            found[dataset, shard, row] = record_of(values), values["sha256"]
    for row_, span in held:
        yield row_, span, *found[span.dataset, span.shard, span.row]


class Payloads:
    """Bytes of the segments that a record of a part has left, wherever they lie: also those in a third dataset's file, so that nothing is needed."""

    def __init__(self, plan: Plan) -> None:
        def read(dataset: int, shard: int, kind: str, offset: int, nbytes: int) -> bytes:
            return bytes(plan.datasets[dataset].slice(shard, kind, offset, nbytes))

        self._read = lru_cache(maxsize=RECENT)(read)

    def fill(self, record: Record, span: Span) -> Record:
        """The record with its bytes."""
        return replace(record, segments=tuple(self._filled(s, span) for s in record.segments))

    def _filled(self, s: Segment, span: Span) -> Segment:
        if s.offset is None:
            return s
        return replace(s, payload=self._read(span.dataset, span.shard, s.kind, s.offset, s.nbytes or 0))


def _refuse_damage(made: Record, record: Record, found: str, said: str, dataset: Dataset, span: Span) -> None:
    """A record that is used as a whole still has the sha256 of its index, or its bytes are not those that were encoded."""
    if made.segments == record.segments and not dataset.shards[span.shard].foreign and found != said:
        shard = dataset.shards[span.shard]
        raise VerifyError(
            "a record's bytes are not those that its index names",
            where=f"record {record.id} in {storage.join(dataset.path, shard.data or shard.tokens_file or shard.index)}",
            found=found,
            allowed=said,
            next=f"pipelines verify {dataset.path} --deep",
        )
