"""Training loss by source, a panel a source and loss, a line an arm: where an arm still falls, and where it has begun to memorise.

The horizontal axis is payload tokens seen in all, because arms differ in size and each arm's schedule ends at its own horizon. Lines are means
over seeds of a running mean of the logged steps; they are training losses on what the arm itself draws, not an evaluation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.drawing import draw, figure, legend, limits, look, panels, size, token_axis
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, clean, tag
from trainer.report.statistics import Floats

POINTS = 120
STEEP = 12  # a line's first twelfth may leave the panel: shown whole, it would press all arms together
UNITS = {"text": "nats a token", "flow": "mean squared error"}


def smooth(values: Floats, window: int) -> Floats:
    """A running mean over the last `window` logged steps (fewer at the start)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    return (total[stop] - total[start]) / (stop - start)


def line(evidence: Evidence, arm: str, key: tuple[str, str]) -> tuple[Floats, Floats] | None:
    """Tokens and loss of one arm, mean over seeds, at most POINTS points."""
    found = [r.curves[key] for s in evidence.seeds if (r := evidence.runs.get((arm, s))) is not None and key in r.curves]
    found = [(x, y) for x, y in found if len(x) > 1]
    if not found:
        return None
    end = min(x[-1] for x, _ in found)
    grid = np.linspace(max(x[0] for x, _ in found), end, POINTS)
    window = max(1, len(found[0][0]) // 25)
    return grid, np.mean([np.interp(grid, x, smooth(y, window)) for x, y in found], axis=0)


def section(evidence: Evidence) -> Markup | None:
    """The panels, text losses first."""
    # A source without text has cross-entropy on structure tokens alone, which is no language.
    words = {s for r in evidence.runs.values() for s, n in r.tokens.items() if n.get("text", 1)}
    found = {k for r in evidence.runs.values() for k in r.curves if k[0] != "text" or k[1] in words}
    keys = sorted(found, key=lambda k: (k[0] != "text", k[1]))
    if not keys:
        return None
    width, height = size(len(keys), width=2.9, height=2.0, above=0.3 + 0.1 * len(evidence.arms))
    drawing = draw(lambda f: _draw(f, evidence, keys), width, height, label="Training loss by source and arm", prefix="curves")
    caption = (
        "Training loss by source against payload tokens seen (all sources together). Cross-entropy in nats a token; flow loss is comparable only "
        "between arms of one encoder. The steep beginning leaves a panel at its top."
    )
    return tag("section", tag("h2", "Loss by source"), figure(drawing, caption), id="losses")


def _draw(fig: Any, evidence: Evidence, keys: list[tuple[str, str]]) -> None:
    made = panels(fig, [f"{source}: {'text' if loss == 'text' else 'images'}" for loss, source in keys])
    for panel, (loss, source) in zip(made, keys, strict=True):
        late: list[float] = []
        for i, arm in enumerate(evidence.arms):
            found = line(evidence, arm, (loss, source))
            if found is not None:
                late += found[1][POINTS // STEEP :].tolist()
                panel.plot(*found, **{**look(i), "marker": None}, label=clean(arm))
        if late:
            panel.set_ylim(limits(late))
        panel.set_ylabel(UNITS[loss])
        panel.grid(axis="y")
        token_axis(panel, "x", "payload tokens seen")
    legend(fig, made, [clean(a) for a in evidence.arms], 2)
