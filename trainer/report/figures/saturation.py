"""A saturation curve, the paper's Figure 13: how large a share of one source is enough, on a logarithmic axis.

    report: [{saturation: {metric: planning.ate, x: action, baselines: [uninformed, simulator]}}]

x is the source's share of an arm's payload tokens. The share of saturation is the smallest from which up to the best arm's none is told apart from
it: p of the difference, paired by seed and item and corrected by Holm for all arms held against the best, is 5 % or more. Intervals of two means
may overlap where the difference is certain, since starts and items are shared, so they do not decide. The best arm is chosen by the same data, and
few seeds and items tell little apart and make this share small: the difference that may hide there stands beside it, with its 95 % interval. An arm
with none of the source is a dashed line, as are control rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trainer.report.drawing import INK, SMALL, WIDEST, draw, figure, legend, log_axis, panels, reference
from trainer.report.evidence import Evidence
from trainer.report.figures._config import config, levels
from trainer.report.figures._series import Figure, Point, better_first, better_said, series, value_axis, values_table, where_of, whiskers_said
from trainer.report.markup import Markup, clean, tag
from trainer.report.measured import NOTHING, chosen_arms, control, measured, paired
from trainer.report.measures import CONTROLS, measure
from trainer.report.resampling import contrast, resample
from trainer.report.statistics import holm


class Saturation(Figure):
    """metric: one or several, a panel each. x: the source whose share arms differ in. baselines: names of control rows, averaged over arms. arms:
    which; by default all."""

    split: str = "held_out"
    x: str
    baselines: list[str] = []

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when no arm with a share of the source was measured."""
        found = {m: points for m in self.metrics if (points := self.of(evidence, m)) and points[-1][0] > 0}
        if not found:
            return None
        enough = {m: saturated(evidence, m, self.split, points) for m, points in found.items()}
        svg = draw(lambda f: _draw(f, self, evidence, found, enough), width=min(WIDEST, 3.55 * len(found)), height=2.8, label=self._label(found),
                   prefix=self.prefix)  # fmt: skip
        said = [self._said(m, points, enough[m]) for m, points in found.items()]
        better = better_said(found)
        caption = f"Share of {clean(self.x)} in each arm's payload tokens. {whiskers_said(p[2] for ps in found.values() for p in ps)} {better} "
        caption += "Told apart: by the difference to the best arm of these data, paired by seed and item; Holm's p over the arms below 5 %."
        rows = [((p[1], share(p[0])), measure(m), p[2]) for m, points in found.items() for p in points]
        title = tag("h2", self.title or f"How much {self.x} is enough")
        lead = [tag("p", s) for s in said]
        return tag("section", title, *lead, figure(svg, caption), values_table(evidence, ["arm", f"share of {self.x}"], rows))

    def of(self, evidence: Evidence, metric: str) -> list[Point]:
        """(share, arm, what it has), by share."""
        out: list[Point] = []
        for arm in chosen_arms(evidence, self.arms):
            whole = sum(evidence.budgets.get(arm, {}).values())
            if whole and (found := measured(evidence, arm, metric, self.split)) is not None:
                out.append((float(config(evidence, arm, self.x) or 0) / whole, arm, found))
        return sorted(out, key=lambda p: p[:2])

    def _said(self, metric: str, points: list[Point], enough: Enough) -> str:
        of = measure(metric)
        name = of.name.capitalize() if of.name[1:].islower() else of.name
        at, best = f"{share(enough.best[0])} {self.x}", enough.best[1]
        if enough.first is None:
            return f"{name} is best at {at}; nothing says from which share on it is as good: there are no items, and seeds do not differ."
        larger = f"; larger shares that are worse: {', '.join(enough.beyond)}" if enough.beyond else ""
        goes_on = any(p[0] > enough.best[0] for p in points)
        if enough.first is enough.best:
            told = "every smaller share is worse" if any(0 < p[0] < enough.best[0] for p in points) else "there is no smaller share"
            return f"{name} is best at {at} ({best}), and {told}{larger}{'' if goes_on else ': not saturated here'}."
        unit = of.points or of.unit
        gap = f"{of.signed(enough.gap)}{' ' + unit if unit else ''} ({of.signed(enough.low)} … {of.signed(enough.high)})"
        upto = f"{name}: from {share(enough.first[0])} {self.x} up to the best ({share(enough.best[0])}, {best}) no share is told apart from it"
        return f"{upto}{larger}. {enough.first[1]} differs from the best by {gap}."

    def _label(self, found: dict[str, list[Point]]) -> str:
        metric, points = next(iter(found.items()))
        return f"{measure(metric).label} by share of {self.x}: " + ", ".join(f"{share(p[0])} {measure(metric).said(p[2].mean)}" for p in points)


def share(value: float, _: Any = None) -> str:
    """A share as 0.1 %, 1 %, 25 %."""
    return f"{100 * value:.2g} %" if value < 0.995 else "100 %"


class Enough(NamedTuple):
    """The best arm; the arm of the smallest share from which up to the best's none is told apart (None where nothing could be); by how much that one
    differs from the best, with the interval; and arms of larger shares than the best's that are worse."""

    best: Point
    first: Point | None
    gap: float = 0.0
    low: float = 0.0
    high: float = 0.0
    beyond: tuple[str, ...] = ()


def saturated(evidence: Evidence, metric: str, split: str, points: list[Point]) -> Enough:
    """From which share on arms are as good as the best, as far as can be told. Arms without a common seed count as worse."""
    some = sorted((p for p in points if p[0] > 0), key=lambda p: p[0])
    best = better_first(measure(metric), some)[0]
    if all(p[2].resampled == NOTHING for p in some):
        return Enough(best, None)
    gaps = {p[1]: _gap(evidence, metric, split, p[1], best[1]) for p in some if p is not best}
    known = {arm: gap for arm, gap in gaps.items() if gap is not None}
    if any(gap.low != gap.low for gap in known.values()):
        return Enough(best, None)
    adjusted = dict(zip(known, holm([gap.p for gap in known.values()]), strict=True))
    sign = -1 if measure(metric).better == "higher" else 1
    worse = [p for p in some if p is not best and (gaps[p[1]] is None or (adjusted[p[1]] < 0.05 and sign * known[p[1]].mean > 0))]
    below = max((p[0] for p in worse if p[0] < best[0]), default=0.0)
    first = next(p for p in some if p[0] > below and p not in worse)
    gap = known.get(first[1], _Gap(0.0, 0.0, 0.0, 1.0))
    return Enough(best, first, gap.mean, gap.low, gap.high, tuple(p[1] for p in worse if p[0] > best[0]))


class _Gap(NamedTuple):
    """The difference of an arm to the best, its 95 % interval and its p."""

    mean: float
    low: float
    high: float
    p: float


def _gap(evidence: Evidence, metric: str, split: str, arm: str, best: str) -> _Gap | None:
    """Paired; None where the two share no seed or nothing can be resampled, NaN bounds where seeds differ exactly equally and there are no items."""
    found = paired(evidence, [arm, best], metric, split)
    if found is None or found.resampled == NOTHING:
        return None
    drawn = contrast(resample(found.arms, found.transform), [1, -1])
    return _Gap(float((found.values(0) - found.values(1)).mean()), *drawn.interval(), drawn.p())


def _draw(fig: Any, part: Saturation, evidence: Evidence, found: dict[str, list[Point]], enough: dict[str, Enough]) -> None:
    made = panels(fig, [""] * len(found), len(found))
    for panel, (metric, points) in zip(made, found.items(), strict=True):
        said, some = measure(metric), [p for p in points if p[0] > 0]
        lines = {n: v for n in part.baselines if (v := _control(evidence, metric, part.split, n, points)) is not None}
        value_axis(panel, "y", said, where_of(part.split), [p[2] for p in points], lines.values())
        for p in points:
            if p[0] == 0:
                reference(panel, said.factor * p[2].mean, f"no {part.x} ({p[1]})", upright=False)
        for i, (name, value) in enumerate(lines.items()):
            reference(panel, said.factor * value, CONTROLS.get(name, name.replace("_", " ")), i + 1, upright=False)
        series(panel, some, 0, said)
        first = enough[metric].first
        if first is not None:
            at = said.factor * first[2].mean
            panel.plot([first[0]], [at], "o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2, zorder=6)
            panel.axvline(first[0], color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            best = first is enough[metric].best
            panel.set_title(f"best at {share(first[0])}" if best else f"not told apart from the best from {share(first[0])}", fontsize=SMALL)
        panel.margins(x=0.12)
        log_axis(panel, "x", f"share of {clean(part.x)} in payload tokens, %", [level[0] for level in levels(p[0] for p in some)], _percent)
    legend(fig, made, None, 1)


def _control(evidence: Evidence, metric: str, split: str, name: str, points: list[Point]) -> float | None:
    """A control row's mean over the arms drawn."""
    values = [v for p in points if (v := control(evidence, p[1], metric, name, split)) is not None]
    return float(np.mean(values)) if values else None


def _percent(value: float) -> str:
    return f"{100 * value:.2g}" if value < 0.995 else "100"
