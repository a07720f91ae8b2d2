"""A law of the losses over mixtures, from the arms, and the mixture to try next.

    compare: [{mixing_law: {losses: [{metric: text_perplexity}, {metric: flow_loss, weight: 3}], bounds: {vqa: [5%, 30%]}}}]

Every loss has a law of its own over tokens by source (trainer/scaling/mixing.py); perplexities enter as nats, measures of which more is better with
the other sign (shares as 1 - share). The next mixture minimises the sum of losses, each over its spread between arms and times its weight, within the
mixtures that the arms span, unless `bounds` say where else to look: then the table says whether the answer lies outside, where a law extrapolates.
Losses whose law predicts no better than the mean of the arms have no say; where all are such, nothing is proposed. Sources that no arm trains on are
left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from pipelines.format.document import Document, Part, Percent, Size
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measures import measure
from trainer.scaling import mixing
from trainer.scaling.draws import Floats
from trainer.scaling.next_mixture import Proposal, propose

NO_LAW = "no law predicts an arm left out better than the mean of the others does"


class Loss(Document):
    """One loss, and its weight in the sum beside the others', each over its spread between arms. RecipeError: a metric neither way of which is
    better."""

    metric: str
    split: str = "held_out"
    weight: float = Field(1.0, ge=0)

    @field_validator("metric")
    @classmethod
    def _better_somewhere(cls, metric: str) -> str:
        if not measure(metric).sign:
            raise ValueError(f"neither more nor less of {metric!r} is better, so no mixture can be sought by it")
        return metric

    @property
    def name(self) -> str:
        """As the tables call it."""
        return self.metric if self.split == "held_out" else f"{self.metric} {self.split}"

    def of(self, value: float) -> float:
        """The loss of a row's value."""
        if self.metric.partition(".")[0] == "text_perplexity":
            return math.log(value)
        said = measure(self.metric)
        if said.sign < 0:
            return value
        return 1 - value if said.unit == "%" else -value


@dataclass(frozen=True, slots=True)
class Found:
    """x [arms, sources]: tokens over `unit`, the arms' mean total; losses [arms, laws] called `names`; total: tokens of the next mixture, which is
    None where no law predicts."""

    sources: list[str]
    names: list[str]
    arms: list[str]
    x: Floats
    losses: Floats
    laws: list[mixing.MixingLaw]
    unit: float
    total: float
    next: Proposal | None


class MixingLaw(Part):
    """losses: what is predicted. form: null lets cross-validation choose for each. bounds: least and most share by source, to search a box instead of
    the arms' hull. total: payload tokens of the next mixture (null: the largest arm's)."""

    losses: list[Loss] = [Loss(metric="text_perplexity"), Loss(metric="flow_loss")]
    form: mixing.Form | None = None
    bounds: dict[str, tuple[Percent, Percent]] | None = None
    total: Size | None = Field(None, ge=1)
    draws: int = Field(100, ge=0)
    key: int = 0

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """A row a loss (form, errors, worth by source), then the proposal; empty where the arms are too few."""
        try:
            return rows(self._found(evidence))
        except ValueError:
            return []

    def answers(self, evidence: Evidence) -> list[str]:
        """The next mixture, in a sentence; none without a law."""
        try:
            found = self._found(evidence)
        except ValueError:
            return []
        if found.next is None:
            return [f"No next mixture: {NO_LAW}."]
        shares = ", ".join(f"{s} {100 * share:.0f} %" for s, share in zip(found.sources, found.next.shares, strict=True))
        if _is_the_arm(found):
            return [f"The next mixture to try has the shares of {found.arms[found.next.arm]}: {shares}. No other is predicted to be better."]
        return [f"The next mixture to try: {shares}; predicted gain in weighted loss over {_against(found)}: {found.next.gain}."]

    def section(self, evidence: Evidence) -> Markup | None:
        """The tables, or why there is no law."""
        title = tag("h2", "A law over mixtures")
        try:
            return tag("section", title, *tables(self._found(evidence)), id="mixing-law")
        except ValueError as e:
            return tag("section", title, tag("p", f"No law: {e}.", class_="weak"), id="mixing-law")

    def _found(self, evidence: Evidence) -> Found:
        """The laws and the proposal; ValueError says why there are none."""
        tokens = {a: _tokens(evidence, a) for a in evidence.arms}
        sources = [s for s in dict.fromkeys(s for t in tokens.values() for s in t) if any(t.get(s, 0) for t in tokens.values())]
        rows, losses, arms = [], [], []
        for arm in evidence.arms:
            means = [evidence.mean(arm, loss.metric, loss.split) for loss in self.losses]
            if all(m is not None for m in means) and any(tokens[arm].values()):
                arms.append(arm)
                rows.append([tokens[arm].get(s, 0.0) for s in sources])
                losses.append([loss.of(m) for loss, m in zip(self.losses, means, strict=True) if m is not None])
        if not arms:
            raise ValueError("no arm has all of " + ", ".join(loss.name for loss in self.losses))
        weights = {loss.name: loss.weight for loss in self.losses}
        names = [loss.name for loss in self.losses]
        return fitted(sources, names, arms, np.array(rows), np.array(losses), self.form, weights, self.bounds, self.total, self.draws, self.key)


def fitted(
    sources: list[str], names: list[str], arms: list[str], tokens: Floats, losses: Floats, form: mixing.Form | None = None,
    weights: dict[str, float] | None = None, bounds: dict[str, tuple[float, float]] | None = None, total: float | None = None, draws: int = 100,
    key: int = 0,
) -> Found:  # fmt: skip
    """Laws of losses [arms, names] over tokens [arms, sources], and the next mixture. weights: of losses over their spread between arms, 1 where not
    named. ValueError: too few arms, bounds of an unknown source."""
    unit = float(tokens.sum(1).mean())
    x = tokens / unit
    for name in bounds or ():
        if name not in sources:
            raise ValueError(f"bounds: no arm trains on {name!r}; known: {', '.join(sources)}")
    box = None if bounds is None else np.array([bounds.get(s, (0.0, 1.0)) for s in sources])
    laws = [mixing.fit(x, losses[:, i], form, key=key) for i in range(losses.shape[1])]
    weigh = [(weights or {}).get(name, 1.0) / max(float(losses[:, i].std()), 1e-12) for i, name in enumerate(names)]
    weigh = [w if law.error < law.null else 0.0 for w, law in zip(weigh, laws, strict=True)]
    whole = float(tokens.sum(1).max()) if total is None else float(total)
    asked = propose(laws, x, losses, weigh, whole / unit, box, draws=draws, key=key) if any(weigh) else None
    return Found(sources, names, arms, x, losses, laws, unit, whole, asked)


def rows(found: Found) -> list[dict[str, Any]]:
    """The laws and the proposal as plain values."""
    out: list[dict[str, Any]] = []
    known = lambda v: v if math.isfinite(v) else None
    for name, law in zip(found.names, found.laws, strict=True):
        worth = dict(zip(found.sources, (float(w) for w in law.worth), strict=True))
        errors = {"error": law.error, "null": law.null, "rank": known(law.rank)}
        out.append({"loss": name, "form": law.form, **errors, "worth": worth, "parameters": [float(p) for p in law.parameters]})
    if (p := found.next) is None:
        return [*out, {"next": None, "why": NO_LAW}]
    shares = dict(zip(found.sources, (float(s) for s in p.shares), strict=True))
    gain = {k: known(v) for k, v in (("value", p.gain.value), ("low", p.gain.low), ("high", p.gain.high))}
    return [*out, {"next": shares, "best_arm": found.arms[p.arm], "gain": gain, "chance": known(p.chance), "inside": p.inside, "trained": p.trained}]


def tables(found: Found) -> list[Markup]:
    """The laws, a warning where one says nothing, and the next mixture beside the best arm's."""
    body = []
    for name, law in zip(found.names, found.laws, strict=True):
        errors = [f"{law.error:.3g}", f"{law.null:.3g}", f"{law.rank:.2f}"]
        body.append([name, law.form, *errors, *(f"{w:.2g}" for w in law.worth)])
    caption = (
        f"Laws over {len(found.arms)} arms. Error: cross-validated over arms, beside that of predicting the mean; rank: Spearman correlation of "
        "cross-validated predictions. By source: what a token of it counts next to the best source's, for that loss."
    )
    laws = table(["loss", "form", "error", "of the mean", "rank", *found.sources], body, caption)
    useless = [name for name, law in zip(found.names, found.laws, strict=True) if not law.error < law.null]
    warned = f"No better than predicting the mean: {', '.join(useless)}. Such a law says nothing, and has no weight in the next mixture."
    said = [laws, *([tag("p", warned, class_="bad")] if useless else [])]
    if (p := found.next) is None:
        return [*said, tag("p", f"No next mixture: {NO_LAW}.", class_="weak")]
    best = found.x[p.arm]
    chance = f", and resampled arms agree in {100 * p.chance:.0f} %" if math.isfinite(p.chance) else ""
    where = "inside the mixtures that the arms span" if p.inside else "outside the mixtures that the arms span: an extrapolation"
    gain = "the arms' laws predict no better one" if _is_the_arm(found) else f"weighted loss less than of {_against(found)} by {p.gain}{chance}"
    words = f"The next mixture, at {found.total:.3g} tokens, {where}: {gain}."
    shares = [["next", *(f"{100 * s:.1f} %" for s in p.shares)], [found.arms[p.arm], *(f"{100 * s:.1f} %" for s in best / best.sum())]]
    return [*said, table(["mixture", *found.sources], shares, words)]


def _is_the_arm(found: Found) -> bool:
    p = found.next
    return p is not None and bool(np.allclose(p.shares, found.x[p.arm] / found.x[p.arm].sum(), atol=1e-3))


def _against(found: Found) -> str:
    """The arm that a proposal is compared with, in words."""
    p = found.next
    assert p is not None
    arm = found.arms[p.arm]
    return f"{arm}, the best arm of as many tokens" if p.trained else f"the shares of {arm} at as many tokens, which no arm read"


def _tokens(evidence: Evidence, arm: str) -> dict[str, float]:
    """Payload tokens by source that an arm read, mean over seeds; planned where no run says."""
    runs = [r for s in evidence.seeds if (r := evidence.runs.get((arm, s))) is not None]
    if not runs:
        return {s: float(n) for s, n in evidence.budgets.get(arm, {}).items()}
    names = dict.fromkeys(s for r in runs for s in r.tokens)
    return {s: sum(r.tokens.get(s, {}).get("payload", 0) for r in runs) / len(runs) for s in names}
