"""Whole-dataset stages: map and reduce over committed candidates, then one rewriting pass. Duplicates, components, balancing, decontamination.

    candidates (a dataset, filtered and transformed)                                                          below <output>/_work/
        ──▶ per stage, per round:  map(part) → rows by bucket ──▶ reduce(bucket) → rows of the next round      one file a unit, whole or absent
        ──▶ last reduce → (id, reason) ──▶ rewrite each part without them, counting them by reason ──▶ dataset

A round may go over the records again, told what the rounds before gave (`Across.again`): counts first, for example, then what follows from them.
Rows go to buckets by the stage's own rule; how many buckets there are is a constant of the recipe, so nothing depends on workers or on shard
sizes: reduce sees a bucket's rows sorted by (key, value) whoever made them. Every unit's output is one file with a name that follows from its
inputs, so a killed job goes on where it was. A worker holds the ids that a last reduce dropped; what a last map dropped, it holds of its own part.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import canon, fingerprint, parse, part_name
from pipelines.format.part import PartWriter, commit_path, dropped_path
from pipelines.format.record import Record
from pipelines.format.shard import parquet_bytes
from pipelines.format.storage import join
from pipelines.recipe import Recipe
from pipelines.stage import Job, Step

ROWS = pa.schema([("bucket", pa.int32()), ("key", pa.binary()), ("value", pa.binary())])
REDUCE_BYTES = 16 << 20  # packed rows that one unit reduces: a minute's work, and 0.2 GB once unpacked
DROPS = pa.schema([("id", pa.string()), ("reason", pa.string())])


def work(output: str) -> str:
    """Where a job with whole-dataset stages keeps what it needs until its card is written."""
    return join(output, "_work")


class Drops(NamedTuple):
    """Files of (id, reason): those to be looked up for every record, and those of each shard of the candidates alone."""

    every: list[str]
    own: list[list[str]]

    def of(self, shard: int) -> dict[str, str]:
        """id → reason for what was dropped of this shard, and perhaps of others."""
        own = _drops(tuple(paths[shard] for paths in self.own))
        every = _every_drop(tuple(self.every))
        return {**every, **own} if every and own else every or own


def find_drops(job: Job, config: Recipe, output: str, candidates: str, files: list[Any]) -> tuple[Drops, dict[str, Any]]:
    """Run every stage of `across` in the order written, each blind to what the ones before dropped. `files` says what is in the files they read.

    Returns where the drops are, and each stage's report by its name.
    """
    dataset = Dataset.open(candidates)
    recipe = config.resolved()
    gone, reports = Drops([], []), {}
    for i, stage in enumerate(config.across):
        name = part_name(stage)
        place = join(work(output), f"{i}-{name}-{fingerprint([dataset.fingerprint, files, recipe['across'][: i + 1]])[:16]}")
        common = {"recipe": recipe, "stage": i, "place": place}
        parts = [{"in": [str(n)], "unit": n} for n in range(len(dataset.shards))]
        made: list[list[str]] = []
        rounds = stage.rounds()
        for r, (_, reduce) in enumerate(rounds):
            over = parts if r == 0 or r in stage.again else [{"in": [path], "unit": n} for n, path in enumerate(made[-1])]
            kwargs = {**common, "round": r, "candidates": candidates, "gone": gone, "told": made if r in stage.again else []}
            mapped = _run(job, config, _map_unit, over, kwargs, join(place, f"{r}-map"))
            if reduce is None:
                assert r == len(rounds) - 1 and r in stage.again, "only a last round over the records may do without a reduce"
                gone = Drops(gone.every, [*gone.own, mapped])
                break
            spans = [{"in": mapped, "unit": n, "buckets": span} for n, span in enumerate(_spans(stage.buckets, _size(place, mapped)))]
            kwargs = {**common, "round": r, "last": r == len(rounds) - 1}
            made.append(_run(job, config, _reduce_unit, spans, kwargs, join(place, f"{r}-reduce")))
        else:
            gone = Drops([*gone.every, *made.pop()], gone.own)
        said = stage.report(cast(list[list[Any]], _Told(made)))
        if said is not None:
            reports[name if name not in reports else f"{name} {i}"] = said
    return gone, reports


def _spans(buckets: int, nbytes: int) -> list[list[int]]:
    """Neighbouring buckets in as many runs as the rows to reduce fill; a unit for every bucket would open every map's file for each."""
    n = max(1, min(buckets, -(-nbytes // REDUCE_BYTES)))
    return [[k * buckets // n, (k + 1) * buckets // n] for k in range(n)]


class _Told(Sequence[list[Any]]):
    """What each round gave, read when it is asked for: a report looks at one or two rounds, and the others may hold a row for every record."""

    def __init__(self, made: list[list[str]]) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, r: Any) -> Any:
        return [_told(tuple(paths)) for paths in self._made[r]] if isinstance(r, slice) else _told(tuple(self._made[r]))


def _size(place: str, paths: list[str]) -> int:
    sizes = {join(place, name): size for name, size, _ in storage.listing(place)} if paths else {}
    return sum(sizes[path] for path in paths)


def _run(job: Job, config: Recipe, fn: Any, units: list[dict[str, Any]], kwargs: dict[str, Any], prefix: str) -> list[str]:
    """Run the units whose file is not there yet; returns all the files, in order."""
    paths = [f"{prefix}-{u['unit']:05d}.parquet" for u in units]
    todo = [{**u, "out": path} for u, path in zip(units, paths, strict=True) if not storage.exists(path)]
    for _ in job.map([Step(fn, kwargs, cpus=config.resources.cpus, name=fn.__name__.strip("_"))], todo):
        pass
    return paths


def _map_unit(
    item: dict[str, Any], recipe: dict[str, Any], stage: int, round: int, place: str, candidates: str, gone: Drops, told: list[list[str]]
) -> dict[str, Any]:
    across = parse(Recipe, recipe).across[stage]
    map_rows, reduce = across.rounds()[round]
    source: Iterable[Any]
    if round == 0 or round in across.again:
        shard, dataset = int(item["in"][0]), Dataset.open(candidates)
        dropped = gone.of(shard)
        source = (x for x in dataset.records(shard) if x.id not in dropped)
        if across.payloads:
            source = (dataset.with_payloads(shard, x) for x in source)
    else:
        source = _values(item["in"][0])
    made = map_rows(source, [_told(tuple(paths)) for paths in told]) if round in across.again else map_rows(source)
    if reduce is None:
        _publish_drops(item["out"], made)
        return {"unit": item["unit"]}
    packed = _packed((b % across.buckets, key, canon(value)) for b, key, value in made)
    _publish(item["out"], packed.sort_by([("bucket", "ascending")]))
    return {"unit": item["unit"]}


def _reduce_unit(item: dict[str, Any], recipe: dict[str, Any], stage: int, round: int, place: str, last: bool) -> dict[str, Any]:
    across = parse(Recipe, recipe).across[stage]
    _, reduce_rows = across.rounds()[round]
    first, end = item["buckets"]
    tables = [_read(path, filters=(pc.field("bucket") >= first) & (pc.field("bucket") < end)) for path in item["in"]]
    table = pa.concat_tables(tables or [ROWS.empty_table()], promote_options="none")
    table = table.sort_by([("bucket", "ascending"), ("key", "ascending"), ("value", "ascending")])
    assert reduce_rows is not None
    borders = np.searchsorted(table["bucket"].to_numpy(), np.arange(first, end + 1))
    each = (reduce_rows(_rows(table.slice(a, b - a))) for a, b in pairwise(borders.tolist()))
    if last:
        _publish_drops(item["out"], chain.from_iterable(each))
    else:
        _publish(item["out"], _packed((0, b"", canon(value)) for value in chain.from_iterable(each)))
    return {"unit": item["unit"]}


def _packed(rows: Iterable[tuple[int, bytes, bytes]]) -> pa.Table:
    """Rows as a table, packed as they come: a million of them as Python objects would take a gigabyte."""
    rows, tables = iter(rows), [ROWS.empty_table()]
    while some := list(islice(rows, 50_000)):
        tables.append(pa.Table.from_arrays([pa.array(column, f.type) for column, f in zip(zip(*some, strict=True), ROWS, strict=True)], schema=ROWS))
    return pa.concat_tables(tables)


def _rows(table: pa.Table) -> Iterator[tuple[int, bytes, Any]]:
    import json

    for batch in table.to_batches(max_chunksize=4096):
        columns = (batch["bucket"].to_pylist(), batch["key"].to_pylist(), batch["value"].to_pylist())
        for bucket, key, value in zip(*columns, strict=True):
            yield bucket, key, json.loads(value)


def _values(path: str) -> Iterator[Any]:
    return (value for _, _, value in _rows(_read(path)))


def _read(path: str, **kwargs: Any) -> pa.Table:
    return pq.read_table(pa.BufferReader(pa.py_buffer(storage.map_file(path))), **kwargs)


def _publish(path: str, table: pa.Table) -> None:
    storage.publish(path, parquet_bytes(table))


def _publish_drops(path: str, drops: Iterable[tuple[str, str]]) -> None:
    _publish(path, pa.Table.from_pylist([{"id": i, "reason": r} for i, r in sorted(dict(drops).items())], schema=DROPS))


@functools.lru_cache(maxsize=8)
def _told(files: tuple[str, ...]) -> list[Any]:
    """All values that a round's reduce gave, bucket by bucket; kept, since every part of a worker is told the same."""
    return [value for path in files for value in _values(path)]


@functools.lru_cache(maxsize=1)
def _every_drop(files: tuple[str, ...]) -> dict[str, str]:
    return _drops(files)


def _drops(files: tuple[str, ...]) -> dict[str, str]:
    """id → reason over these files; the first stage that dropped a record gives the reason."""
    out: dict[str, str] = {}
    for path in files:
        table = _read(path)
        for id, reason in zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True):
            out.setdefault(id, reason)
    return out


def rewrite_part(item: dict[str, Any], candidates: str, drops: Drops, shard_bytes: int, keep_dropped: bool = False) -> dict[str, Any]:
    """One part of the candidates without the dropped records; what had been dropped before is carried over, so that the law still holds."""
    before = storage.read_json(commit_path(candidates, item["part"]))
    dataset = Dataset.open(candidates)
    shards = [i for i, s in enumerate(dataset.shards) if s.part == item["part"]]
    rejects = [f["path"] for f in before["files"] if f["path"].startswith("rejects/")]
    kept = {"shard_bytes": shard_bytes, "items": before["items"], "keep_dropped": keep_dropped}
    with PartWriter(item["root"], item["part"], fingerprint=item["fingerprint"], **kept) as writer:
        _carry_dropped(writer, candidates)
        writer.carry(before, (row for path in rejects for batch in _read(join(candidates, path)).to_batches(4096) for row in batch.to_pylist()))
        for i in shards:
            dropped = drops.of(i)
            for record in dataset.records(i):
                writer.emit()
                _end(writer, dataset, i, record, dropped.get(record.id))
        return writer.commit()


def _end(writer: PartWriter, dataset: Dataset, shard: int, record: Record, reason: str | None) -> None:
    if reason is None or writer.dropped is not None:
        record = dataset.with_payloads(shard, record)
    if reason is None:
        writer.add(record)
    else:
        writer.drop(record, reason.split(".")[0], reason)


def _carry_dropped(writer: PartWriter, candidates: str) -> None:
    """What filters dropped of this part and the candidates' own dataset of dropped records kept."""
    if writer.dropped is None:
        return
    before = Dataset.open(dropped_path(candidates))
    for i in (i for i, s in enumerate(before.shards) if s.part == writer.part):
        for record in before.records(i):
            writer.dropped.emit()
            writer.dropped.add(before.with_payloads(i, record))
