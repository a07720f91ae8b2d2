"""What the rows of a plan say beyond its card: by stage and source, over the run, and what it costs.

In: a plan. Out: `Counted`, from one pass over the training rows with one file in memory, plus a byte for each record of a source's dataset (which
records were ever cut). Behind `pipelines stats` and the page of `pipelines view`.

**Context lost**: a span that goes on with a record begun in another span cannot see what came before. Texts may be cut anywhere, videos and
conversations between atoms. `cut` counts records with such a span, `lost` the tokens in them.
**Cost** is the planner's prediction for a row: positions, plus attention as Σ length² over the row length. So a row of one document costs twice the
row length, and a row of many short ones little more than once. Percentiles are those of 2,048 equal steps between 0 and that most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.mixture import Mixture
from mixtures.plan import Plan
from mixtures.used import record_numbers, row_files, shard_starts
from pipelines.format.document import exact, parse

STRETCHES = 1000  # parts of the run that are told apart
STEPS = 2048
LENGTHS = 21  # powers of two


@dataclass(slots=True)
class Counted:
    """Sums over training rows. `payload` and `spans` are [stages, sources]; `over` is [STRETCHES, sources + 2]: payload, then length and rows."""

    plan: Plan
    payload: NDArray[np.int64]
    spans: NDArray[np.int64]
    sequences: NDArray[np.int64]  # [stages, sources]: rows that hold the source
    rows: NDArray[np.int64]  # [stages]
    length: NDArray[np.int64]  # [stages]
    lost: NDArray[np.int64]  # [sources] tokens in spans that go on
    cost: NDArray[np.int64]  # [stages, STEPS + 1] rows by predicted cost
    total_cost: NDArray[np.float64]  # [stages]
    over: NDArray[np.int64]
    lengths: NDArray[np.int64]  # [sources, LENGTHS] spans of 2**k to 2**(k + 1) - 1 payload tokens
    seen: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # per source and record: 1 drawn, 2 cut

    def cut(self, source: int) -> tuple[int, int]:
        """(records with a span that goes on, records drawn)."""
        flags = self.seen.get(source)
        return (0, 0) if flags is None else (int((flags & 2).astype(bool).sum()), int(np.count_nonzero(flags)))

    def cost_at(self, share: float, stage: int | None = None) -> float:
        """The cost that this share of rows does not exceed, in row lengths; exact to 1/1024."""
        rows = self.cost.sum(0) if stage is None else self.cost[stage]
        reached = np.searchsorted(np.cumsum(rows), share * rows.sum())
        return float(2 * min(int(reached), STEPS) / STEPS) if rows.sum() else 0.0

    def cost_mean(self, stage: int | None = None) -> float:
        """Mean cost of a row, in row lengths."""
        n = self.rows.sum() if stage is None else self.rows[stage]
        total = self.total_cost.sum() if stage is None else self.total_cost[stage]
        return float(total) / max(int(n), 1) / self.plan.sequence_length


def counted(plan: Plan) -> Counted:
    """Read all training rows once."""
    stages, sources = len(plan.card["mixture"].get("stages") or [1]), len(plan.sources)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("payload", "spans", "sequences"), (stages, sources)),
        **dict.fromkeys(("rows", "length"), (stages,)),
        "lost": (sources,),
        "cost": (stages, STEPS + 1),
        "over": (STRETCHES, sources + 2),
        "lengths": (sources, LENGTHS),
    }
    sums: dict[str, Any] = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    c = Counted(plan=plan, total_cost=np.zeros(stages), **sums)
    starts = [shard_starts(d) for d in plan.datasets]
    for _, file in row_files(plan):
        _add(c, file, starts)
    return c


def _add(c: Counted, file: Any, starts: list[NDArray[np.int64]]) -> None:
    rows, spans, sources = file.rows, file.spans, len(c.plan.sources)
    stage, owner = rows["stage"].astype(np.int64), np.repeat(np.arange(len(file)), np.diff(file.start))
    source, held = spans["source"].astype(np.int64), spans["stop"].astype(np.int64) - spans["start"]
    cell = stage[owner] * sources + source
    c.payload += _sums(cell, held, c.payload.shape)
    c.spans += _sums(cell, None, c.spans.shape)
    pair = np.unique(owner * sources + source)
    c.sequences += _sums(stage[pair // sources] * sources + pair % sources, None, c.sequences.shape)
    c.rows += _sums(stage, None, c.rows.shape)
    c.length += _sums(stage, rows["length"], c.length.shape)
    relative = rows["cost"].astype(np.float64) / c.plan.sequence_length
    c.total_cost += np.bincount(stage, rows["cost"].astype(np.float64), len(c.rows))
    step = np.clip(np.ceil(relative * STEPS / 2 - 1e-6).astype(np.int64), 0, STEPS)
    c.cost += _sums(stage * (STEPS + 1) + step, None, c.cost.shape)
    stretch = rows["seq"].astype(np.int64) * STRETCHES // max(c.plan.sequences(), 1)
    c.over[:, :sources] += _sums(stretch[owner] * sources + source, held, (STRETCHES, sources))
    c.over[:, sources] += _sums(stretch, rows["length"], (STRETCHES,))
    c.over[:, sources + 1] += _sums(stretch, None, (STRETCHES,))
    octave = np.minimum(np.log2(np.maximum(held, 1)).astype(np.int64), LENGTHS - 1)
    c.lengths += _sums(source * LENGTHS + octave, None, c.lengths.shape)
    goes_on = (spans["start"] > 0) | ((spans["first"] > 0) & (spans["caption"] < 0))
    c.lost += _sums(source, np.where(goes_on, held, 0), c.lost.shape)
    for i in np.unique(source).tolist():
        number = c.plan.card["sources"][c.plan.sources[i]]["dataset"]
        flags = c.seen.setdefault(i, np.zeros(int(starts[number][-1]), np.uint8))
        mine = np.flatnonzero(source == i)
        at = record_numbers(starts, {k: spans[k][mine] for k in ("dataset", "shard", "row")}, number)[1]
        flags[at] |= 1
        flags[at[goes_on[mine]]] |= 2


def _sums(cell: NDArray[Any], weight: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Sums by cell number; whole numbers below 2**53 pass through float64 unchanged."""
    return np.bincount(cell, weight, int(np.prod(shape))).astype(np.int64).reshape(shape)


def count(path: str) -> dict[str, Any]:
    """The same as JSON: {stages: [{until, sequences, wanted, tokens, fill, cost, sources}], sources: {name: {…}}, cost}."""
    plan = Plan.open(path)
    c = counted(plan)
    stages = []
    for k, (until, asked) in enumerate(planned_stages(plan)):
        space = int(c.rows[k]) * plan.sequence_length
        mine = {n: {"wanted": asked.get(n), "tokens": int(c.payload[k, i]), "spans": int(c.spans[k, i])} for i, n in enumerate(plan.sources)}
        facts = {"until": until, "sequences": int(c.rows[k]), "tokens": int(c.payload[k].sum()), "padding": space - int(c.length[k])}
        facts["fill"] = round(int(c.length[k]) / space, 6) if space else 0.0
        stages.append({**facts, "cost": _cost(c, k), "sources": mine})
    sources = {}
    for i, name in enumerate(plan.sources):
        cut, drawn = c.cut(i)
        facts = {"sequences": int(c.sequences[:, i].sum()), "lost": int(c.lost[i]), "cut": cut, "drawn": drawn}
        sources[name] = facts | {"payload_per_span": round(int(c.payload[:, i].sum()) / max(int(c.spans[:, i].sum()), 1), 3)}
    return {"stages": stages, "sources": sources, "cost": _cost(c, None)}


def _cost(c: Counted, stage: int | None) -> dict[str, float]:
    names = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"mean": round(c.cost_mean(stage), 6), **{k: round(c.cost_at(q, stage), 6) for k, q in names.items()}}


def planned_stages(plan: Plan) -> list[tuple[float, dict[str, float]]]:
    """(until, {source: tokens asked for}) of each stage; what is asked is in the unit that the mixture counts."""
    m = parse(Mixture, plan.card["mixture"])
    if m.stages is None or m.total is None:
        return [(1.0, {n: plan.card["sources"][n]["wanted"] for n in plan.sources})]
    out, last, total = [], exact(0), m.total * exact(m.scale)
    for stage in m.stages:
        until = exact(stage.until)
        out.append((float(until), {n: float(exact(stage.share.get(n, 0)) * (until - last) * total) for n in plan.sources}))
        last = until
    return out
