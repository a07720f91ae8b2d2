"""A grid of two budgets, the paper's Figure 8: one source's budget along x, a line for each budget of another, none of either drawn apart.

    report: [{grid: {metric: flow_loss, x: text, lines: pairs}}]        does text help pictures, at each amount of pictures?

The value with none of the x source (the unimodal baseline of a line) stands left of the axis and is carried across as a dotted line of the same
colour; the name at a line's end tells how far the line has come from it. Arms with none of the `lines` source are one more line, in ink.
"""

from __future__ import annotations

from typing import Any

from trainer.report.drawing import INK, WIDEST, colour, draw, figure, label_ends, panels, short
from trainer.report.evidence import Evidence
from trainer.report.figures._config import config, levels
from trainer.report.figures._series import (
    Figure,
    Point,
    apart,
    better_said,
    series,
    shift_of,
    told,
    value_axis,
    values_table,
    where_of,
    whiskers_said,
)
from trainer.report.markup import Markup, clean, tag
from trainer.report.measured import chosen_arms, measured
from trainer.report.measures import measure

Lines = dict[float, list[Point]]  # budget of the `lines` source → points by budget of the `x` source


class Grid(Figure):
    """metric: one or several, a panel each. x, lines: names of sources. arms: which; by default all that differ in nothing but the two."""

    split: str = "held_out"
    x: str
    lines: str

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when nothing of it was measured."""
        found = {m: lines for m in self.metrics if (lines := self.of(evidence, m))}
        if not found:
            return None
        n = len(found)
        svg = draw(lambda f: _draw(f, self, found), width=min(WIDEST, max(4.9, 3.55 * n)), height=2.9, label=self._label(found),
                   prefix=self.prefix)  # fmt: skip
        rows = [((p[1], short(z), short(p[0])), measure(m), p[2]) for m, lines in found.items() for z, points in lines.items() for p in points]
        points = [p[2] for lines in found.values() for ps in lines.values() for p in ps]
        better = better_said(found)
        caption = (
            f"A line a budget of {clean(self.lines)}; along it the budget of {clean(self.x)} grows. Left, apart: none of {clean(self.x)}; dotted: "
            f"that value carried across; beside a line's name: how far its end is from it. {whiskers_said(points)} {better}"
        )
        title = self.title or f"{self.x} × {self.lines}"
        header = ["arm", f"{self.lines}, tokens", f"{self.x}, tokens"]
        return tag("section", tag("h2", title), figure(svg, caption), values_table(evidence, header, rows))

    def of(self, evidence: Evidence, metric: str) -> Lines:
        """The lines of a metric; arms of one budget within 3 % are one line."""
        arms = [a for a in chosen_arms(evidence, self.arms) if a in evidence.budgets]
        out: Lines = {}
        by_line = {a: float(config(evidence, a, self.lines) or 0) for a in arms}
        for same in levels(by_line.values()):
            for arm in arms:
                if by_line[arm] in same and (found := measured(evidence, arm, metric, self.split)) is not None:
                    out.setdefault(same[0], []).append((float(config(evidence, arm, self.x) or 0), arm, found))
        return {z: sorted(points, key=lambda p: p[0]) for z, points in out.items()}

    def _label(self, found: dict[str, Lines]) -> str:
        metric, lines = next(iter(found.items()))
        of = measure(metric)
        each = [f"{self.lines} {short(z)}: {' '.join(told(of, p[2].mean) for p in ps)}" for z, ps in lines.items()]
        return f"{measure(metric).label} by budget of {self.x}, a line a budget of {self.lines}. " + "; ".join(each)


def _draw(fig: Any, part: Grid, found: dict[str, Lines]) -> None:
    for panel, (metric, lines) in zip(panels(fig, [""] * len(found), len(found)), found.items(), strict=True):
        _panel(panel, part, metric, lines)


def _panel(panel: Any, part: Grid, metric: str, lines: Lines) -> None:
    said = measure(metric)
    budgets = levels(p[0] for points in lines.values() for p in points)
    most = budgets[-1][-1] or 1.0
    place = {x: (level[0] if level[0] > 0 else -0.16 * most) for level in budgets for x in level}
    value_axis(panel, "y", said, where_of(part.split), [p[2] for points in lines.values() for p in points])
    ends = []
    for i, (budget, points) in enumerate(lines.items()):
        ink = colour(i - (0.0 in lines)) if budget else INK
        shift = shift_of(i, len(lines))
        placed = [(place[x], arm, m) for x, arm, m in points]
        alone = [p for p, (x, _, _) in zip(placed, points, strict=True) if x == 0]
        mixed = [p for p, (x, _, _) in zip(placed, points, strict=True) if x > 0]
        for p in alone:
            series(panel, [p], i, said, ink, shift)
            panel.plot([p[0], most], [said.factor * p[2].mean] * 2, color=ink, linestyle=(0, (1, 2)), linewidth=1.1, zorder=2)
        if mixed:
            series(panel, mixed, i, said, None if budget else INK, shift)
        last = max(placed, key=lambda p: p[0])
        gain = f"  {said.factor * (last[2].mean - alone[0][2].mean):+.3g}".replace("-", "−") if alone and mixed else ""
        ends.append((last[0], said.factor * last[2].mean, (short(budget) if budget else f"no {part.lines}") + gain, ink))
    if budgets[0][0] == 0:
        apart(panel, -0.08 * most)
    panel.set_xticks([place[level[0]] for level in budgets], [short(level[0]) if level[0] else "none" for level in budgets])
    panel.set_xlabel(f"budget of {clean(part.x)}, payload tokens")
    panel.set_xlim(-0.24 * most if budgets[0][0] == 0 else None, 1.1 * most)  # whole marks, also of lines set apart
    label_ends(panel, ends, part.lines)
