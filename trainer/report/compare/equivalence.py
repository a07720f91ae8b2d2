"""Does an arm do no harm? Two one-sided tests against a margin, since a difference that was not found is not a difference that is not there.

    compare: [{equivalence: {metric: text_perplexity, of: [text+video], against: text, margin: 0.5%}}]

The margin is relative to the arm of `against`: arms are compared by the ratio of their scores (for perplexity by the difference of nats, so items
weigh as they should). Verdict, in order: *equivalent* when both one-sided tests reject at 5 % (the 90 % interval lies inside ± margin); *different*
when the 95 % interval leaves out 0; else *not decided*, which is what too few seeds or items must say (Schuirmann 1987; Lakens 2017).
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pipelines.format.document import Part, Percent
from trainer.report.compare._shown import LEVEL, block, missing, p_said, shared_said, title
from trainer.report.encoders import unlike
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measured import NOTHING, Paired, paired, said_resampled
from trainer.report.measures import measure, part
from trainer.report.resampling import Contrast, contrast, resample

EQUIVALENT, DIFFERENT, OPEN = "equivalent", "different", "not decided"
UNKNOWN = ("No interval where some draws leave a score of 0, of which no ratio can be made, or where seeds all differ by the same and no items were "
           "kept. ")  # fmt: skip


class Equivalence(Part):
    """`of` (default: every other arm) against one arm, within ± `margin` of its score."""

    metric: str
    split: str = "held_out"
    of: list[str] = []
    against: str
    margin: Annotated[Percent, Field(gt=0, lt=1)] = 0.005

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """A row an arm: ratio − 1 with 90 and 95 % intervals, the p of the two one-sided tests, the verdict."""
        return [r for arm in self.of or evidence.arms if arm != self.against and (r := self._row(evidence, arm)) is not None]

    def _row(self, evidence: Evidence, arm: str) -> dict[str, Any] | None:
        barred = unlike(evidence, self.metric, [arm, self.against])
        found = None if barred else paired(evidence, [arm, self.against], self.metric, self.split)
        if found is None or (not found.logs and min(found.values(0).min(), found.values(1).min()) <= 0):
            return None  # a ratio needs positive scores
        row: dict[str, Any] = {"compare": "equivalence", "metric": self.metric, "split": self.split, "of": arm, "against": self.against}
        logs = np.log(found.values(0)) - np.log(found.values(1))
        row |= {"margin": float(self.margin), "mean": math.expm1(float(logs.mean())), "seeds": len(found.seeds), "n": found.n}
        row |= {"resampled": found.resampled, "p": None, "low": None, "high": None, "low90": None, "high90": None, "verdict": OPEN}
        row["shared"] = found.shared
        if found.resampled == NOTHING:
            return row
        drawn = ratio(found)
        if not drawn.known:  # what the draws that are left would say is not what all of them would
            return row
        row["p"], row["verdict"] = verdict(drawn, float(self.margin))
        bounds = zip(("low", "high", "low90", "high90"), (*drawn.interval(), *drawn.interval(0.90)), strict=True)
        return row | {name: bound if math.isfinite(bound) else None for name, bound in bounds}

    def answers(self, evidence: Evidence) -> list[str]:
        """The verdicts, in sentences."""
        m = measure(self.metric)
        margin = f"margin ± {100 * float(self.margin):g} %"
        name = f"{m.name}{part(self.split)}"
        return [f"{name} — {r['of']} against {r['against']}, {margin}: {r['verdict']} ({_percent(r['mean'])} %)." for r in self.rows(evidence)]

    def section(self, evidence: Evidence) -> Markup | None:
        """The table of verdicts."""
        rows, margin = self.rows(evidence), 100 * float(self.margin)
        if not rows:
            return None
        cells = [_cells(r) for r in rows]
        header = [f"arm against {self.against}", "verdict", "difference, %", "90 % interval", "95 % interval", "p, one-sided tests", "seeds", "items"]
        made = table(header, cells, f"{title(evidence, self.metric, self.split)}, relative to {self.against}; margin ± {margin:g} %")
        unknown = UNKNOWN if any(r["p"] is None and r["resampled"] != NOTHING for r in rows) else ""
        note = (
            f"Equivalent: both one-sided tests reject at 5 %, so the 90 % interval lies inside ± {margin:g} %; p is the larger of the two. "
            "Different: the 95 % interval leaves out 0. "
            f"Not decided: neither; more seeds or items would be needed. {unknown}{said_resampled(r['resampled'] for r in rows)}{shared_said(rows)}"
        )
        gone = missing(evidence, [*self.of, self.against])
        return block(f"Does it do harm? {measure(self.metric).name}{part(self.split)}", [made, tag("p", note, class_="caption")], gone)


def _cells(r: dict[str, Any]) -> list[Any]:
    shown = [_percent(r["mean"]), _range(r["low90"], r["high90"]), _range(r["low"], r["high"]), p_said(r["p"])]
    return [r["of"], tag("strong", r["verdict"]), *shown, str(r["seeds"]), f"{r['n']:,}" if r["n"] else None]


def ratio(found: Paired) -> Contrast:
    """The first arm's score over the second's, less 1: geometric mean over seeds."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of few right answers some draws hold none
        return contrast(resample(found.arms, None if found.logs else np.log), [1, -1], np.expm1)


def verdict(drawn: Contrast, margin: float) -> tuple[float, str]:
    """(p of the two one-sided tests, the verdict in words). The lower bound is symmetric on the log scale: 1 / (1 + margin). Draws that are not
    known speak against equivalence, and decide nothing else."""
    p = max(drawn.beyond(-margin / (1 + margin), above=False), drawn.beyond(margin, above=True))
    low, high = drawn.interval()
    if not drawn.known:
        return p, OPEN
    return p, EQUIVALENT if p < LEVEL else DIFFERENT if low > 0 or high < 0 else OPEN


def _percent(x: float | None) -> str | None:
    return None if x is None else f"{100 * x:+.2f}" if abs(x) < 10 else f"{100 * x:+,.0f}"


def _range(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{_percent(low)} … {_percent(high)}"
