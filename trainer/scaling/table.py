"""Runs from a table of one's own: CSV or Parquet, a row a run, into what laws are fitted to.

In: the table and which of its columns say what. Out: `Measured` runs, or mixtures and losses. A cell that is no number above 0 costs its row, and
such rows are counted; a table that loses them all is refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.document import Document
from pipelines.format.errors import InputError
from trainer.scaling.draws import Floats
from trainer.scaling.points import Measured

WITHIN = 1.15  # budgets nearer than this to the group's first are one


class Columns(Document):
    """Which columns say what. n: parameters; d: tokens; flops: of training (null: 6 n d); losses: name → column; own: name → tokens of its own, of d;
    family, seed: labels; budget: the column of FLOPs by which runs belong to a budget, those within 15 % to one (null: no IsoFLOP curves, which
    scattered FLOPs do not make); sources: source → column of tokens or shares."""

    n: str | None = None
    d: str | None = None
    flops: str | None = None
    losses: dict[str, str] = {"loss": "loss"}
    own: dict[str, str] = {}
    budget: str | None = None
    family: str | None = None
    seed: str | None = None
    sources: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Table:
    """The rows that could be read; `left_out` of `rows`. mixtures [arms, sources] and losses [arms]; `arms` names their rows."""

    runs: list[Measured]
    mixtures: Floats
    losses: dict[str, Floats]
    rows: int
    left_out: int
    sources: list[str]
    arms: list[str]


def read(path: str, columns: Columns) -> Table:
    """The table at `path`. InputError: not a table, a column that it lacks, or no row of numbers."""
    table = _opened(path)
    wanted = [columns.n, columns.d, columns.flops, columns.budget, *columns.losses.values(), *columns.own.values(), *columns.sources.values()]
    numbers = {name: _numbers(table, name, path) for name in dict.fromkeys(w for w in wanted if w)}
    labels = {name: _labels(table, name, path) for name in (columns.family, columns.seed) if name}
    above = [c for c in (columns.n, columns.d, columns.flops, columns.budget, *columns.losses.values()) if c]
    good = np.ones(len(table), bool)
    for name, values in numbers.items():
        good &= np.isfinite(values) & ((values > 0) if name in above else (values >= 0))
    if not good.any():
        raise InputError("no row of this table has numbers above 0 in every column that was asked for", where=path, found=f"{len(table)} rows",
                         allowed=", ".join(numbers))  # fmt: skip
    kept = {name: values[good] for name, values in numbers.items()}
    mixtures = np.stack([kept[c] for c in columns.sources.values()], 1) if columns.sources else np.zeros((int(good.sum()), 0))
    runs = _runs(columns, kept, {k: [x for x, g in zip(v, good, strict=True) if g] for k, v in labels.items()})
    arms = [f"row {i + 1}" for i in np.flatnonzero(good)]
    return Table(runs, mixtures, {k: kept[c] for k, c in columns.losses.items()}, len(table), int((~good).sum()), list(columns.sources), arms)


def _opened(path: str) -> pa.Table:
    if not storage.exists(path):
        raise InputError("no table here", where=path)
    data = storage.read(path)
    try:
        if path.endswith(".parquet"):
            return pq.read_table(pa.BufferReader(data))
        return csv.read_csv(io.BytesIO(data))
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as e:
        said = str(e).splitlines()[0]
        raise InputError("this is no table that can be read", where=path, found=said, allowed=".csv with a header, or .parquet") from None


def _column(table: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise InputError("the table has no such column", where=path, found=name, allowed=", ".join(table.column_names[:40]))
    return table[name]


def _numbers(table: pa.Table, name: str, path: str) -> Floats:
    out = np.full(len(table), np.nan)
    for i, value in enumerate(_column(table, name, path).to_pylist()):
        try:
            out[i] = float(value)
        except (TypeError, ValueError):
            continue
    return out


def _labels(table: pa.Table, name: str, path: str) -> list[str]:
    return [str(v) for v in _column(table, name, path).to_pylist()]


def _runs(columns: Columns, kept: dict[str, Floats], labels: dict[str, list[str]]) -> list[Measured]:
    """Runs, where the table has sizes and tokens (or FLOPs, from which tokens follow)."""
    if columns.n is None or (columns.d is None and columns.flops is None):
        return []
    n = kept[columns.n]
    d = kept[columns.d] if columns.d else kept[columns.flops or ""] / (6 * n)
    flops = kept[columns.flops] if columns.flops else 6 * n * d
    budgets = grouped(kept[columns.budget]) if columns.budget else None
    family = labels[columns.family] if columns.family else ["all"] * len(n)
    seeds = labels[columns.seed] if columns.seed else ["0"] * len(n)
    known = sorted(set(seeds))
    out = []
    for i in range(len(n)):
        losses = {k: float(kept[c][i]) for k, c in columns.losses.items()}
        own = {k: float(kept[c][i]) for k, c in columns.own.items()}
        arm = f"{family[i]}-{n[i]:.6g}-{d[i]:.6g}"
        budget, seed = None if budgets is None else float(budgets[i]), known.index(seeds[i])
        out.append(Measured(arm, family[i], budget, seed, float(n[i]), float(d[i]), losses, float(flops[i]), own))
    return out


def grouped(flops: Any) -> Floats:
    """FLOPs as budgets: sorted, each within 15 % of the first of its group belongs to it; a budget is the group's geometric mean."""
    flops = np.asarray(flops, np.float64)
    out = np.empty_like(flops)
    order = np.argsort(flops, kind="stable")
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or flops[order[i]] > WITHIN * flops[order[start]]:
            members = order[start:i]
            out[members] = np.exp(np.log(flops[members]).mean())
            start = i
    return out
