"""VQA accuracy by arm, in the manner of the paper's Figure 9: a bar an arm, a dot a seed, lines for what costs nothing.

`figures/bars.py` draws it: this is its one use that no document has to ask for. The lines are the best constant answer per question type, the same
models with images shuffled among questions, and somebody who knows what is in the picture but not what belongs to what.
"""

from __future__ import annotations

import numpy as np

from trainer.report import paper
from trainer.report.evidence import Evidence
from trainer.report.figures.bars import grouped, panelled
from trainer.report.markup import Markup, table, tag
from trainer.report.statistics import spread

OVERALL = "held_out"
CONTROLS = ["constant", "shuffled", "attributes"]


def section(evidence: Evidence) -> Markup | None:
    """The headline figure and its table, or None when no question was asked."""
    if not evidence.metrics("vqa"):
        return None
    groups = grouped(evidence, ["vqa"], [OVERALL], evidence.arms, CONTROLS)
    caption = "Held-out questions answered exactly, greedy decoding. Lines: what needs no understanding of the picture."
    drawing = panelled(evidence, groups, "accuracy", caption) if groups else None
    return tag("section", tag("h2", "Accuracy on held-out questions"), drawing, _table(evidence), id="accuracy")


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
