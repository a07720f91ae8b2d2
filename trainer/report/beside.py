"""The paper's values beside ours, for every table of the same experiment that has our arms: always another scale, never a target."""

from __future__ import annotations

from typing import Any

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, table, tag
from trainer.report.measures import measure
from trainer.report.published import Published, experiment, of


def section(evidence: Evidence) -> Markup | None:
    """A table for each of the paper's, with our mean where the metric was measured; those that an `ordering` shows already are left to it."""
    shown = [c["ordering"] for c in evidence.card.get("recipe", {}).get("compare") or [] if isinstance(c, dict) and "ordering" in c]
    asked = {(o.get("metric"), str(o.get("split") or "held_out").partition(":")[0]) for o in shown if isinstance(o, dict)}
    official = {metric for metric, _ in asked}
    known = [k for k in of(evidence) if (k.metric, k.split) not in asked and k.also not in official]
    if not known:
        return None
    scale = "whose models have 1.5B active parameters and more, and whose test sets are others: only orders can be set beside ours."
    said = tag("p", f"{experiment(evidence)} of the paper, {scale}")
    return tag("section", tag("h2", "The paper's values, at another scale"), said, joined([_table(evidence, k) for k in known]), id="paper")


def _table(evidence: Evidence, known: Published) -> Markup:
    metric = known.also if known.also and evidence.splits(known.also) else known.metric
    m, splits = measure(metric), evidence.splits(metric)
    wanted = ("all", "held_out") if metric == known.also else (known.split,)
    split = next((s for s in splits if wanted == (None,) or s.partition(":")[0] in wanted), known.split or "held_out")
    rows: list[list[Any]] = []
    for arm, value in known.values.items():
        rows.append([arm, f"{value:g}", m.said(evidence.mean(arm, metric, split))])
    theirs = f"the paper: {known.shown or known.name}"
    better = "more is better" if known.better == "higher" else "less is better"
    caption = f"{known.name} ({better}). {known.source}." + (f" Random guessing there: {known.chance:g}." if known.chance is not None else "")
    return table(["arm", theirs, f"ours: {m.label}"], rows, caption)
