"""Every figure of every arm: mean over seeds, interval, each seed, how many items, and what guessing gives.

The whole of a metric stands open; its parts (question types, sources, horizons) and its controls are folded below it. Nothing is ranked here: that is
what `compare` asks.
"""

from __future__ import annotations

from typing import Any

from trainer.report.encoders import encoder, encoders, unlike
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measured import SEEDS, Measured, by_seed, measured, said_interval
from trainer.report.measured import rows as rows_of
from trainer.report.measures import KNOWN, Measure, is_control, measure, said_split

WHOLE = ("held_out", "all", "layer:all", "wasd")
FEW = 3  # splits that stand open where a metric has no whole
PARTS = 400  # rows of parts shown of one metric; the rest is in results.parquet


def section(evidence: Evidence) -> Markup | None:
    """A table a metric."""
    names = list(dict.fromkeys(r["metric"] for r in evidence.results))
    main = sorted((m for m in names if not is_control(m)), key=lambda m: list(KNOWN).index(m) if m in KNOWN else len(KNOWN))
    shown = [_metric(evidence, m, [c for c in names if is_control(c) and c.rpartition(".")[0] == m]) for m in main]
    return tag("section", tag("h2", "Results"), *shown, id="results") if shown else None


def _metric(evidence: Evidence, metric: str, controls: list[str]) -> Markup:
    m, splits = measure(metric), evidence.splits(metric)
    whole = [s for s in splits if s in WHOLE or s.startswith("set:")] or (splits if len(splits) <= FEW else [])
    found = {(a, s): measured(evidence, a, metric, s) for s in whole for a in evidence.arms}
    rows = [row for s in whole for a in evidence.arms if (row := _row(evidence, m, a, metric, s, found[a, s], len(whole) > 1))]
    way = {1: "more is better", -1: "less is better"}.get(m.sign, "")
    many = len(encoders(evidence)) > 1 and unlike(evidence, metric, evidence.arms)
    extra = tag("p", many, class_="bad") if many else None
    where = said_split(whole[0]) if len(whole) == 1 else ""
    caption = "; ".join(x for x in (f"{m.label}{', ' + where if where else ''}", way) if x) + f". {said_interval(found.values())}"
    header = _header(evidence, len(whole) > 1)
    rest = [(metric, s) for s in splits if s not in whole] + [(c, s) for c in controls for s in evidence.splits(c) if s in WHOLE or s in whole]
    shown = table(header, rows, caption, numeric_from=2 if len(whole) > 1 else 1) if rows else None
    return tag("div", tag("h3", m.name), extra, shown, _parts(evidence, m, rest))


def _header(evidence: Evidence, split: bool) -> list[str]:
    return ["arm", *(["of"] if split else []), "mean", "95 % interval", *(f"seed {s}" for s in evidence.seeds), "n", "chance"]


def _row(evidence: Evidence, m: Measure, arm: str, metric: str, split: str, found: Measured | None, said: bool, name: Any = None) -> list[Any] | None:
    if found is None:
        return None
    seeds = by_seed(evidence, arm, metric, split)
    n, chance = _facts(evidence, arm, metric, split)
    bounds = f"{m.said(found.low)} … {m.said(found.high)}" if found.low == found.low else None
    if bounds and found.resampled == SEEDS:
        bounds += " (seeds alone)"
    label = name or (f"{arm} ({e.partition(' ')[0]})" if not m.comparable and len(encoders(evidence)) > 1 and (e := encoder(evidence, arm)) else arm)
    cells = [label, *([said_split(split)] if said else []), m.said(found.mean), bounds, *(m.said(seeds.get(s)) for s in evidence.seeds)]
    return [*cells, f"{n:,}" if n else None, m.said(chance)]


def _facts(evidence: Evidence, arm: str, metric: str, split: str) -> tuple[int, float | None]:
    """(items of the first seed's row, chance)."""
    row = next(iter(rows_of(evidence, arm, metric, split)), None)
    return (int(row.get("n") or 0), row.get("chance")) if row else (0, None)


def _parts(evidence: Evidence, m: Measure, rest: list[tuple[str, str]]) -> Markup | None:
    """Parts and controls, folded: means and seeds, without intervals (there are many, and nothing is concluded from them)."""
    rows: list[list[Any]] = []
    for metric, split in rest:
        own = measure(metric)
        what = own.name.removeprefix(f"{m.name}: ") if metric not in KNOWN else ""
        name = ", ".join(x for x in (what, "" if what and split in WHOLE else said_split(split)) if x)
        for arm in evidence.arms:
            seeds = by_seed(evidence, arm, metric, split)
            if seeds:
                n, chance = _facts(evidence, arm, metric, split)
                cells = [own.said(sum(seeds.values()) / len(seeds)), *(own.said(seeds.get(s)) for s in evidence.seeds)]
                rows.append([arm, name, *cells, f"{n:,}" if n else None, own.said(chance)])
    if not rows:
        return None
    header = ["arm", "of", "mean", *(f"seed {s}" for s in evidence.seeds), "n", "chance"]
    cut = f" The first {PARTS} of {len(rows)}; all are in results.parquet." if len(rows) > PARTS else ""
    body = table(header, rows[:PARTS], f"{m.label}.{cut}", numeric_from=2)
    return tag("details", tag("summary", f"{m.name}: parts and controls ({len(rows)} rows)"), body)
