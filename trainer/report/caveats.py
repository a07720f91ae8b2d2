"""What the figures are and what they are not, said plainly and computed from the evidence: size, seeds, spread, steps, what was not learned.

Nothing here promises a sign. A statement appears only when the numbers behind it exist.
"""

from __future__ import annotations

from trainer.report import paper
from trainer.report.accuracy import OVERALL, percent
from trainer.report.arms import runs_of
from trainer.report.differences import alone, detectable
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, tag
from trainer.report.statistics import spread
from trainer.report.types import unlearned

FEW_STEPS = 300


def section(evidence: Evidence) -> Markup:
    """The list of statements."""
    items = [*_size(evidence), *_seeds(evidence), *_steps(evidence), *_learned(evidence), *_baselines(evidence), *_paper(evidence)]
    return tag("section", tag("h2", "What these figures are, and are not"), tag("ul", *(tag("li", i) for i in items)), id="caveats")


def few_steps(evidence: Evidence) -> list[str]:
    """Arms with too few optimiser steps to say much."""
    return [a for a in evidence.arms if (runs := runs_of(evidence, a)) and runs[0].steps < FEW_STEPS]


def _size(evidence: Evidence) -> list[str]:
    run = next(iter(evidence.runs.values()), None)
    if run is None:
        return []
    largest = max(sum(t.get("payload", 0) for t in r.tokens.values()) for r in evidence.runs.values())
    parameters = f"{run.parameters:,} parameters" if run.parameters else "its stated size"
    return [
        f"A model of {parameters} trained on at most {largest:,} payload tokens an arm (scale {evidence.scale:g} of the budgets in the recipe). "
        "What holds here need not hold at another size, and the other way round."
    ]


def _seeds(evidence: Evidence) -> list[str]:
    spreads = {a: spread(v) for a in evidence.arms if len(v := evidence.values(a, "vqa", OVERALL)) > 1}
    out = [
        f"{evidence.seeds_said}: initialisation, noise and t differ between them, and are the same for all arms of one seed; "
        "records and their order are the plan's."
    ]
    if spreads:
        worst = max(spreads, key=lambda a: spreads[a])
        out.append(
            f"Seeds of one arm differ by up to {percent(spreads[worst])} points ({worst}). "
            "A difference between arms that is not clearly larger is not a finding."
        )
    smallest = detectable(evidence)
    if smallest is not None:
        out.append(f"Two arms must truly differ by about {percent(smallest)} points to be told apart by these questions, before seeds are counted.")
    return out


def _steps(evidence: Evidence) -> list[str]:
    steps = {a: runs[0].steps for a in evidence.arms if (runs := runs_of(evidence, a))}
    if not steps:
        return []
    first, most = evidence.arms[0], max(steps, key=lambda a: steps[a])
    out = []
    if first in steps and steps[first] * 2 <= steps[most]:
        repeats = [a for a in alone(evidence) if a != first and evidence.repeats.get(a, 0) > 1.01]
        control = f" {' and '.join(repeats)}, the same data repeated, is the control for that." if repeats else " No arm controls for that."
        steps_of = f"{first} gets {steps[first]:,} optimiser steps, {most} {steps[most]:,}"
        out.append(f"{steps_of}: part of any gain over {first} may be updates, not data.{control}")
    if few := few_steps(evidence):
        out.append(f"Warning: fewer than {FEW_STEPS} optimiser steps in {', '.join(few)}; warm-up and schedule take a good part of that.")
    return out


def _learned(evidence: Evidence) -> list[str]:
    missing = unlearned(evidence)
    return [f"Not learned at this size, by any arm (within two standard errors of the constant answer): {', '.join(missing)}."] if missing else []


def _baselines(evidence: Evidence) -> list[str]:
    out = []
    if evidence.metrics("vqa.constant"):
        out.append("The constant answer is the best one per question type, chosen on the questions it is judged by: a generous baseline.")
    score = lambda arm, metric: evidence.mean(arm, metric, "held_out:with_bag")
    bag = [a for a in evidence.arms if (b := score(a, "vqa.attributes")) is not None and (score(a, "vqa") or 0) <= b]
    if bag:
        out.append(f"No better than a bag of attributes, so no sign of knowing what belongs to what: {', '.join(bag)}.")
    return out


def _paper(evidence: Evidence) -> list[str]:
    if not set(evidence.arms) & set(paper.VQA_SYNERGY):
        return []
    return [
        "The paper's values come from models a thousand times larger, judged on sixteen benchmarks after instruction tuning. "
        "They are shown for the order of arms only."
    ]
