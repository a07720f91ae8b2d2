"""What each arm cost: budgets, loss-bearing tokens, optimiser steps, FLOPs, parameters, time. The confounds of an ablation stand in this table.

An arm with a fifth of the tokens has a fifth of the updates, so part of what another arm gains over it may be updates and not data: the arm that
repeats the same data to the same number of steps is the control for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.markup import Markup, table, tag

HEADER = ["arm", "payload tokens by source", "payload", "loss-bearing", "most epochs", "optimiser steps", "FLOPs", "parameters"]
HEADER += ["seconds", "seeds"]


def runs_of(evidence: Evidence, arm: str) -> list[RunEvidence]:
    """The runs of an arm, in the order of seeds."""
    return [evidence.runs[arm, s] for s in evidence.seeds if (arm, s) in evidence.runs]


def payload(run: RunEvidence) -> int:
    """Payload tokens a run consumed."""
    return sum(t.get("payload", 0) for t in run.tokens.values())


def section(evidence: Evidence) -> Markup | None:
    """The table of arms."""
    rows = [_row(evidence, arm, runs) for arm in evidence.arms if (runs := runs_of(evidence, arm))]
    if not rows:
        return None
    caption = "Per run, averaged where seeds differ. Payload: stored ids and latents, context included. Loss-bearing: those a loss was taken on."
    note = "Each arm's schedule ends at its own last step. Seconds are of training alone, with as many arms side by side as the ablation allows."
    body = table(HEADER, rows, caption, numeric_from=2)
    left = {str(arm): str(why) for arm, why in (evidence.card.get("recipe", {}).get("left_out") or {}).items()}
    out = tag("p", "Left out: ", "; ".join(f"{arm} ({why})" for arm, why in left.items()), ".") if left else None
    return tag("section", tag("h2", "Arms"), body, tag("p", note, class_="caption"), out, id="arms")


def _row(evidence: Evidence, arm: str, runs: list[RunEvidence]) -> list[Any]:
    first = runs[0]
    loss = sum(t.get("loss", 0) for t in first.tokens.values())
    seconds, flops = [r.seconds for r in runs if r.seconds], [r.flops for r in runs if r.flops]
    held = " + ".join(f"{source} {short(n['payload'])}" for source, n in first.tokens.items() if n.get("payload"))
    repeat = evidence.repeats.get(arm)
    counted = [f"{payload(first):,}", f"{loss:,}", None if repeat is None else f"{repeat:.2f}", f"{first.steps:,}"]
    time = f"{np.mean(seconds):.0f}" if seconds else None
    parameters = f"{first.parameters:,}" if first.parameters else None
    return [arm, tag("span", held, class_="wrap"), *counted, f"{np.mean(flops):.3g}" if flops else None, parameters, time, str(len(runs))]


def short(n: float) -> str:
    """A count in K, M, B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"
