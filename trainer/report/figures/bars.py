"""Bars by arm, the paper's Figures 4, 5, 9 and 12: a bar an arm, a ring a seed, a whisker, dashed lines for what the bar must beat.

    report: [{bars: {metric: vqa, baselines: [constant, shuffled]}}]          control rows `vqa.constant`, `vqa.shuffled`
            [{bars: {metric: [text_perplexity, flow_loss], baselines: [text_only]}}]    a panel a metric; the line is that arm's value
            [{bars: {metric: text_perplexity, split: ["held_out:text", "set:notes"]}}]  several splits

Bars start at nothing. Where all arms lie so close that bars would all look equal (perplexities do), or too far apart for one axis from nothing,
values are points on an axis that does not start at nothing, and the caption says so. Several splits are a bar each, grouped by arm, or a panel each
where points are needed. The paper's own values, where it has the experiment, stand in a panel beside ours: another scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.drawing import (
    BASELINES,
    FAINT,
    INK,
    PHONE,
    SMALL,
    WIDEST,
    categories,
    colour,
    dots,
    draw,
    figure,
    legend,
    limits,
    number,
    reference,
    rows,
    whisker,
)
from trainer.report.evidence import Evidence
from trainer.report.figures._series import Figure, better_said, far, told, value_axis, values_table, where_of, whiskers_said
from trainer.report.markup import Markup, clean, joined, tag
from trainer.report.measured import Measured, by_seed, chosen_arms, control, measured
from trainer.report.measures import CONTROLS, Measure, measure, said_split
from trainer.report.published import Published
from trainer.report.published import of as published

CLOSE = 0.75  # smallest / largest above which bars from nothing tell nothing


class Bars(Figure):
    """metric, split: one or several. baselines: names of control rows, or of arms whose value becomes a line. arms: which, in which order."""

    split: str | list[str] = "held_out"
    baselines: list[str] = []

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when nothing of it was measured."""
        groups = grouped(evidence, self.metrics, self.splits, chosen_arms(evidence, self.arms), self.baselines)
        if not groups:
            return None
        title = self.title or ", ".join(dict.fromkeys(g.measure.name for g in groups))
        title = title[:1].upper() + title[1:]
        rows = [((a, said_split(s)), g.measure, m) for g in groups for (a, s), m in g.values.items()]
        header = ["arm", "split"]
        drawing = panelled(evidence, groups, self.prefix)
        return tag("section", tag("h2", title), drawing, values_table(evidence, header, rows))

    @property
    def splits(self) -> list[str]:
        """The splits as a list."""
        return [self.split] if isinstance(self.split, str) else self.split


class Group:
    """One panel: a metric, its splits, what each arm has of it, and its baselines as (words, value by arm)."""

    def __init__(self, evidence: Evidence, metric: str, splits: list[str], arms: list[str], baselines: list[str]) -> None:
        self.measure: Measure = measure(metric)
        self.metric, self.splits, self.arms, self.named = metric, splits, arms, False
        self.values = {(a, s): measured(evidence, a, metric, s) for a in arms for s in splits}
        self.lines: list[tuple[str, dict[tuple[str, str], float]]] = []
        for name in baselines:
            by_bar = {(a, s): v for a in arms for s in splits if (v := self._baseline(evidence, a, name, s)) is not None}
            if by_bar:
                self.lines.append((name if name in evidence.arms else CONTROLS.get(name, name.replace("_", " ")), by_bar))
        self.paper = beside(evidence, metric, splits[0], arms) if len(splits) == 1 else None

    def _baseline(self, evidence: Evidence, arm: str, name: str, split: str) -> float | None:
        if name not in evidence.arms:
            return control(evidence, arm, self.metric, name, split)
        values = by_seed(evidence, name, self.metric, split)
        return float(np.mean(list(values.values()))) if values else None

    @property
    def found(self) -> list[Measured]:
        """What was measured, in the order drawn."""
        return [m for m in self.values.values() if m is not None]

    @property
    def lined(self) -> list[float]:
        """The values of baselines."""
        return [v for _, by_bar in self.lines for v in by_bar.values()]

    @property
    def points(self) -> bool:
        """Whether values are too much alike for bars that start at nothing, or too far apart for one axis from nothing."""
        means = [m.mean for m in self.found] + self.lined
        return min(means) < 0 or far(means) or (max(means) > 0 and min(means) / max(means) > CLOSE)


def beside(evidence: Evidence, metric: str, split: str, arms: list[str]) -> Published | None:
    """The paper's table that has most of these arms (at least two), values rather than ranks."""
    found = [p for p in published(evidence, metric, split) if p.shown is None and len(set(p.values) & set(arms)) > 1]
    return max(found, key=lambda p: len(set(p.values) & set(arms)), default=None)


def grouped(evidence: Evidence, metrics: list[str], splits: list[str], arms: list[str], baselines: list[str]) -> list[Group]:
    """A group a metric of which any arm has a value; one a split where bars from nothing would hide how its arms differ."""
    out: list[Group] = []
    for metric in metrics:
        there = [s for s in splits if s in evidence.splits(metric)]
        single = [g for s in there if (g := Group(evidence, metric, [s], arms, baselines)).found]
        if len(single) > 1 and not any(g.points for g in single):
            single = [Group(evidence, metric, there, arms, baselines)]
        for group in single:
            group.named = len(single) > 1
        out += single
    if sum(g.paper is not None for g in out) > 2:  # no room: the table of the paper's values has them
        for group in out:
            group.paper = None
    return out


def panelled(evidence: Evidence, groups: list[Group], prefix: str, caption: Any = None) -> Markup:
    """The drawing of all groups side by side on one axis of arms, and its caption."""
    arms = groups[0].arms
    beside = sum(1.0 if g.paper is None else 1.55 for g in groups)
    bars = max(len(g.splits) for g in groups)
    row, names = rows(arms)
    width = min(WIDEST, max(PHONE, names + (2.0 if beside > 1 else 1.6) * beside))
    height = 0.75 + len(arms) * max(row, 0.09 + 0.17 * bars if bars > 1 else 0) + 0.17 * max(len(g.lines) for g in groups)
    svg = draw(lambda f: _draw(f, evidence, groups), width=width, height=max(height, 1.8), label=_label(groups), prefix=prefix)
    return figure(svg, joined([caption, " "]) if caption else None, *_caption(groups))


def _label(groups: list[Group]) -> str:
    said = [f"{a} {told(g.measure, m.mean)}" for g in groups[:1] for (a, _), m in g.values.items() if m is not None]
    return f"{groups[0].measure.label} by arm: " + ", ".join(said)


def _caption(groups: list[Group]) -> list[Any]:
    out = [whiskers_said(m for g in groups for m in g.found), " Bar or point: mean over seeds; rings: seeds."]
    out.append(" " + better_said(dict.fromkeys(g.metric for g in groups)))
    if any(g.points for g in groups):
        out.append(" Where there are points and no bars, the axis does not start at nothing; values far apart stand on a logarithmic one.")
    for paper in {p.source: p for g in groups if (p := g.paper) is not None}.values():
        out += [" Grey: ", paper.source, "; another scale: only the order of arms can be set beside ours."]
    return out


def _draw(fig: Any, evidence: Evidence, groups: list[Group]) -> None:
    shape = [w for g in groups for w in ([1.0] if g.paper is None else [1.0, 0.55])]
    panels = list(fig.subplots(1, len(shape), sharey=True, width_ratios=shape, squeeze=False)[0])
    y = np.arange(len(groups[0].arms))[::-1]
    at = iter(panels)
    for group in groups:
        ours = next(at)
        _group(ours, evidence, group, y)
        if group.paper is not None:
            _paper(next(at), group, y)
    categories(panels[0], groups[0].arms, y)
    panels[0].set_ylim(-0.6, len(y) - 0.4)
    legend(fig, panels, None, 1 if any(len(name) > 26 for g in groups for name, _ in g.lines) else 2)


def _group(panel: Any, evidence: Evidence, group: Group, y: Any) -> None:
    several, factor = len(group.splits) > 1, group.measure.factor
    thick = 0.68 / len(group.splits)
    where = "" if several else said_split(group.splits[0]) if group.named else where_of(group.splits[0])
    within = value_axis(panel, "x", group.measure, where, group.found, group.lined, not group.points, 24)
    place = {(a, s): float(y[i]) + (0.34 - thick * (k + 0.5)) * several for i, a in enumerate(group.arms) for k, s in enumerate(group.splits)}
    for (arm, split), found in group.values.items():
        k = group.splits.index(split)
        at = place[arm, split]
        ink = colour(k if several else evidence.arms.index(arm))
        name = clean(said_split(split)) if several else None
        if found is None:
            panel.annotate("not measured", (0, at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", va="center",
                           fontsize=SMALL, color=FAINT)  # fmt: skip
            continue
        mean = factor * found.mean
        if group.points:
            panel.plot([mean], [at], marker="|", markersize=9, markeredgewidth=2.4, color=ink, zorder=3, label=name, linestyle="none")
        else:
            panel.barh(at, mean, height=thick * (0.9 if several else 1), color=ink, alpha=0.5, zorder=2, label=name)
        whisker(panel, at, factor * found.low, factor * found.high, across=True, cap=2.5, within=within)
        dots(panel, [factor * v for v in found.seeds], [at] * len(found.seeds), ink)
        panel.annotate(told(group.measure, found.mean), (1, at), xycoords=("axes fraction", "data"), xytext=(7, 0), textcoords="offset points",
                       va="center", fontsize=SMALL, color=INK, annotation_clip=False)  # fmt: skip
    for i, (name, by_bar) in enumerate(group.lines):
        _line(panel, name, {place[bar]: factor * v for bar, v in by_bar.items()}, i, 0.45 if not several else 0.5 * thick)
    panel.tick_params(axis="y", length=0, pad=6)


def _line(panel: Any, name: str, at: dict[float, float], i: int, half: float) -> None:
    """One line where all bars share the baseline, else a piece a bar."""
    values = list(at.values())
    if max(values) - min(values) <= 1e-9 * max(1.0, abs(values[0])):
        reference(panel, values[0], name, i)
        return
    style = {"linestyle": BASELINES[i % len(BASELINES)], "color": INK, "linewidth": 1.2, "zorder": 3}
    panel.plot([], [], label=clean(name), **style)
    for y, x in at.items():
        panel.plot([x, x], [y - half, y + half], **style)


def _paper(panel: Any, group: Group, y: Any) -> None:
    paper = group.paper
    assert paper is not None
    known = [v for a, v in paper.values.items() if a in group.arms]
    close = paper.chance is None and min(known) > CLOSE * max(known)
    for at, arm in zip(y, group.arms, strict=True):
        value = paper.values.get(arm)
        if value is None:
            continue
        if close:
            panel.plot([value], [at], marker="|", markersize=9, markeredgewidth=2.4, color=FAINT, linestyle="none")
        else:
            panel.barh(at, value, height=0.68, color=FAINT, alpha=0.45)
        panel.annotate(number(value), (1, at), xycoords=("axes fraction", "data"), xytext=(7, 0), textcoords="offset points", va="center",
                       fontsize=SMALL, color=FAINT, annotation_clip=False)  # fmt: skip
    if paper.chance is not None:
        panel.axvline(paper.chance, linestyle="--", color=FAINT, linewidth=1)
    panel.set_xlim(limits(known, (), not close))
    panel.set_title("the paper", fontsize=SMALL, color=FAINT)
    panel.tick_params(axis="y", length=0, pad=6)
    panel.set_xlabel(_wrapped(paper.name, 15))
    _ticks(panel, 2)


def _ticks(panel: Any, most: int = 4) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(most))


def _wrapped(label: str, width: int = 24) -> str:
    from textwrap import wrap

    return "\n".join(wrap(clean(label), width))
