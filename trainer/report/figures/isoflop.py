"""IsoFLOP curves and the laws they give: per family and modality the loss over N at each budget, its parabola and its minimum; then N_opt and D_opt
over C with power laws and their intervals.

A star marks a minimum inside the ladder; a parabola without one is dashed and has no part in the laws. Points are means over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.format.document import Part
from trainer.report.drawing import PAPER, colour, draw, figure, legend
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, clean, tag
from trainer.scaling.isoflop import said
from trainer.scaling.points import Measured, by_budget, measured, planned
from trainer.scaling.powers import Frontier, Power
from trainer.scaling.sweep import Laws, laws

MARKS = ("o", "s", "^", "D")
SHORT = {"language": "loss, nats a token", "vision": "loss, squared error"}


class Isoflop(Part):
    """key: of the resamples."""

    key: int = 0

    def section(self, evidence: Evidence) -> Markup | None:
        """The panels, or nothing where the ablation is no sweep."""
        points = planned(evidence)
        runs = measured(evidence, points)
        if not runs:
            return None
        return drawn(runs, laws(runs, self.key))


def drawn(runs: list[Measured], found: Laws) -> Markup | None:
    """The section, from runs and their laws; None where no budget has sizes enough for a curve."""
    keys = [(f, m) for f in found.families for m in found.modalities if found.frontiers.get((f, m)) and found.frontiers[f, m].optima]
    if not keys:
        return None
    columns = 2 if len(keys) > 1 else 1
    rows = -(-len(keys) // columns)
    curves = draw(lambda fig: _curves(fig, runs, found, keys, rows, columns), width=4.4, height=0.75 + 2.0 * rows,
                  label="Loss over model size at each budget", prefix="isoflop")  # fmt: skip
    parts = [figure(curves, *_curves_said(found, keys))]
    lawful = {k: f for k in keys if (f := found.frontiers[k]).size is not None}
    if lawful:
        lines = draw(lambda fig: _lines(fig, lawful), width=4.4, height=2.7, label="Best size and tokens over compute", prefix="frontier")
        caption = (
            "Compute-optimal active parameters and payload tokens against training FLOPs, with power laws and their 95 % bands (runs resampled). "
            "Bands hold the exponent's interval about the middle of the budgets; beyond the budgets a law extrapolates."
        )
        parts.append(figure(lines, caption))
    return tag("section", tag("h2", "IsoFLOP curves"), *parts, id="isoflop")


def _curves_said(found: Laws, keys: list[tuple[str, str]]) -> list[Any]:
    without = [f"{clean(f)} {m} at {said(c)} ({why})" for f, m in keys for c, why in found.frontiers[f, m].missing.items()]
    start = (
        "Held-out loss (text: nats a token; images: mean squared error of the flow) over active non-embedding parameters, a line a budget of FLOPs; "
        "parabola in log N through the runs, star: its minimum inside the ladder. "
    )
    return [start, f"Without one, and not in any law: {'; '.join(without)}." if without else "Every budget has one."]


def _curves(fig: Any, runs: list[Measured], found: Laws, keys: list[tuple[str, str]], rows: int, columns: int) -> None:
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    budgets = sorted({r.budget for r in runs if r.budget is not None})
    for panel, (family, modality) in zip(panels, keys, strict=False):
        some = by_budget(runs, family, modality)
        optima = {o.budget: o for o in found.frontiers[family, modality].optima}
        for budget, (n, _, loss) in sorted(some.items()):
            i = budgets.index(budget)
            sizes = np.unique(n)
            panel.plot(sizes, [loss[n == s].mean() for s in sizes], MARKS[i % len(MARKS)], ms=3.5, color=colour(i), label=f"{_power(budget)} FLOPs")
            best = optima.get(budget)
            if best is not None:
                x = np.geomspace(*best.sizes, 80)
                panel.plot(x, best.at(x), "-" if best.reason is None else "--", lw=1.1, alpha=0.85, color=colour(i))
                if best.reason is None:
                    panel.plot([best.n], [best.loss], "*", ms=10, mec=PAPER, mew=0.5, color=colour(i), zorder=4)
        panel.set_title(f"{clean(family)}: {modality}")
        panel.set_ylabel(SHORT.get(modality, clean(modality)))
        panel.set_xlabel("N, active parameters")
        log_axis(panel.xaxis, panel)
        panel.grid(axis="y", alpha=0.35)
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    legend(fig, panels, [f"{_power(b)} FLOPs" for b in budgets], 3)


def _lines(fig: Any, lawful: dict[tuple[str, str], Frontier]) -> None:
    panels = fig.subplots(1, 2)
    names = []
    for panel, what, title in zip(panels, ("size", "tokens"), ("N_opt, active parameters", "D_opt, payload tokens"), strict=True):
        for i, ((family, modality), found) in enumerate(lawful.items()):
            law: Power = getattr(found, what)
            inside = [o for o in found.optima if o.reason is None]
            at = np.array([o.budget for o in inside])
            values = [o.n if what == "size" else o.d for o in inside]
            names.append(name := f"{clean(family)} {modality}")
            panel.plot(at, values, MARKS[i % len(MARKS)], ms=4.5, color=colour(i), label=name)
            x = np.geomspace(law.low, law.high, 40)
            line = law.at(x)
            panel.plot(x, line, "-", lw=1.2, color=colour(i))
            middle = np.exp(np.log(at).mean())
            low, high = law.exponent.low, law.exponent.high
            if np.isfinite(low):
                arms = np.stack([law.at(middle) * (x / middle) ** e for e in (low, high)])
                panel.fill_between(x, arms.min(0), arms.max(0), color=colour(i), alpha=0.15, lw=0)
        panel.set_title(title)
        panel.set_xlabel("training FLOPs")
        panel.set_yscale("log")
        log_axis(panel.xaxis, panel)
        log_axis(panel.yaxis, panel)
        panel.grid(alpha=0.3)
    legend(fig, panels, list(dict.fromkeys(names)), 2)


def log_axis(axis: Any, panel: Any) -> None:
    """A logarithmic axis of at most about six ticks, in words that need no typesetting."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    (panel.set_xscale if axis is panel.xaxis else panel.set_yscale)("log")
    low, high = axis.get_data_interval()
    decades = np.log10(high / low) if high > low > 0 else 1.0
    axis.set_major_locator(LogLocator(10, subs=(1.0,) if decades > 1.9 else (1.0, 3.0) if decades > 0.9 else (1.0, 2.0, 5.0), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=8.5)


def _short(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size <= abs(value) < 1e14:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1e4 else _power(value)


def _power(value: float) -> str:
    """6×10¹⁸."""
    digits = int(np.floor(np.log10(value) + 1e-9))
    front = value / 10.0**digits
    raised = str(digits).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{raised}" if abs(front - 1) < 1e-6 else f"{front:.3g}×10{raised}"
