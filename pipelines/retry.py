"""Second chances: parts that take up again what an earlier part had to reject, such as URLs whose server was busy.

    part 3 ── rejects: fetch_transient × 17 ──▶ part 1000003, whose input is those 17 items ── still failing ──▶ part 2000003 …

A retry changes no committed part: it appends one, whose commit record says what it took up (`retries: {reason: n}`). In the card these n count once,
where they ended last, so that in = written + filtered + rejected still holds (`format.part.net`). Every later run of the recipe finds the appended
parts by their numbers, and makes them anew when the part they follow has changed.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build import part_fingerprint
from pipelines.format import storage
from pipelines.format.part import commit_path
from pipelines.format.storage import join
from pipelines.stage import Source

ROUND = 1_000_000  # part p is retried by p + ROUND, that by p + 2 ROUND: never the number of a part that the source may still grow
REASONS = {"transient": ("fetch_transient",), "timeout": ("timeout",), "failed": ("fetch_transient", "timeout", "fetch_permanent")}


def any_there(source: Source, output: str) -> bool:
    """Whether an earlier run has appended parts here; only sources that can ask again are worth a listing."""
    return type(source).again is not Source.again and bool(_numbers(output))


def appended(source: Source, output: str, whole: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The retry parts that stand in `output`, as items of a build, rounds in order. All parts in `items` are committed. A retry whose part has
    nothing left to retry is removed."""
    there = _numbers(output)
    out: list[dict[str, Any]] = []
    last = items
    while last:
        last = [again for item in last if item["part"] + ROUND in there for again in _one(source, output, whole, item, None)]
        out += last
    for number in there - {i["part"] for i in out}:
        storage.delete(commit_path(output, number))
    return out


def fresh(source: Source, output: str, whole: str, items: list[dict[str, Any]], reasons: tuple[str, ...]) -> list[dict[str, Any]]:
    """New retry parts for what the committed parts in `items` rejected for one of these reasons and no later part has taken up."""
    taken = {i["part"] for i in items}
    return [again for item in items if item["part"] + ROUND not in taken for again in _one(source, output, whole, item, reasons)]


def _one(source: Source, output: str, whole: str, item: dict[str, Any], reasons: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The retry of one part, if there is anything to retry; without `reasons`, for those of the retry that is there."""
    number = item["part"] + ROUND
    if reasons is None:
        reasons = tuple(storage.read_json(commit_path(output, number)).get("retries") or ())
    found = [row for row in _rejects(output, item["part"]) if row["stage"] == "read" and row["reason"] in reasons]
    if not found:
        return []
    spec = source.again(item["spec"], [row["origin"] for row in found])
    if spec is None:
        return []
    retries = {reason: n for reason in reasons if (n := sum(row["reason"] == reason for row in found))}
    print_ = part_fingerprint(whole, spec, [["retries", len(found), item["fingerprint"]]])
    return [{"part": number, "root": item["root"], "spec": spec, "items": len(found), "fingerprint": print_, "retries": retries}]


def _rejects(output: str, part: int) -> list[dict[str, Any]]:
    files = storage.read_json(commit_path(output, part))["files"]
    tables = [pq.read_table(pa.BufferReader(storage.read(join(output, f["path"])))) for f in files if f["path"].startswith("rejects/")]
    return [row for table in tables for row in table.to_pylist()]


def _numbers(output: str) -> set[int]:
    folder = join(output, "parts")
    names = [name for name, _, _ in storage.listing(folder, (".json",))] if storage.exists(folder) else []
    return {n for name in names if (n := int(name.removesuffix(".json"))) >= ROUND}
