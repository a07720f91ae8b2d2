"""What each arm cost: budgets, optimiser steps, FLOPs, wall time, parameters. The confounds of an ablation stand in this table.

An arm with a fifth of the tokens has a fifth of the updates, so part of what another arm gains over it may be updates and not data: the arm that
repeats the same data to the same number of steps is the control for that.
"""

from __future__ import annotations

import numpy as np

from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.markup import Markup, table, tag


def runs_of(evidence: Evidence, arm: str) -> list[RunEvidence]:
    """The runs of an arm, in the order of seeds."""
    return [evidence.runs[arm, s] for s in evidence.seeds if (arm, s) in evidence.runs]


def section(evidence: Evidence) -> Markup | None:
    """The table of arms."""
    rows = []
    for arm in evidence.arms:
        runs = runs_of(evidence, arm)
        if not runs:
            continue
        payload = sum(t.get("payload", 0) for t in runs[0].tokens.values())
        loss = sum(t.get("loss", 0) for t in runs[0].tokens.values())
        seconds = [r.seconds for r in runs if r.seconds]
        flops = [r.flops for r in runs if r.flops]
        budget = " + ".join(f"{source} {_short(n)}" for source, n in evidence.budgets.get(arm, {}).items() if n)
        repeat = evidence.repeats.get(arm)
        time = f"{np.mean(seconds):.0f}" if seconds else None
        rate = f"{payload / np.mean(seconds):,.0f}" if seconds else None
        counted = [f"{payload:,}", f"{loss:,}", None if repeat is None else f"{repeat:.2f}", f"{runs[0].steps:,}"]
        rows.append([arm, budget, *counted, f"{np.mean(flops):.2e}" if flops else None, time, rate, str(len(runs))])
    if not rows:
        return None
    header = ["arm", "budget", "payload tokens", "loss-bearing", "most epochs", "optimiser steps", "FLOPs", "seconds", "tokens/s", "seeds"]
    caption = "Per run, seeds averaged where they differ. Seconds are of training alone, with as many arms side by side as the ablation allows."
    return tag("section", tag("h2", "Arms"), table(header, rows, caption, numeric_from=2), id="arms")


def _short(n: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)
