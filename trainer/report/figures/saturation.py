"""A saturation curve, the paper's Figure 13: how large a share of one source is enough, on a logarithmic axis.

    report: [{saturation: {metric: planning.ate, x: action}}]

x is the source's share of an arm's payload tokens. The share of saturation is the smallest whose 95 % interval holds the best arm's mean (or passes
it): a larger share has not been shown to do better. An arm with none of the source stands as a dashed line. With few seeds intervals are wide and
this share comes out small; the caption says so where it matters.
"""

from __future__ import annotations

from typing import Any

from trainer.report.drawing import INK, SMALL, WIDEST, draw, figure, legend, log_axis, panels, reference
from trainer.report.evidence import Evidence
from trainer.report.figures._config import config, levels
from trainer.report.figures._series import Figure, Point, better_first, better_said, series, value_axis, values_table, where_of, whiskers_said
from trainer.report.markup import Markup, clean, tag
from trainer.report.measured import NOTHING, Measured, chosen_arms, measured
from trainer.report.measures import Measure, measure


class Saturation(Figure):
    """metric: one or several, a panel each. x: the source whose share arms differ in. arms: which; by default all."""

    split: str = "held_out"
    x: str

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when no arm with a share of the source was measured."""
        found = {m: points for m in self.metrics if (points := self.of(evidence, m)) and points[-1][0] > 0}
        if not found:
            return None
        svg = draw(lambda f: _draw(f, self, found), width=min(WIDEST, 3.55 * len(found)), height=2.8, label=self._label(found),
                   prefix=self.prefix)  # fmt: skip
        said = [self._said(m, points) for m, points in found.items()]
        better = better_said(found)
        caption = f"Share of {clean(self.x)} in each arm's payload tokens. {whiskers_said(p[2] for ps in found.values() for p in ps)} {better}"
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

    def _said(self, metric: str, points: list[Point]) -> str:
        name = measure(metric).name.capitalize() if measure(metric).name[1:].islower() else measure(metric).name
        best, enough = saturated(measure(metric), points)
        at = share(best[0])
        if enough is None:
            return f"{name} is best at {at} {self.x}; with one seed and no items nothing says from which share on it is as good."
        if enough[0] == best[0] == max(p[0] for p in points):
            return f"{name} is best at the largest share, {at}, and no smaller share's interval reaches it: not saturated here."
        return f"{name}: from {share(enough[0])} {self.x} on, an arm's interval holds the best arm's mean (best: {at}, {best[1]})."

    def _label(self, found: dict[str, list[Point]]) -> str:
        metric, points = next(iter(found.items()))
        return f"{measure(metric).label} by share of {self.x}: " + ", ".join(f"{share(p[0])} {measure(metric).said(p[2].mean)}" for p in points)


def share(value: float, _: Any = None) -> str:
    """A share as 0.1 %, 1 %, 25 %."""
    return f"{100 * value:.2g} %" if value < 0.995 else "100 %"


def saturated(measure: Measure, points: list[Point]) -> tuple[Point, Point | None]:
    """(the best arm, the arm of the smallest share above nothing whose interval reaches the best's mean); None for it without intervals."""
    some = [p for p in points if p[0] > 0]
    best = better_first(measure, some)[0]
    if all(p[2].resampled == NOTHING for p in some):
        return best, None
    return best, next(p for p in some if p is best or _reaches(measure, p[2], best[2].mean))


def _reaches(measure: Measure, found: Measured, best: float) -> bool:
    return found.high >= best if measure.better == "higher" else found.low <= best


def _draw(fig: Any, part: Saturation, found: dict[str, list[Point]]) -> None:
    made = panels(fig, [""] * len(found), len(found))
    for panel, (metric, points) in zip(made, found.items(), strict=True):
        said, some = measure(metric), [p for p in points if p[0] > 0]
        value_axis(panel, "y", said, where_of(part.split), [p[2] for p in points])
        for p in points:
            if p[0] == 0:
                reference(panel, said.factor * p[2].mean, f"no {part.x} ({p[1]})", upright=False)
        series(panel, some, 0, said)
        _, enough = saturated(said, points)
        if enough is not None:
            at = said.factor * enough[2].mean
            panel.plot([enough[0]], [at], "o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2, zorder=6)
            panel.axvline(enough[0], color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            panel.set_title(f"as good as the best from {share(enough[0])}", fontsize=SMALL)
        panel.margins(x=0.12)
        log_axis(panel, "x", f"share of {clean(part.x)} in payload tokens, %", [level[0] for level in levels(p[0] for p in some)], _percent)
    legend(fig, made, None, 1)


def _percent(value: float) -> str:
    return f"{100 * value:.2g}" if value < 0.995 else "100"
