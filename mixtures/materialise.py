"""A plan as files: what its sequences use is copied out of its datasets, in the order of consumption, for places that want files and no plan.

    plan ──runs of sequences──▶ parts ──copy──▶ shards, in both splits ──▶ card (parent = the plan)

What comes in: a finished plan. What goes out, by `form`: `ours`, an encoded dataset with a record a span and a plan over it (`own_dataset.py`), or
`webdataset`, tars of packed sequences (trainer/webdataset.py). This module holds what both share: the document, the parts, what is left out.

A part is a run of sequences of one plan file whose payload comes to about `shard_bytes`, so which sequences it holds follows from the plan alone.
Parts go through the engine: skipped when committed, the same bytes on Ray or in this process, and redone where a tombstone came since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, SPLITS, RowFile, row_path
from mixtures.span import Row, Span
from mixtures.stand_ins import stand_ins
from pipelines.format.document import Document, Size, fingerprint
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import forgotten_rows
from pipelines.format.part import FORMAT, SHARD_BYTES

VERSION = 1
FORMS = ("ours", "webdataset")
_VALUE_BYTES = {"f32": 4.0, "bf16": 2.0}  # the other codecs: one, and scales
_TOKEN_BYTES = 4
_POSITION_BYTES = 27  # of a packed sequence: the nine arrays of [S]
_MEMBER_BYTES = 18 * 1024  # headers and padding of a sample's members in a tar


class Materialise(Document):
    """`shard_bytes` is about what a part's payload comes to. `latents` is for tars: float32 as in a batch, or rounded."""

    plan: str
    output: str
    form: Literal["ours", "webdataset"] = "ours"
    shard_bytes: Size = Field(SHARD_BYTES, ge=1)
    latents: Literal["float32", "float16", "bfloat16"] = "float32"
    engine: Literal["ray", "local"] = "ray"

    def identity(self, plan: Plan) -> str:
        """What is asked for, apart from where it goes: the fingerprint that guards an output."""
        said = {"form": self.form, "shard_bytes": self.shard_bytes, **({"latents": self.latents} if self.form == "webdataset" else {})}
        return fingerprint({"format": FORMAT, "stage": "materialize", "version": VERSION, **said, "plan": plan.card["fingerprint"]})


def read_plan(config: Materialise) -> Plan:
    """The plan, with what cannot be made files of refused."""
    plan = Plan.open(config.plan)
    if "target" in plan.card["encoding"]:
        raise InputError(
            "this plan has two encoders, and files of latents are of one",
            where=config.plan,
            next="name one dataset of each source",
        )
    if config.output.rstrip("/") == plan.path.rstrip("/"):
        raise RecipeError("a plan cannot become files in its own folder", where="output", found=config.output, next="choose another `output`")
    return plan


@lru_cache(maxsize=4)
def opened(path: str, print_: str) -> Plan:
    """The plan in a worker, opened once."""
    plan = Plan.open(path)
    if plan.card["fingerprint"] != print_:
        raise InputError("the plan has changed", where=path, found=plan.card["fingerprint"], allowed=print_)
    return plan


def parts(config: Materialise, plan: Plan) -> list[dict[str, Any]]:
    """Items for the chain: runs of sequences, training first. `changed` are the rows that hold other spans than planned, as tombstones made them."""
    changed, made = rows_now(plan), config.identity(plan)
    out: list[dict[str, Any]] = []
    for split in SPLITS:
        for start in range(0, plan.sequences(split), ROWS_PER_FILE):
            file = plan.file(row_path(plan.path, split, start))
            weight = np.cumsum(_bytes(config, plan, file))
            first = 0
            while first < len(file):
                before = float(weight[first - 1]) if first else 0.0
                stop = max(int(np.searchsorted(weight, before + config.shard_bytes, side="right")), first + 1)
                run = range(start + first, start + stop)
                other = {str(seq): [list(astuple(s)) for s in changed[split][seq]] for seq in run if seq in changed[split]}
                item = {"split": split, "first": run.start, "stop": run.stop, "changed": other}
                out.append({"part": len(out), **item, "fingerprint": fingerprint({"made": made, **item})})
                first = stop
    return out


def rows_now(plan: Plan) -> dict[str, dict[int, tuple[Span, ...]]]:
    """By split and sequence, the spans of rows that are read otherwise than planned: with stand-ins for the records that tombstones name, as the
    stream reads them; held-out rows without those records."""
    out: dict[str, dict[int, tuple[Span, ...]]] = {split: {} for split in SPLITS}
    out["train"] = {seq: spans for seq, (spans, _) in stand_ins(plan).rows.items()}
    gone = {
        dataset: np.array([(shard << 32) + row for shard, rows in named.items() for row in rows], np.int64)
        for dataset, opened in enumerate(plan.datasets)
        if (named := forgotten_rows(opened))
    }
    for start in range(0, plan.sequences("heldout"), ROWS_PER_FILE) if gone else ():
        file = plan.file(row_path(plan.path, "heldout", start))
        lost = np.zeros(len(file.spans["row"]), np.bool_)
        key = (file.spans["shard"].astype(np.int64) << 32) + file.spans["row"]
        for dataset, keys in gone.items():
            lost |= (file.spans["dataset"] == dataset) & np.isin(key, keys)
        for i in np.unique(np.searchsorted(file.start, np.flatnonzero(lost), side="right") - 1).tolist():
            kept = ~lost[file.start[i] : file.start[i + 1]]
            out["heldout"][start + i] = tuple(s for s, keep in zip(file.row(i).spans, kept, strict=True) if keep)
    return out


def part_rows(plan: Plan, item: dict[str, Any]) -> Iterator[tuple[Row, Row]]:
    """The rows of a part: as planned, and as they are now."""
    file: RowFile = plan.file(row_path(plan.path, item["split"], item["first"]))
    for seq in range(item["first"], item["stop"]):
        planned = file.row(seq % ROWS_PER_FILE)
        other = item["changed"].get(str(seq))
        yield planned, planned if other is None else replace(planned, spans=tuple(_span(values) for values in other))


def _span(values: list[Any]) -> Span:
    """A span of an item's list: loss bits as a tuple again."""
    named = dict(zip((f.name for f in fields(Span)), values, strict=True))
    return Span(**{**named, "loss": tuple(named["loss"])})


def _bytes(config: Materialise, plan: Plan, file: RowFile) -> NDArray[np.float64]:
    """About how many bytes each row's payload has: of a source's tokens as many are latents as the plan's card says, spread evenly."""
    image = plan.card["encoding"].get("image") or {}
    latent = image.get("width", 1) * (4.0 if config.form == "webdataset" else _VALUE_BYTES.get(image.get("codec", "f32"), 1.2))
    tokens = [plan.card["sources"][n]["tokens"] for n in plan.sources]
    each = np.array([(t["text"] * _TOKEN_BYTES + t["visual"] * latent) / max(t["all"], 1) for t in tokens])
    copies = np.array([2 if config.form == "webdataset" and plan.rules(n).history == "clean_copy" else 1 for n in plan.sources])
    payload = (file.spans["stop"] - file.spans["start"]).astype(np.float64)
    source = file.spans["source"]
    row = np.repeat(np.arange(len(file)), np.diff(file.start))
    held = np.bincount(row, weights=payload * each[source] * copies[source], minlength=len(file))
    return np.asarray(held, np.float64) + (_POSITION_BYTES * plan.sequence_length + _MEMBER_BYTES if config.form == "webdataset" else 0)


def estimate(config: Materialise) -> Estimate:
    """Parts, sequences and bytes, without copying anything."""
    plan = read_plan(config)
    found = parts(config, plan)
    table = [
        {"split": split, "sequences": plan.sequences(split), "parts": len(mine), "bytes": round(sum(_weights(config, plan, split)))}
        for split in SPLITS
        if (mine := [p for p in found if p["split"] == split])
    ]
    facts = {"parts": len(found), "changed": sum(len(p["changed"]) for p in found), "output": config.output}
    return Estimate(f"materialize {plan.card['name']} as {config.form}", facts, table)


def _weights(config: Materialise, plan: Plan, split: str) -> Iterator[float]:
    for start in range(0, plan.sequences(split), ROWS_PER_FILE):
        yield float(_bytes(config, plan, plan.file(row_path(plan.path, split, start))).sum())
