"""What a plan holds, counted from the spans that are written and from nothing else: the figures of its card are exact sums over them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtures.budget import Draft
from mixtures.span import Spans
from mixtures.spill import HELD


@dataclass(slots=True)
class Tally:
    """Sums by source (and `rows`, `length` overall) of one split."""

    names: list[str]
    rows: int = 0
    sums: dict[str, Counter[str]] = field(default_factory=dict)
    ranges: dict[str, list[int]] = field(default_factory=dict)  # rows from, to of each source

    def add(self, spans: Spans) -> None:
        """Count one window."""
        self.rows = int(spans.row_in_plan[-1]) + 1
        payload = spans.stop - spans.start
        single = (spans.count == 1) & (spans.text == payload)  # texts: the only spans that may continue another
        columns = {
            "spans": np.ones(len(spans), np.int64),
            "text": spans.text,
            "visual": payload - spans.text,
            "all": payload,
            "loss": spans.loss_tokens,
            "structure": spans.structure,
            "continued": np.where(single & (spans.start > 0), payload, 0),
        }
        for i, name in enumerate(self.names):
            mine = np.flatnonzero(spans.source == i)
            if len(mine):
                counter = self.sums.setdefault(name, Counter())
                counter.update({key: int(np.asarray(column)[mine].sum(dtype=np.int64)) for key, column in columns.items()})
                first, last = int(spans.row_in_plan[mine[0]]), int(spans.row_in_plan[mine[-1]]) + 1
                known = self.ranges.setdefault(name, [first, last])
                self.ranges[name] = [min(known[0], first), max(known[1], last)]

    def of(self, name: str, key: str) -> int:
        """A sum of one source."""
        return self.sums.get(name, Counter())[key]

    def total(self, key: str) -> int:
        """A sum over all sources."""
        return sum(c[key] for c in self.sums.values())

    def tokens(self, name: str | None = None) -> dict[str, int]:
        """text, visual, loss and all: of one source, or of all."""
        return {k: self.total(k) if name is None else self.of(name, k) for k in ("text", "visual", "loss", "all")}


def describe(draft: Draft, train: Tally, held: Tally) -> dict[str, Any]:
    """The facts of a plan's card: overall, and per source what was wanted, what was taken and what there was."""
    row = draft.mixture.sequence_length
    sources: dict[str, Any] = {}
    for d in draft.sources:
        counted = d.units.of("counted")
        entry = {
            "dataset": d.dataset,
            "data": d.data,
            "wanted": d.wanted,
            "taken": counted,
            "available": d.available,
            "epochs": round(counted / d.available, 6) if d.available else 0.0,
            "records": d.units.records,
            "spans": train.of(d.name, "spans"),
            "tokens": train.tokens(d.name),
            "loss_tokens": train.of(d.name, "loss"),
            "structure": train.of(d.name, "structure"),
            "continued": train.of(d.name, "continued"),
            "unfit": d.unfit,
            "rules": {"turns": d.source.turns, "history": d.source.history, "loss": d.source.loss, "both": d.source.both},
        }
        if d.target is not None:
            entry["target"] = d.target
        if d.units.of("units", [HELD]):
            entry["heldout"] = {"records": d.units.of("records", [HELD]), "tokens": held.tokens(d.name), "rows": held.ranges[d.name]}
        sources[d.name] = entry
    structure, payload = train.total("structure"), train.total("all")
    space = train.rows * row
    return {
        "records": train.rows,
        "sequence_length": row,
        "count": draft.mixture.count,
        "tokens": train.tokens(),
        "structure": structure,
        "padding": space - structure - payload,
        "fill": round((structure + payload) / space, 6) if space else 0.0,
        "heldout": {"records": held.rows, "tokens": held.tokens(), "structure": held.total("structure")},
        "sources": sources,
    }
