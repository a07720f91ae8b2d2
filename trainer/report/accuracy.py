"""VQA accuracy by arm, in the manner of the paper's Figure 9: a bar an arm, a dot a seed, lines for what costs nothing.

A bar is the mean over seeds, the whisker the 95 % interval over seeds × questions. Dashed: the best constant answer per question type; dotted:
the same models with images shuffled among questions; dash-dotted: somebody who knows what is in the picture but not what belongs to what. To
the right the paper's own printed values, which are another scale: other questions, a thousand times the compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report import paper
from trainer.report.drawing import FAINT, INK, colour, draw, figure, ragged
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, table, tag
from trainer.report.statistics import interval, spread

OVERALL = "held_out"
CONTROLS = {
    "vqa.constant": ("best constant answer per question type", "--"),
    "vqa.shuffled": ("images shuffled among questions", ":"),
    "vqa.attributes": ("bag of attributes: what is there, not what belongs to what", "-."),
}


def section(evidence: Evidence) -> Markup | None:
    """The headline figure and its table, or None when no question was asked."""
    if not evidence.metrics("vqa"):
        return None
    drawing = draw(lambda f: _draw(f, evidence), height=0.95 + 0.42 * len(evidence.arms), label=_label(evidence), prefix="accuracy")
    caption = joined(
        [
            "Held-out questions answered exactly, greedy decoding. Bar: mean over seeds. Dots: seeds. Whisker: 95 % interval, seeds and questions",
            " resampled. Lines: what needs no understanding of the picture. Right: ",
            paper.SOURCE,
            ", another scale and other questions, so only the order of arms can be set beside ours.",
        ]
    )
    return tag("section", tag("h2", "Accuracy on held-out questions"), figure(drawing, caption), _table(evidence), id="accuracy")


def _label(evidence: Evidence) -> str:
    means = [(a, evidence.mean(a, "vqa", OVERALL)) for a in evidence.arms]
    return "Accuracy by arm: " + ", ".join(f"{a} {100 * m:.1f} %" for a, m in means if m is not None)


def _draw(fig: Any, evidence: Evidence) -> None:
    arms = evidence.arms
    known = [paper.VQA_SYNERGY.get(a) for a in arms]
    panels = fig.subplots(1, 2, sharey=True, width_ratios=[2.6, 1]) if any(known) else [fig.subplots()]
    ours, y = panels[0], np.arange(len(arms))[::-1]
    for i, arm in enumerate(arms):
        values = [100 * v for v in evidence.values(arm, "vqa", OVERALL)]
        if not values:
            continue
        mean = float(np.mean(values))
        ours.barh(y[i], mean, height=0.62, color=colour(i), alpha=0.55, zorder=2)
        answers = evidence.answered(arm, "correct")
        if answers is not None:
            low, high = interval(answers)
            ours.plot([100 * low, 100 * high], [y[i], y[i]], color=INK, linewidth=1.1, zorder=4)
        ours.plot(values, np.full(len(values), y[i]), "o", markersize=4.5, color=colour(i), markeredgecolor=INK, markeredgewidth=0.7, zorder=5)
        ours.annotate(f"{mean:.1f}", (0, y[i]), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK, zorder=6)
    for metric, (name, style) in CONTROLS.items():
        found = [m for a in arms if (m := evidence.mean(a, metric, OVERALL)) is not None]
        if found:
            ours.axvline(100 * float(np.mean(found)), linestyle=style, color=INK, linewidth=1.2, zorder=3, label=name)
    ours.set_yticks(y, ragged(arms))
    ours.set_xlabel("accuracy, %")
    ours.set_xlim(left=0)
    ours.tick_params(axis="y", length=0)
    fig.legend(*ours.get_legend_handles_labels(), loc="outside upper left", ncols=1, handlelength=2.6, borderpad=0)
    if len(panels) > 1:
        _paper(panels[1], known, y)


def _paper(panel: Any, known: list[float | None], y: Any) -> None:
    for at, value in zip(y, known, strict=True):
        if value is None:
            panel.annotate("not in the paper", (0, at), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7, color=FAINT)
        else:
            panel.barh(at, value, height=0.62, color=FAINT, alpha=0.5)
            panel.annotate(f"{value:.1f}", (0, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    panel.axvline(paper.CHANCE, linestyle="--", color=FAINT, linewidth=1)
    panel.set_xlim(0, 45)
    panel.set_title("the paper:\nanother scale", fontsize=8)
    panel.set_xlabel("VQA, %")
    panel.tick_params(axis="y", length=0)


def _table(evidence: Evidence) -> Markup:
    header = ["arm", "accuracy, %", *(f"seed {s}" for s in evidence.seeds), "seed spread"]
    header += ["constant", "shuffled", "blind", "choice likelihood", "paper"]
    rows = []
    for arm in evidence.arms:
        values = evidence.values(arm, "vqa", OVERALL)
        by_seed = {r["seed"]: r["value"] for r in evidence.results if r["arm"] == arm and r["metric"] == "vqa" and r["split"] == OVERALL}
        controls = [evidence.mean(arm, f"vqa.{c}", OVERALL) for c in ("constant", "shuffled", "blind")]
        cells = [percent(float(np.mean(values)) if values else None), *(percent(by_seed.get(s)) for s in evidence.seeds)]
        cells += [percent(spread(values) if values else None), *map(percent, controls), percent(evidence.mean(arm, "vqa.choice", OVERALL))]
        printed = paper.VQA_SYNERGY.get(arm)
        rows.append([arm, *cells, None if printed is None else f"{printed:.1f}"])
    caption = "Accuracy and controls, %. “Choice likelihood” is over the questions that offer choices only; the last column is another scale."
    return table(header, rows, caption)


def percent(value: float | None) -> str | None:
    """A share as a percentage with one decimal."""
    return None if value is None or value != value else f"{100 * value:.1f}"
