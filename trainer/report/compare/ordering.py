"""Does the paper's order of arms hold here? Ours beside it, the agreement of the two, and how sure a run of this size can be of it.

    compare: [{ordering: {metric: vqa}}]

Values differ in scale and in what they measure, so only the order is set beside ours. Arms that the paper has equal are in either order, and its
order is ours when every arm is above all those of the paper's next level. Kendall's τ is over the pairs that the paper orders (Somers' d: τ-b could
not be 1 where the paper alone has ties). The probabilities are shares of bootstrap draws (seeds and items, all arms together) in which the order
holds, of all arms and of each neighbouring pair. That all arms are in order is improbable when any two are close, so the luck of a blind order stands
beside it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from pipelines.format.document import Part
from trainer.report.compare._shown import block, shared_said
from trainer.report.encoders import unlike
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, table, tag
from trainer.report.measured import NOTHING, paired, said_resampled
from trainer.report.measures import measure, part
from trainer.report.published import Published, experiment, of
from trainer.report.resampling import Floats, resample


class Ordering(Part):
    """The paper's order for this `experiment` on a metric, held against ours."""

    metric: str
    split: str = "held_out"

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """A row a table of the paper: its order, ours, τ, the probability of all of it and of each neighbouring pair."""
        return [r for known in of(evidence, self.metric, self.split) if (r := self._row(evidence, known)) is not None]

    def _row(self, evidence: Evidence, known: Published) -> dict[str, Any] | None:
        arms = known.order()
        if unlike(evidence, self.metric, arms) or (found := paired(evidence, arms, self.metric, self.split)) is None:
            return None
        sign = measure(self.metric).sign or (1 if known.better == "higher" else -1)
        drawn = resample(found.arms, found.transform)
        ours, theirs = sign * drawn.point, np.array([known.values[a] * (1 if known.better == "higher" else -1) for a in arms])
        row: dict[str, Any] = {"compare": "ordering", "metric": self.metric, "split": self.split, "paper": known.name, "basis": known.basis}
        row |= {"source": known.source, "order": arms, "ours": [arms[i] for i in np.argsort(-ours, kind="stable")]}
        row |= {"paper_values": [known.values[a] for a in arms], "values": [float(v) for v in drawn.point], "tau": tau(theirs, ours)}
        row |= {"holds": all(bool(h) for h in pairs_hold(theirs, ours).values())}
        row |= {"luck": luck(theirs), "probability": None, "pairs": [], "seeds": len(found.seeds), "n": found.n, "resampled": found.resampled}
        row["shared"] = found.shared
        row |= {"shown": known.shown}
        apart = [np.eye(len(arms))[i] - np.eye(len(arms))[j] for i, j in pairs_hold(theirs, ours)]
        if found.resampled != NOTHING and all(drawn.varies(c) for c in apart):
            holds = pairs_hold(theirs, sign * drawn.joint())
            row["probability"] = float(np.all(list(holds.values()), axis=0).mean())
            row["pairs"] = [{"better": arms[i], "worse": arms[j], "probability": float(h.mean())} for (i, j), h in holds.items()]
        return row

    def answers(self, evidence: Evidence) -> list[str]:
        """Whether the order holds, in a sentence a table."""
        return [f"{measure(self.metric).name}{part(self.split)} — {_sentence(r)}" for r in self.rows(evidence)]

    def section(self, evidence: Evidence) -> Markup | None:
        """Both orders side by side and the neighbouring pairs."""
        rows = self.rows(evidence)
        if not rows:
            return self._without(evidence)
        m, body = measure(self.metric), []
        for r in rows:
            place = {a: i + 1 for i, a in enumerate(r["ours"])}
            cells = []
            for i, arm in enumerate(r["order"]):
                said = ", ".join(f"{100 * p['probability']:.0f} % over {p['worse']}" for p in r["pairs"] if p["better"] == arm) or None
                shown = f"{r['paper_values'][i]:g}" if not r["shown"] else f"{r['paper_values'][i]:g} ({r['shown']})"
                cells.append([arm, str(i + 1), shown, str(place[arm]), m.said(r["values"][i]), said])
            header = ["arm", "place in the paper", "the paper, another scale", "place here", m.label, "probability here that it is better"]
            body += [table(header, cells, f"{r['paper']} — {r['source']}"), tag("p", _sentence(r)[:1].upper(), _sentence(r)[1:])]
        resampled = said_resampled(r["resampled"] for r in rows).replace("Interval: 95 %, ", "Probabilities: ")
        note = f"The paper's values are of another scale and other test sets: only the order can be set beside ours. {resampled}{shared_said(rows)}"
        return block(f"The paper's order: {m.name}{part(self.split)}", [*body, tag("p", note, class_="caption")])

    def _without(self, evidence: Evidence) -> Markup | None:
        known = of(evidence, self.metric, self.split)
        barred = unlike(evidence, self.metric, known[0].order()) if known else None
        named = experiment(evidence)
        words = barred or (f"The paper's values for {named} have no arms of these names on this metric." if named and not known else None)
        return block(f"The paper's order: {measure(self.metric).name}", [joined([tag("p", words, class_="weak")])]) if words else None


def tau(theirs: Floats, ours: Floats) -> float:
    """Kendall's τ over the pairs that `theirs` orders: 1 the same order, −1 the reverse; a pair that is equal in ours counts for neither (Somers'
    d, 1962). NaN where either side has no order at all."""
    pairs = list(itertools.combinations(range(len(theirs)), 2))
    x, y = (np.array([np.sign(v[i] - v[j]) for i, j in pairs]) for v in (theirs, ours))
    return float((x * y).sum() / (x != 0).sum()) if x.any() and y.any() else math.nan


def pairs_hold(theirs: Floats, draws: Floats) -> dict[tuple[int, int], Any]:
    """Neighbours in the paper's order (arms best first) → in which draws [arms, draws] the better one is better. Where the paper has arms equal,
    neighbours are across the tie, so that the whole order holds just when all of these do."""
    n = len(theirs)
    levels = sorted(set(theirs.tolist()), reverse=True)
    places = [[i for i in range(n) if theirs[i] == v] for v in levels]
    return {(i, j): draws[i] > draws[j] for up, down in itertools.pairwise(places) for i in up for j in down}


def luck(theirs: Floats) -> float:
    """The probability that a random order fits the paper's, ties in either order."""
    ties = math.prod(math.factorial(int(c)) for c in np.unique(theirs, return_counts=True)[1])
    return ties / math.factorial(len(theirs))


def _sentence(r: dict[str, Any]) -> str:
    if math.isnan(r["tau"]):
        return f"all arms are equal here: no order to set beside the paper's ({r['paper']})."
    holds = "is also ours" if r["holds"] else "is not ours"
    sure = ""
    if r["probability"] is not None:
        p = "< 1" if r["probability"] < 0.01 else f"{100 * r['probability']:.0f}"
        sure = f", probability that all of it holds here {p} % (by luck {100 * r['luck']:.2g} %)"
    return f"the paper's order ({r['paper']}) {holds}: τ = {r['tau']:.2f}{sure}."
