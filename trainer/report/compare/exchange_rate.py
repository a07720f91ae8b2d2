"""What is one kind of data worth in another's tokens? "80B text is worth y B VQA", read off a ladder of arms that hold that other kind alone.

    compare: [{exchange_rate: {metric: vqa, ladder: {vqa20: 20B, vqa40: 40B, vqa60: 60B, vqa80: 80B, vqa100: 100B}, of: [vqa20+text80]}}]

The ladder's scores make a curve over budgets; an arm's score is looked up on it; what it stands at, less what it holds of the ladder's kind itself,
is what the rest is worth. `isotonic` (the default): the closest curve that never falls, straight in log budget between rungs. It is chosen because
nothing is known of the curve's form but that more data does not hurt; its price is that it says nothing outside the ladder ("beyond the ladder"),
and a flat stretch makes wide intervals, which is the truth of it. `log_linear` fits score = a + b · log budget: narrower, and wrong where
the curve saturates. Both are redone in every bootstrap draw, all arms drawn together. Budgets are in the units of the YAML.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.format.document import Part, Size
from trainer.report.compare._shown import block, missing, shared_said, title
from trainer.report.encoders import unlike
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measured import NOTHING, paired, said_resampled
from trainer.report.measures import measure, part
from trainer.report.resampling import Draws, Floats, resample

FILLED = 0.05  # a plan as far as this from its budget is another budget
OUTSIDE = {1: "beyond the ladder", -1: "below the ladder"}


class ExchangeRate(Part):
    """`of` (default: arms that are no rung and hold more than the ladder's kind) read off `ladder`, arm → its budget of `source`."""

    metric: str
    split: str = "held_out"
    ladder: Annotated[dict[str, Size], Field(min_length=2)]
    of: list[str] = []
    source: str | None = None
    curve: Literal["isotonic", "log_linear"] = "isotonic"

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """A row an arm: the budget it stands at, what its other data is worth, with intervals. A bound of None is outside: `…_side` says which."""
        rungs = sorted((a for a in self.ladder if a in evidence.arms), key=lambda a: self.ladder[a])
        asked = [a for a in self._of(evidence) if a in evidence.arms]
        if len(rungs) < 2 or not asked or unlike(evidence, self.metric, [*rungs, *asked]):
            return []
        found = paired(evidence, [*rungs, *asked], self.metric, self.split)
        if found is None:
            return []
        drawn, sign = resample(found.arms, found.transform), measure(self.metric).sign or 1
        budgets, k = np.array([float(self.ladder[a]) for a in rungs]), len(rungs)
        fit = isotonic if self.curve == "isotonic" else log_linear
        scores = sign * np.concatenate([drawn.point[:, None], drawn.joint()], axis=1)  # [arms, 1 + draws], the point first
        curves, out = fit(np.log(budgets), scores[:k]), []
        for i, arm in enumerate(asked):
            at = read_off(np.log(budgets), curves, scores[k + i])
            own, added = self._holds(evidence, arm, rungs)
            row: dict[str, Any] = {"compare": "exchange_rate", "metric": self.metric, "split": self.split, "of": arm}
            row |= {"source": self._source(evidence, rungs)}
            row |= {"curve": self.curve, "own": own, "added": added, "seeds": len(found.seeds), "n": found.n, "resampled": found.resampled}
            row["shared"] = found.shared
            row |= _said_bound("stands_at", float(at[0]), own)
            if found.resampled != NOTHING and _vary(drawn, k, k + i):
                low, high = np.quantile(at[1:], [0.025, 0.975], method="inverted_cdf")
                row |= _said_bound("low", float(low), own) | _said_bound("high", float(high), own)
                row |= {"share_beyond": float((at[1:] == np.inf).mean()), "share_below": float((at[1:] == -np.inf).mean())}
            out.append(row)
        return out

    def _of(self, evidence: Evidence) -> list[str]:
        kind = self._source(evidence, [a for a in self.ladder if a in evidence.arms])
        other = lambda a: any(n for s, n in evidence.budgets.get(a, {}).items() if s != kind)
        return self.of or [a for a in evidence.arms if a not in self.ladder and other(a)]

    def _source(self, evidence: Evidence, rungs: list[str]) -> str:
        """The kind of data that the ladder is of: the one all rungs hold most of."""
        if self.source is not None:
            return self.source
        held = [evidence.budgets.get(a, {}) for a in rungs]
        shared = [s for s in (held[0] if held else {}) if all(h.get(s) for h in held)]
        return max(shared, key=lambda s: sum(h[s] for h in held), default="")

    def _holds(self, evidence: Evidence, arm: str, rungs: list[str]) -> tuple[float, dict[str, float]]:
        """(budget of the ladder's kind that an arm holds itself, source → budget of the rest), in the YAML's units: its own figure where the card
        has it, else what is planned."""
        kind, top = self._source(evidence, rungs), rungs[-1]
        planned = evidence.budgets.get(top, {}).get(kind, 0)
        unit = self.ladder[top] / planned if planned else 0.0
        said = (evidence.card.get("recipe", {}).get("arms") or {}).get(arm, {}).get("tokens") or {}
        held = {s: _said(said.get(s), n * unit) for s, n in evidence.budgets.get(arm, {}).items() if n}
        return held.pop(kind, 0.0), held

    def answers(self, evidence: Evidence) -> list[str]:
        """ "80B text is worth 12B vqa (95 %: 3B … beyond the ladder)." """
        return [f"{measure(self.metric).name}{part(self.split)} — {_sentence(r)}" for r in self.rows(evidence)]

    def section(self, evidence: Evidence) -> Markup | None:
        """The table of exchange rates."""
        rows = self.rows(evidence)
        barred = unlike(evidence, self.metric, [*self.ladder, *self.of])
        if not rows:
            return block(f"Exchange rate: {measure(self.metric).name}", [tag("p", barred, class_="bad")]) if barred else None
        kind = rows[0]["source"] or "the ladder's data"
        cells = [[r["of"], _added(r), f"{size(r['own'])} {kind}", _bound(r, "stands_at", False), _bound(r, "stands_at", True),
                  _range(r)] for r in rows]  # fmt: skip
        header = ["arm", "adds", "to", f"scores as much as {kind} alone of", "so what it adds is worth", "95 % interval"]
        how = {
            "isotonic": "the closest curve that never falls, straight in log budget between rungs; nothing is said outside the ladder",
            "log_linear": "a straight line in log budget, wrong where the curve saturates",
        }[self.curve]
        rungs = ", ".join(f"{a} ({size(float(b))})" for a, b in self.ladder.items() if a in evidence.arms)
        note = f"Ladder: {rungs}. Curve: {how}. {said_resampled(r['resampled'] for r in rows)} The curve is redrawn in every draw.{shared_said(rows)}"
        made = table(header, cells, f"{title(evidence, self.metric, self.split)}: what data is worth in {kind}")
        gone = missing(evidence, [*self.ladder, *self.of])
        return block(f"Exchange rate: {measure(self.metric).name}{part(self.split)}", [made, tag("p", note, class_="caption")], gone)


def isotonic(x: Floats, y: Floats) -> Floats:
    """The non-decreasing rows nearest to y [rungs, draws] in squares, by max-min of means (Robertson, Wright & Dykstra 1988)."""
    k, total = len(x), np.concatenate([np.zeros((1, y.shape[1])), np.cumsum(y, axis=0)])
    means = lambda i, j: (total[j + 1] - total[i]) / (j + 1 - i)
    return np.stack([np.max([np.min([means(i, j) for j in range(at, k)], axis=0) for i in range(at + 1)], axis=0) for at in range(k)])


def log_linear(x: Floats, y: Floats) -> Floats:
    """The least-squares lines through y [rungs, draws], read at the rungs."""
    centred = x - x.mean()
    return np.asarray(y.mean(axis=0) + centred[:, None] * (centred @ y / (centred @ centred)))


def read_off(x: Floats, curves: Floats, score: Floats) -> Floats:
    """The least budget at which each curve [rungs, draws] over log budgets x reaches its score [draws]; ∞ beyond the last rung, −∞ below."""
    out = np.where(score > curves[-1], np.inf, -np.inf)
    inside = (score >= curves[0]) & (score <= curves[-1])
    at = np.minimum((curves < score).sum(axis=0), len(x) - 1)  # the first rung that reaches it, where curves never fall
    low, columns = np.maximum(at - 1, 0), np.arange(curves.shape[1])
    rise = curves[at, columns] - curves[low, columns]
    share = np.where(rise > 0, (score - curves[low, columns]) / np.where(rise > 0, rise, 1), 0.0)
    return np.where(inside, np.exp(x[low] + np.clip(share, 0, 1) * (x[at] - x[low])), out)


def size(n: float) -> str:
    """A budget as the YAML writes it."""
    for one, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(n) >= one:
            return f"{n / one:.3g}{unit}"
    return f"{n:.3g}"


def _said(said: Any, planned: float) -> float:
    """The YAML's figure, which a plan fills up to a part of a sequence; what is planned where that is not what the YAML's figure came to."""
    return float(said) if isinstance(said, int | float) and math.isclose(said, planned, rel_tol=FILLED) else planned


def _vary(drawn: Draws, rungs: int, arm: int) -> bool:
    """Whether the arm and some rung are known to vary otherwise than together; else each draw stands at the same budget, known or not."""
    one = np.eye(len(drawn.point))
    return any(drawn.varies(one[arm] - one[i]) for i in range(rungs))


def _said_bound(name: str, at: float, own: float) -> dict[str, Any]:
    side = int(math.copysign(1, at)) if math.isinf(at) else 0
    return {name: None if side else at, f"{name}_worth": None if side else at - own, f"{name}_side": side}


def _bound(row: dict[str, Any], name: str, worth: bool) -> str:
    side = row[f"{name}_side"]
    return OUTSIDE[side] if side else size(row[f"{name}_worth" if worth else name])


def _range(row: dict[str, Any]) -> str | None:
    if "low_side" not in row:
        return None
    if row["low_side"] < 0 < row["high_side"]:
        return "anything, the interval leaves the ladder at both ends"
    return f"{_bound(row, 'low', True)} … {_bound(row, 'high', True)}"


def _added(row: dict[str, Any]) -> str:
    return " + ".join(f"{size(n)} {s}" for s, n in row["added"].items()) or "nothing"


def _sentence(row: dict[str, Any]) -> str:
    kind = row["source"] or "the ladder's data"
    bounds = f" (95 %: {_range(row)})" if "low_side" in row else ""
    if row["stands_at_side"]:
        return f"{row['of']}: what {_added(row)} is worth in {kind} lies {OUTSIDE[row['stands_at_side']]}{bounds}."
    return f"{_added(row)} is worth {_bound(row, 'stands_at', True)} of {kind}{bounds}."
