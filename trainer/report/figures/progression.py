"""A cumulative progression, the paper's Figure 21: one design choice after another, each choice made among a few arms and kept.

    report:
      - progression:
          metrics: [text_perplexity, flow_loss]
          steps:
            - {name: feed-forward, arms: [shared, per_modality], chosen: per_modality}
            - {name: encoder,      arms: [vae, siglip2]}                       chosen: the best by the first metric

A row an arm, a panel a metric; the chosen arm of each step is drawn full, the others pale, and a line leads from chosen to chosen, level by level.
Beside each value stands how far it is from what was chosen a step before. An arm may stand in two steps: chosen in one, the base of the next.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pipelines.format.document import Document, Part, fingerprint
from trainer.report.drawing import FAINT, INK, SMALL, WIDEST, categories, colour, dots, draw, figure, rows, whisker
from trainer.report.evidence import Evidence
from trainer.report.figures._series import better_first, better_said, told, value_axis, values_table, where_of, whiskers_said
from trainer.report.markup import Markup, clean, tag
from trainer.report.measured import Measured, measured
from trainer.report.measures import Measure, measure

Rows = list[tuple[int, str, bool]]  # step, arm, chosen


class Step(Document):
    """One choice: its arms, and which of them was kept (by default the best by the first metric)."""

    name: str
    arms: list[str]
    chosen: str | None = None


class Progression(Part):
    """metrics: a panel each. steps: in the order the choices were made."""

    metrics: list[str]
    steps: list[Step]
    split: str = "held_out"
    title: str | None = None

    def section(self, evidence: Evidence) -> Markup | None:
        """The figure, or None when nothing of it was measured."""
        found = {(m, a): v for m in self.metrics for s in self.steps for a in s.arms if (v := measured(evidence, a, m, self.split)) is not None}
        metrics = [m for m in self.metrics if any((m, a) in found for s in self.steps for a in s.arms)]
        shown = self.rows(found)
        if not metrics or not shown:
            return None
        row, names = rows([*(a for _, a, _ in shown), *(s.name for s in self.steps)])
        height = 0.7 + row * (len(shown) + 0.9 * len({r[0] for r in shown}))
        said = [(self.steps[i].name, a, found[metrics[0], a]) for i, a, _ in shown if (metrics[0], a) in found]
        label = f"{measure(metrics[0]).label}. " + "; ".join(f"{step}: {a} {measure(metrics[0]).said(m.mean)}" for step, a, m in said)
        prefix, width = f"progression-{fingerprint(self.model_dump())[:6]}", min(WIDEST, names + 2.3 * len(metrics))
        svg = draw(lambda f: _draw(f, self, evidence, metrics, shown, found), width, height, label=label, prefix=prefix)
        better = better_said(metrics)
        caption = (
            f"One choice after another; full: kept, pale: not kept; the line leads from what was kept to what was kept next. Beside a value: its "
            f"distance from what the step before kept. {whiskers_said(found.values())} {better} The axes do not start at nothing."
        )
        cells = [((self.steps[i].name, a, "kept" if kept else ""), measure(m), found.get((m, a))) for m in metrics for i, a, kept in shown]
        title = self.title or "One choice after another"
        return tag("section", tag("h2", title), figure(svg, caption), values_table(evidence, ["step", "arm", ""], cells))

    def rows(self, found: dict[tuple[str, str], Measured]) -> Rows:
        """What stands in the figure, top to bottom: arms that were measured by any metric."""
        out: Rows = []
        for i, step in enumerate(self.steps):
            arms = [a for a in step.arms if any((m, a) in found for m in self.metrics)]
            chosen = step.chosen or self._best(arms, found)
            out += [(i, a, a == chosen) for a in arms]
        return out

    def _best(self, arms: list[str], found: dict[tuple[str, str], Measured]) -> str | None:
        points = [(0.0, a, found[self.metrics[0], a]) for a in arms if (self.metrics[0], a) in found]
        return better_first(measure(self.metrics[0]), points)[0][1] if points else None


def _draw(fig: Any, part: Progression, evidence: Evidence, metrics: list[str], rows: Rows, found: dict[tuple[str, str], Measured]) -> None:
    panels = list(fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0])
    heights, at = [], 0.0
    for n, (step, _, _) in enumerate(rows):
        at -= 1.0 if n and rows[n - 1][0] == step else 1.9  # a heading stands above the first of a step
        heights.append(at)
    for panel, metric in zip(panels, metrics, strict=True):
        _panel(
            panel,
            measure(metric),
            where_of(part.split),
            [(y, i, a, kept, found.get((metric, a))) for y, (i, a, kept) in zip(heights, rows, strict=True)],
        )
    categories(panels[0], [a for _, a, _ in rows], heights)
    for n, (step, _, _) in enumerate(rows):
        if n == 0 or rows[n - 1][0] != step:
            beside = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 0), "textcoords": "offset points", "va": "center", "ha": "right"}
            name = clean(part.steps[step].name)
            panels[0].annotate(name, (0, heights[n] + 0.85), **beside, fontsize=SMALL, fontweight="bold", color=INK, annotation_clip=False)
            for panel in panels:
                panel.axhline(heights[n] + 0.85, color=FAINT, linewidth=0.5, alpha=0.4, zorder=0)
    panels[0].set_ylim(at - 0.7, -0.6)


def _panel(panel: Any, said: Measure, where: str, rows: list[tuple[float, int, str, bool, Measured | None]]) -> None:
    path, before, last = [], None, None  # what was kept: (x, y); the value kept before this step, and in it
    step = -1
    there = [m for *_, m in rows if m is not None]
    within = value_axis(panel, "x", said, where, there, width=24)
    for y, i, _, kept, found in rows:
        if i != step:
            step, before = i, last
        if found is None:
            continue
        x, ink = said.factor * found.mean, colour(i)
        whisker(panel, y, said.factor * found.low, said.factor * found.high, across=True, color=INK if kept else FAINT, cap=2.5, within=within)
        style = {"markersize": 8, "markeredgecolor": ink, "markeredgewidth": 1.5, "markerfacecolor": ink if kept else "none"}
        panel.plot([x], [y], "o", **style, linestyle="none", zorder=4)
        if kept:
            dots(panel, [said.factor * v for v in found.seeds], [y] * len(found.seeds), ink)
            path.append((x, y))
            last = x
        gain = f" ({_signed(x - before)})" if before is not None and abs(x - before) > 0 else ""
        beside = {"xycoords": ("axes fraction", "data"), "xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": SMALL}
        panel.annotate(told(said, found.mean) + gain, (1, y), **beside, color=INK if kept else FAINT, annotation_clip=False)
    for (x0, y0), (x1, y1) in pairwise(path):
        panel.plot([x0, x0, x1], [y0, y1, y1], color=INK, linewidth=1.1, alpha=0.6, zorder=2)
    panel.tick_params(axis="y", length=0, pad=6)


def _signed(change: float) -> str:
    return f"{change:+.2g}".replace("-", "−")
