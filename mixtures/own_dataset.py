"""`form: ours`: an encoded dataset whose records are the plan's spans in the order of consumption, and a plan over it.

    <output>/plan.json, sequences-*.parquet, heldout-*.parquet     the same rows, pointing into
    <output>/spans/manifest.json, tokens-*.bin, latents-*.bin …    one record a span: a text as it is cut, an image with the caption that was drawn

Read one after another, the records are the plan; read through the plan, batches are those of the first plan bit for bit, and the datasets that it
was made from may be gone. A part holds the index rows of at most 4,096 spans and one span's payload; a shard stores each distinct payload once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.cut_out import cut_out, held
from mixtures.layout import layout
from mixtures.materialise import Materialise, opened, part_rows, parts, read_plan
from mixtures.own_plan import publish_plan
from mixtures.plan import Plan
from mixtures.plan_file import SCHEMA
from mixtures.span import Row, Span
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.index import record_of
from pipelines.format.manifest import file_entry, parent
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment

SPANS = "spans"  # the folder of the dataset, below that of its plan
AT_ONCE = 4096  # spans whose index rows are in memory together
RECENT = 64  # payloads kept as one object: the frames that the samples of a trajectory share are read and hashed once


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
    return publish_plan(config, plan, root, Dataset.open(target), items)


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
    # How to open the encoder again: pictures of `storage: none` came along as they are, to be encoded while training.
    pictured: dict[str, Any] = next((d.card for d in plan.datasets if (d.encoding or {}).get("image")), {})
    said: dict[str, Any] = {key: pictured[key] for key in ("encoders", "identity") if key in pictured}
    return {"encoding": encoding, "files": files, "repeats": True, **said}


def write_part(item: dict[str, Any], plan: str, print_: str, root: str, shard_bytes: int) -> dict[str, Any]:
    """Copy the spans of a run of sequences; returns the commit record. Their rows in the new plan lie beside the shards (`rows/`), with the number
    of each record in the part where a plan says shard and row: in which shard it comes to lie is known when all parts are there."""
    source = opened(plan, print_)
    rows = list(part_rows(source, item))
    taken, more = Payloads(source), Figures(source)
    made: list[Row] = []
    with PartWriter(root, item["part"], fingerprint=item["fingerprint"], encoded=True, shard_bytes=shard_bytes, items=len(rows)) as writer:
        for row, spans in _looked_up(source, [now for _, now in rows]):
            moved = []
            for span, record, digest in spans:
                cut, new = cut_out(span, record)
                writer.emit()
                _refuse_damage(cut, record, writer.add(taken.fill(cut, span)), digest, source.datasets[span.dataset], span)
                moved.append(replace(new, dataset=0, shard=0, row=writer.written - 1))
            made.append(replace(row, spans=tuple(moved)))
        for planned, now in rows:
            if now is not planned:
                made[now.seq - item["first"]] = more.changed(planned, now, made[now.seq - item["first"]])
        name = writer.beside("rows", _as_parquet(made), ".parquet")
        return writer.commit(stats={"rows": name, "split": item["split"], "more": more.by_source()})


def _as_parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    plain = [{**{f.name: getattr(row, f.name) for f in SCHEMA}, "spans": [asdict(s) for s in row.spans]} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain, SCHEMA), sink, compression="zstd", compression_level=3)
    return bytes(sink.getvalue().to_pybytes())


def _looked_up(plan: Plan, rows: list[Row]) -> Iterator[tuple[Row, list[tuple[Span, Record, str]]]]:
    """Every row with the records of its spans and the sha256 that the index says; some thousand index rows in memory at a time."""
    batch: list[Row] = []
    for i, row in enumerate(rows):
        batch.append(row)
        if i + 1 == len(rows) or sum(len(r.spans) for r in batch) >= AT_ONCE:
            found = look_up(plan, [span for r in batch for span in r.spans])
            yield from ((r, [(s, *found[s.dataset, s.shard, s.row]) for s in r.spans]) for r in batch)
            batch = []


def look_up(plan: Plan, spans: list[Span]) -> dict[tuple[int, int, int], tuple[Record, str]]:
    """By dataset, shard and row: the records behind some spans, each row group of an index read once, and their sha256."""
    wanted: dict[tuple[int, int], set[int]] = {}
    for span in spans:
        wanted.setdefault((span.dataset, span.shard), set()).add(span.row)
    found: dict[tuple[int, int, int], tuple[Record, str]] = {}
    for (dataset, shard), rows in sorted(wanted.items()):
        for row, values in plan.datasets[dataset].take(shard, rows):
            found[dataset, shard, row] = record_of(values), values["sha256"]
    return found


class Figures:
    """What changed rows add to the figures of their sources, or take from them (below 0), as a plan's card counts them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._sums: dict[str, Counter[str]] = {}

    def changed(self, planned: Row, now: Row, made: Row) -> Row:
        """Count a changed row; returns the made one with its length, payload and cost."""
        found = look_up(self.plan, [*planned.spans, *now.spans])
        for sign, spans in ((-1, planned.spans), (1, now.spans)):
            lengths = [self._count(sign, span, found[span.dataset, span.shard, span.row][0]) for span in spans]
        cost = sum(n + n * n / self.plan.sequence_length for n in lengths)
        return replace(made, length=sum(lengths), payload=sum(s.payload for s in now.spans), cost=cost)

    def _count(self, sign: int, span: Span, record: Record) -> int:
        plan = self.plan
        length = len(layout(span, record, plan.rules(span.source), plan.specials))
        tokens = held(span, record)
        again = span.count == 1 and tokens["text"] == span.payload and span.start > 0
        begun = span.first == 0 and span.start == 0
        one = {**tokens, "spans": 1, "structure": length - span.payload, "continued": span.payload * again, "begun": int(begun)}
        sums = self._sums.setdefault(plan.sources[span.source], Counter())
        for name, n in one.items():
            sums[name] += sign * n
        return length

    def by_source(self) -> dict[str, dict[str, int]]:
        """For the commit record."""
        return {name: dict(sorted(sums.items())) for name, sums in sorted(self._sums.items())}


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
