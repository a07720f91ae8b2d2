"""What the figures are and what they are not, said plainly and computed from the evidence: size, seeds, spread, steps, what was not learned.

Nothing here promises a sign. A statement appears only when the numbers behind it exist.
"""

from __future__ import annotations

from trainer.report.arms import payload, runs_of
from trainer.report.encoders import encoders
from trainer.report.encoders import said as named
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, tag
from trainer.report.measured import by_seed
from trainer.report.measures import is_control, measure, part
from trainer.report.power import detectable
from trainer.report.published import of
from trainer.report.results import WHOLE
from trainer.report.statistics import spread
from trainer.report.tokens import mismatches
from trainer.report.types import unlearned

FEW_STEPS = 300
FEW_SEEDS = 6  # with fewer, the exact test over seeds cannot reach 5 %
NAMED = 6  # arms named in a sentence


def section(evidence: Evidence) -> Markup:
    """The list of statements."""
    items = [*_size(evidence), *_seeds(evidence), *_steps(evidence), *_repeats(evidence), *_learned(evidence), *_baselines(evidence)]
    items += [*_encoders(evidence), *_tokens(evidence), *_families(evidence), *_paper(evidence)]
    return tag("section", tag("h2", "What these figures are, and are not"), tag("ul", *(tag("li", i) for i in items)), id="caveats")


def few_steps(evidence: Evidence) -> list[str]:
    """Arms with too few optimiser steps to say much."""
    return [a for a in evidence.arms if (runs := runs_of(evidence, a)) and runs[0].steps < FEW_STEPS]


def _named(arms: list[str]) -> str:
    return ", ".join(arms[:NAMED]) + (f" and {len(arms) - NAMED} more" if len(arms) > NAMED else "")


def _size(evidence: Evidence) -> list[str]:
    runs = list(evidence.runs.values())
    if not runs:
        return []
    largest, sizes = max(map(payload, runs)), sorted({r.parameters for r in runs if r.parameters})
    parameters = f"{sizes[0]:,} parameters" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,} parameters" if sizes else "its stated size"
    return [
        f"A model of {parameters} trained on at most {largest:,} payload tokens an arm (scale {evidence.scale:g} of the budgets in the recipe). "
        "What holds here need not hold at another size, and the other way round."
    ]


def _main(evidence: Evidence) -> list[tuple[str, str]]:
    """(metric, split) of the wholes that were measured and of which more or less is better."""
    pairs = dict.fromkeys((r["metric"], r["split"]) for r in evidence.results if r["split"] in WHOLE)
    return [(m, s) for m, s in pairs if not is_control(m) and measure(m).sign]


def _seeds(evidence: Evidence) -> list[str]:
    n = len(evidence.seeds)
    out = [
        f"{evidence.seeds_said}: initialisation, noise and t differ between them, and are the same for all arms of one seed; "
        "records and their order are the plan's."
    ]
    if n == 1:
        out = ["One seed, the same start, noise and t for all arms; records and their order are the plan's."]
        out.append("One seed: nothing here says what another start would give, so intervals are over items alone and too narrow.")
    elif n < FEW_SEEDS:
        out.append(f"With {n} seeds the seeds' part of an interval has {n - 1} degree{'s' if n > 2 else ''} of freedom, so intervals are wide; "
                   f"the exact test over seeds cannot go below {2 / 2**n:.2g}.")  # fmt: skip
    apart, found = [], []
    for metric, split in _main(evidence):
        m = measure(metric)
        name = f"{m.name}{part(split)}"
        spreads = {a: spread(list(v.values())) for a in evidence.arms if len(v := by_seed(evidence, a, metric, split)) > 1}
        if spreads:
            worst = max(spreads, key=lambda a: spreads[a])
            apart.append(f"{name} {m.said(spreads[worst])}{_unit(m)} ({worst})")
            if smallest := detectable(evidence, metric, split):
                found.append(f"{name} {smallest}")
    out += [f"Seeds of one arm differ by up to: {'; '.join(apart)}."] if apart else []
    if found:
        out.append(f"Two arms must truly differ by about so much for such an ablation to find it in 4 of 5 cases: {'; '.join(found)}.")
    return out


def _unit(m: object) -> str:
    unit = getattr(m, "points", "") or getattr(m, "unit", "")
    return f" {unit}" if unit else ""


def _steps(evidence: Evidence) -> list[str]:
    steps = {a: runs[0].steps for a in evidence.arms if (runs := runs_of(evidence, a))}
    if not steps:
        return []
    least, most = min(steps, key=lambda a: steps[a]), max(steps, key=lambda a: steps[a])
    out = []
    if steps[least] * 2 <= steps[most]:
        repeats = [a for a in steps if a != least and _repeated(evidence, a, least) and steps[a] >= 0.9 * steps[most]]
        control = f" {_named(repeats)}, the same data repeated, is the control for that." if repeats else " No arm controls for that."
        gets = f"{least} gets {steps[least]:,} optimiser steps, {most} {steps[most]:,}"
        out.append(f"{gets}: part of any gain over {least} may be updates, not data.{control}")
    if few := few_steps(evidence):
        out.append(f"Warning: fewer than {FEW_STEPS} optimiser steps in {_named(few)}; warm-up and schedule take a good part of that.")
    return out


def _repeated(evidence: Evidence, arm: str, least: str) -> bool:
    """Whether an arm reads the sources of another one more often: `least`'s tokens over and over, none that it lacks."""
    own, base = ({s: n for s, n in evidence.budgets.get(a, {}).items() if n} for a in (arm, least))
    often, once = evidence.repeats.get(arm, 0.0), max(evidence.repeats.get(least, 0.0), 1.0)
    ratio = sum(own.values()) / max(sum(base.values()), 1)
    return own.keys() == base.keys() and often > 1.5 * once and abs(often / once / ratio - 1) < 0.25


def _repeats(evidence: Evidence) -> list[str]:
    often = [f"{a} ({n:.1f} epochs)" for a, n in evidence.repeats.items() if n >= 2]
    return [f"Repeated data: {_named(often)} of their most repeated source; other arms see theirs less often."] if often else []


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
        out.append(f"No better than a bag of attributes, so no sign of knowing what belongs to what: {_named(bag)}.")
    return out


def _encoders(evidence: Evidence) -> list[str]:
    names, latent = encoders(evidence), [m for m, _ in _main(evidence) if not measure(m).comparable]
    if len(names) < 2 or not latent:
        return []
    said = ", ".join(dict.fromkeys(measure(m).name for m in latent))
    return [f"Arms have {len(names)} encoders ({named(names)}): {said} cannot be compared between them."]


def _tokens(evidence: Evidence) -> list[str]:
    wrong = mismatches(evidence)
    return [f"Warning: consumed tokens differ from the plan in {len(wrong)} cases; see the tokens below."] if wrong else []


def _families(evidence: Evidence) -> list[str]:
    asked = [c for c in evidence.card.get("recipe", {}).get("compare") or [] if isinstance(c, dict) and "difference" in c]
    tables = sum(len(c["difference"]["against"]) if isinstance(c["difference"].get("against"), list) else 1 for c in asked)
    return [f"{tables} tables of differences: Holm's correction is within each, not over all of them."] if tables > 1 else []


def _paper(evidence: Evidence) -> list[str]:
    if not of(evidence):
        return []
    return ["The paper's values come from models of 1.5B active parameters and more, on other test sets. They are shown for the order of arms only."]
