"""Where the tokens went: by arm and source, what was planned, what the trainer consumed, and how little of it takes loss.

Payload is what budgets count (stored ids and latent rows, context included). Structure (BOS, EOS, BOI, EOI) and padding come on top; loss-bearing
tokens are those that a loss was taken on. Consumed must equal planned, to the token: the ablation stops otherwise, and both are shown here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.drawing import INK, categories, colour, draw, figure, legend, rows, token_axis
from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.markup import Markup, clean, table, tag


def first_run(evidence: Evidence, arm: str) -> RunEvidence | None:
    """The first seed's run of an arm: seeds share the plan, so its token counts are the arm's."""
    return next((evidence.runs[arm, s] for s in evidence.seeds if (arm, s) in evidence.runs), None)


def mismatches(evidence: Evidence) -> list[str]:
    """Every (arm, seed, source) whose consumed payload differs from the plan's, in words. Empty is the only good answer."""
    out = []
    for (arm, seed), run in evidence.runs.items():
        for source in sorted({*run.planned, *run.tokens}):
            planned, consumed = (t.get(source, {}).get("payload", 0) for t in (run.planned, run.tokens))
            if planned != consumed:
                out.append(f"{arm}, seed {seed}, {source}: planned {planned:,}, consumed {consumed:,}")
    return out


def section(evidence: Evidence) -> Markup | None:
    """The stacked bars and the table."""
    if not evidence.runs:
        return None
    sources = list(dict.fromkeys(s for r in evidence.runs.values() for s in r.tokens))
    height = 0.9 + rows(evidence.arms)[0] * len(evidence.arms) + 0.1 * len(sources)
    drawing = draw(lambda f: _draw(f, evidence, sources), height=height, label="Tokens consumed by arm and source", prefix="tokens")
    caption = "Payload tokens consumed, by source; the pale end of a bar is structure and padding, the mark across it is how many tokens took loss."
    listed = []
    for arm in evidence.arms:
        run = first_run(evidence, arm)
        for source in sources if run else []:
            assert run is not None
            got, planned = run.tokens.get(source, {}), run.planned.get(source, {})
            if got.get("payload") or planned.get("payload"):
                cells = (planned.get("payload", 0), got.get("payload", 0), got.get("structure"), got.get("loss"))
                share = f"{100 * got.get('loss', 0) / max(1, got.get('payload', 0)):.0f} %" if "loss" in got else None
                listed.append([arm, source, *(None if c is None else f"{c:,}" for c in cells), share])
        if run:
            listed.append([arm, tag("em", "padding"), None, f"{run.padding:,}", None, None, None])
    header = ["arm", "source", "planned payload", "consumed payload", "structure", "loss-bearing", "share"]
    wrong = mismatches(evidence)
    verdict = tag("p", "Consumed payload equals the plan for every arm, seed and source.")
    if wrong:
        verdict = tag("p", "Consumed differs from the plan: ", "; ".join(wrong), class_="bad")
    figures = tag("details", tag("summary", "Table of tokens"), table(header, listed, numeric_from=2))
    return tag("section", tag("h2", "Tokens by source"), figure(drawing, caption), verdict, figures, id="tokens")


def _draw(fig: Any, evidence: Evidence, sources: list[str]) -> None:
    panel, y = fig.subplots(), np.arange(len(evidence.arms))[::-1]
    for at, arm in zip(y, evidence.arms, strict=True):
        run, left = first_run(evidence, arm), 0
        if run is None:
            continue
        for j, source in enumerate(sources):
            payload = run.tokens.get(source, {}).get("payload", 0)
            panel.barh(at, payload, left=left, height=0.62, color=colour(j), alpha=0.6, label=clean(source))
            left += payload
        extra = run.padding + sum(t.get("structure", 0) for t in run.tokens.values())
        panel.barh(at, extra, left=left, height=0.62, color=INK, alpha=0.15, label="structure and padding")
        panel.plot([sum(t.get("loss", 0) for t in run.tokens.values())] * 2, [at - 0.31, at + 0.31], color=INK, linewidth=2, label="loss-bearing")
    categories(panel, evidence.arms, y)
    panel.set_ylim(-0.6, len(y) - 0.4)
    panel.grid(axis="x")
    token_axis(panel, "x", "tokens of one run")
    legend(fig, [panel], [*map(clean, sources), "structure and padding", "loss-bearing"], 2)
