"""What the ablation cost: device-hours measured, FLOPs counted, and where the samples lie.

Hours are of training, from each run's log, times the processes it trained on; evaluation and planning are not in them. Runs side by side on
shared cores each take longer, so hours on a CPU say what was waited for, not what the work needs.
"""

from __future__ import annotations

from typing import Any

from trainer.report.arms import runs_of
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, link, table, tag


def hours(evidence: Evidence) -> float | None:
    """Hours of training, over all runs and processes; None when no run logged its time."""
    timed = [r.seconds * r.processes for r in evidence.runs.values() if r.seconds]
    return sum(timed) / 3600 if timed else None


def section(evidence: Evidence) -> Markup | None:
    """A row an arm and the whole."""
    rows: list[list[Any]] = []
    for arm in evidence.arms:
        runs = runs_of(evidence, arm)
        timed = [r.seconds * r.processes for r in runs if r.seconds]
        flops = [r.flops for r in runs if r.flops]
        rate = f"{sum(flops) / sum(timed):.3g}" if timed and len(flops) == len(timed) else None
        spent = f"{sum(timed) / 3600:.4g}" if timed else None
        rows.append([arm, str(len(runs)), spent, f"{sum(flops):.3g}" if flops else None, rate])
    total, flops = hours(evidence), [r.flops for r in evidence.runs.values() if r.flops]
    if total is None and not flops:
        return None
    whole = [None if total is None else f"{total:.4g}", f"{sum(flops):.3g}" if flops else None, None]
    rows.append([tag("strong", "all"), str(len(evidence.runs)), *whole])
    caption = "Measured: hours of training summed over seeds and processes (a process is one GPU, or one CPU task); FLOPs as the model counts them."
    made = table(["arm", "runs", "process-hours", "FLOPs", "FLOP/s a process"], rows, caption)
    return tag("section", tag("h2", "Cost"), made, id="cost")


def samples(evidence: Evidence) -> Markup | None:
    """Where samples lie, and how they are looked at. The page itself links to nothing outside it."""
    places = [(r.arm, r.seed, r.place) for r in evidence.runs.values() if r.place and (r.pictures is not None or _asked(evidence))]
    if not places:
        return None
    shown = any(r.pictures is not None for r in evidence.runs.values())
    here = joined([" Some are ", link("pictures", "on this page"), "."]) if shown else None
    rows = [[arm, str(seed), tag("code", f"{place}/samples")] for arm, seed, place in places]
    note = tag("p", "Relative to the ablation's folder; ", tag("code", "pipelines view PATH"), " shows them all.", here)
    body = tag("details", tag("summary", f"{len(rows)} folders of samples"), table(["arm", "seed", "folder"], rows, numeric_from=9))
    return tag("section", tag("h2", "Samples"), note, body, id="samples")


def _asked(evidence: Evidence) -> bool:
    asked = evidence.card.get("recipe", {}).get("evaluate") or []
    return any(part == "samples" or (isinstance(part, dict) and "samples" in part) for part in asked)
