"""What a report is made from: an ablation folder read once into plain values, so that every figure is a pure function of them.

In: `ablation.json`, `results.parquet`, and per arm and seed `run.json`, `metrics.jsonl`, `answers.parquet`, the plan's card. Out: `Evidence`.
Only cards and what they name are read (no folder is listed). Numbers are kept as they were written; means, errors and tests are made where
they are shown. Tests build an `Evidence` by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from trainer.report.statistics import Floats

KINDS = ("payload", "structure", "padding", "loss")
TIME = re.compile(r"t\d\.\d-\d\.\d")


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """One arm with one seed. `tokens` and `planned`: source → kind (see KINDS) → tokens. `curves`: (loss, source) → tokens seen, loss."""

    arm: str
    seed: int
    steps: int
    tokens: dict[str, dict[str, int]]
    planned: dict[str, dict[str, int]]
    padding: int = 0
    flops: float | None = None
    seconds: float | None = None
    parameters: int | None = None
    curves: dict[tuple[str, str], tuple[Floats, Floats]] = field(default_factory=dict)
    answers: pa.Table | None = None
    lineage: tuple[tuple[str, str], ...] = ()  # (what, fingerprint), nearest first
    model: str = ""
    items: dict[str, pa.Table] = field(default_factory=dict)  # metric → what it is the mean of (trainer/evaluate/_items.py)
    encoders: tuple[str, ...] = ()  # "name fingerprint" of what made the latents, those that take loss first
    place: str = ""  # the run's folder, from the ablation's
    processes: int = 1
    pictures: pa.Table | None = None  # caption, held_out, sampled: what `samples` with `pictures` kept
    tables: dict[str, pa.Table] = field(default_factory=dict)  # evaluation → the table it left as <run>/<evaluation>.parquet


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The whole ablation. `results` are the rows of results.parquet; `arms` in the order of the YAML, `mixtures` what each arm asks for."""

    name: str
    arms: list[str]
    seeds: list[int]
    results: list[dict[str, Any]]
    runs: dict[tuple[str, int], RunEvidence]
    budgets: dict[str, dict[str, int]]  # arm → source → payload tokens planned
    repeats: dict[str, float] = field(default_factory=dict)  # arm → epochs of its most repeated source
    scale: float = 1.0
    card: dict[str, Any] = field(default_factory=dict)

    def values(self, arm: str, metric: str, split: str) -> list[float]:
        """One number per seed, in the order of seeds; seeds without the row are left out."""
        wanted = {(r["seed"]): r["value"] for r in self.results if r["arm"] == arm and r["metric"] == metric and r["split"] == split}
        return [wanted[s] for s in self.seeds if s in wanted]

    def mean(self, arm: str, metric: str, split: str) -> float | None:
        """The mean over seeds, or None when nothing was measured."""
        found = self.values(arm, metric, split)
        return float(np.mean(found)) if found else None

    def splits(self, metric: str) -> list[str]:
        """The splits a metric was measured on, first seen first."""
        return list(dict.fromkeys(r["split"] for r in self.results if r["metric"] == metric))

    def metrics(self, prefix: str) -> list[str]:
        """The metrics whose name begins so."""
        return list(dict.fromkeys(r["metric"] for r in self.results if r["metric"].startswith(prefix)))

    def items(self, arm: str, metric: str, split: str | None = None) -> tuple[Floats, Floats, list[str]] | None:
        """(values [seeds, items], weights [items], names) of a metric, items in the order of their names; of one split, or all. None unless every
        seed has the same items."""
        found = []
        for seed in self.seeds:
            table = self.runs[arm, seed].items.get(metric) if (arm, seed) in self.runs else None
            if table is None:
                return None
            rows = sorted((r["split"], r["item"], r["value"], r["weight"]) for r in table.to_pylist() if split is None or r["split"] == split)
            found.append(rows)
        names = [[(s, i) for s, i, _, _ in rows] for rows in found]
        if not names or not names[0] or any(n != names[0] for n in names):
            return None
        values = np.array([[v for _, _, v, _ in rows] for rows in found])
        return values, np.array([w for _, _, _, w in found[0]]), [i for _, i in names[0]]

    @property
    def seeds_said(self) -> str:
        """How many seeds, in words."""
        return "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} paired seeds"

    def types(self) -> list[str]:
        """Question types, most questions first."""
        table = next((r.answers for r in self.runs.values() if r.answers is not None), None)
        if table is None:
            return []
        kinds, counts = np.unique(np.asarray(table["type"].to_pylist(), dtype=object).astype(str), return_counts=True)
        return [str(k) for k in kinds[np.lexsort((kinds, -counts))]]

    def asked(self, kind: str) -> int:
        """How many questions of a type were asked."""
        table = next((r.answers for r in self.runs.values() if r.answers is not None), None)
        return 0 if table is None else sum(str(t) == kind for t in table["type"].to_pylist())


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last line (a killed run) is passed over. A step logged twice keeps its last line."""
    if not storage.exists(path):
        return []
    lines: dict[int, dict[str, Any]] = {}
    for raw in storage.read(path).decode().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines[int(line["step"])] = line
    return [lines[s] for s in sorted(lines)]


def curves(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str], tuple[Floats, Floats]]:
    """(loss, source) → (payload tokens seen, loss) from logged steps: keys `text/<source>` (nats a token) and `flow/<source>`; `flow/t0.2-0.3` is a
    time, not a source."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in lines:
        at = float(line.get("tokens", line["step"]))
        for key, value in line.items():
            loss, slash, source = key.partition("/")
            if slash and loss in ("text", "flow") and isinstance(value, int | float) and not TIME.fullmatch(source):
                points.setdefault((loss, source), []).append((at, float(value)))
    return {k: (np.array([p[0] for p in v]), np.array([p[1] for p in v])) for k, v in points.items()}


def read_table(path: str) -> pa.Table | None:
    """A Parquet file, or None when it is not there."""
    return pq.read_table(pa.BufferReader(storage.read(path))) if storage.exists(path) else None
