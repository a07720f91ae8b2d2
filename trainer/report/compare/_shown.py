"""What the comparisons share: how a p value, an interval and a verdict are written, and which arms can be asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, tag
from trainer.report.measures import Measure, measure, said_split
from trainer.report.resampling import DRAWS

LEVEL = 0.05
SEED_NOTE = "p by signs: exact sign-flip test over seeds alone, smallest value 2 / 2^seeds."
P_NOTE = f"p: two-sided, twice the smaller share of {DRAWS:,} bootstrap draws at or beyond 0 (plus one), so never below {2 / (DRAWS + 1):.0e}."


def p_said(p: float | None) -> str | None:
    """A p value; the smallest that draws can show is said as a bound."""
    if p is None:
        return None
    return f"≤\u00a0{2 / (DRAWS + 1):.4f}" if p <= 2.0001 / (DRAWS + 1) else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def interval_said(m: Measure, low: float | None, high: float | None) -> str | None:
    """An interval of differences."""
    return None if low is None or high is None or low != low else f"{m.signed(low)} … {m.signed(high)}"


def missing(evidence: Evidence, arms: Iterable[str]) -> list[str]:
    """Arms that are asked for and not there."""
    return [a for a in dict.fromkeys(arms) if a not in evidence.arms]


def title(evidence: Evidence, metric: str, split: str) -> str:
    """What is compared, in words."""
    m = measure(metric)
    unit = f" ({m.unit})" if m.unit else ""
    return f"{m.name}{unit}, {said_split(split)}"


def shared_said(rows: Sequence[dict[str, Any]]) -> str:
    """What is said where arms were not asked about the same items."""
    few = [r for r in rows if r.get("shared", 1.0) < 1]
    if not few:
        return ""
    least = min(few, key=lambda r: r["shared"])
    share = f"at the least {least['n']:,} ({100 * least['shared']:.0f} %)"
    return f" Not all arms were asked about the same items: compared are those that they share, {share}."


def block(heading: Any, body: Sequence[Any], gone: Sequence[str] = ()) -> Markup:
    """A comparison as a section; arms that were asked for and are not there are named."""
    note = tag("p", "Asked about, and not among the arms: ", ", ".join(gone), ".", class_="weak") if gone else None
    return tag("section", tag("h2", heading), joined(body), note)
