"""Lines over what a sweep varies, the paper's Figures 15 to 17: granularity, number of experts, width, a budget.

    report: [{lines: {metric: text_perplexity, x: experts.granularity}}]
            [{lines: {metric: [text_perplexity, flow_loss], x: experts.count, group: flow.predict}}]       one line a value of `group`

x is a source's budget, `payload`, `steps`, `parameters`, `flops`, or a key of the arms' runs (`experts.count` finds it however deep). Values that
spread over a factor of 8 or more get a logarithmic axis; words get places in the order of the arms. Arms that have no such key (a dense model in a
sweep of experts) are dashed lines across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.report.drawing import WIDEST, draw, even_ticks, figure, label_ends, legend, log_axis, look, number, panels, ragged, reference, short
from trainer.report.evidence import Evidence
from trainer.report.figures._config import config, levels
from trainer.report.figures._series import Figure, Point, better_said, series, shift_of, value_axis, values_table, where_of, whiskers_said
from trainer.report.markup import Markup, clean, tag
from trainer.report.measured import Measured, chosen_arms, measured
from trainer.report.measures import Measure, measure

Groups = dict[str, list[Point]]
UNITS = {"payload": "payload tokens", "steps": "optimiser steps", "parameters": "parameters in all", "flops": "training FLOPs"}
LOG = 8.0


class Lines(Figure):
    """metric: one or several, a panel each. x, group: keys. arms: which. name: what stands at the x axis, where the key says too little."""

    split: str = "held_out"
    x: str
    group: str | None = None
    name: str | None = None

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when no arm that has the key was measured."""
        places = self.places(evidence)
        found = {m: both for m in self.metrics if (both := self.of(evidence, m, places))[0]}
        if not found:
            return None
        lines = max(len(without) for _, without in found.values())
        svg = draw(lambda f: _draw(f, self, evidence, found, places), width=min(WIDEST, 3.55 * len(found)), height=2.9 + 0.17 * lines,
                   label=self._label(found, places), prefix=self.prefix)  # fmt: skip
        every = [p for groups, without in found.values() for points in [*groups.values(), without] for p in points]
        better = better_said(found)
        caption = f"Means over seeds by {self.said}. {whiskers_said(p[2] for p in every)} {better}"
        if any(without for _, without in found.values()):
            caption += f" Dashed across: arms without {self.said}."
        rows: list[tuple[Sequence[Any], Measure, Measured | None]] = []
        for m, (groups, without) in found.items():
            rows += [((p[1], group, self._tick(evidence, p[1])), measure(m), p[2]) for group, points in groups.items() for p in points]
            rows += [((p[1], None, None), measure(m), p[2]) for p in without]
        title = self.title or f"By {self.said}"
        return tag("section", tag("h2", title), figure(svg, caption), values_table(evidence, ["arm", self.group or "line", self.said], rows))

    @property
    def said(self) -> str:
        """The key in words."""
        return clean(self.name or UNITS.get(self.x) or self.x.rpartition(".")[2].replace("_", " "))

    def places(self, evidence: Evidence) -> dict[str, float]:
        """Arm → where it stands on the x axis: its number, or the rank of its word; arms without the key are left out."""
        said = {a: v for a in chosen_arms(evidence, self.arms) if (v := config(evidence, a, self.x)) is not None}
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in said.values()):
            same = {x: level[0] for level in levels(map(float, said.values())) for x in level}
            return {a: same[float(v)] for a, v in said.items()}
        order = list(dict.fromkeys(map(str, said.values())))
        return {a: float(order.index(str(v))) for a, v in said.items()}

    def of(self, evidence: Evidence, metric: str, places: dict[str, float]) -> tuple[Groups, list[Point]]:
        """(points by line, points of arms without the key)."""
        groups: Groups = {}
        without: list[Point] = []
        for arm in chosen_arms(evidence, self.arms):
            found = measured(evidence, arm, metric, self.split)
            if found is None:
                continue
            if arm not in places:
                without.append((0.0, arm, found))
                continue
            line = "" if self.group is None else str(config(evidence, arm, self.group))
            groups.setdefault(line, []).append((places[arm], arm, found))
        return {g: sorted(points, key=lambda p: p[:2]) for g, points in groups.items()}, without

    def _tick(self, evidence: Evidence, arm: str) -> str:
        value = config(evidence, arm, self.x)
        return (short if value >= 1e4 else number)(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)

    def _label(self, found: dict[str, tuple[Groups, list[Point]]], places: dict[str, float]) -> str:
        metric, (groups, _) = next(iter(found.items()))
        said = measure(metric).said
        return f"{measure(metric).label} by {self.said}: " + ", ".join(f"{p[1]} {said(p[2].mean)}" for ps in groups.values() for p in ps)


def _draw(fig: Any, part: Lines, evidence: Evidence, found: dict[str, tuple[Groups, list[Point]]], places: dict[str, float]) -> None:
    made = panels(fig, [""] * len(found), len(found))
    named = []
    order = list(dict.fromkeys(g for groups, _ in found.values() for g in groups))
    for panel, (metric, (groups, without)) in zip(made, found.items(), strict=True):
        said = measure(metric)
        value_axis(panel, "y", said, where_of(part.split), [p[2] for points in [*groups.values(), without] for p in points])
        for i, (_, arm, m) in enumerate(without):
            reference(panel, said.factor * m.mean, arm, i, upright=False)
        for group, points in groups.items():
            series(panel, points, order.index(group), said, shift=shift_of(order.index(group), len(order)))
        panel.margins(x=0.1)
        _x_axis(panel, part, evidence, places)
        if part.group is not None:
            ends = [(ps[-1][0], said.factor * ps[-1][2].mean, g, look(order.index(g))["color"]) for g, ps in groups.items()]
            named.append((panel, ends))
    legend(fig, made, None, 1)
    for panel, ends in named:
        label_ends(panel, ends, str(part.group).rpartition(".")[2].replace("_", " "))


def _x_axis(panel: Any, part: Lines, evidence: Evidence, places: dict[str, float]) -> None:
    values = sorted(set(places.values()))
    label = part.said if part.x not in evidence.budgets.get(next(iter(places)), {}) else f"budget of {clean(part.x)}, payload tokens"
    words = {x: part._tick(evidence, a) for a, x in places.items()}
    numeric = all(isinstance(config(evidence, a, part.x), int | float) for a in places)
    if numeric and values[0] > 0 and values[-1] >= LOG * values[0]:
        log_axis(panel, "x", label, values, number)
        return
    panel.set_xlabel(label)
    ticks = even_ticks(values) if numeric else values
    panel.set_xticks(ticks, [words[v] for v in ticks] if numeric else ragged([words[v] for v in ticks], 10))
