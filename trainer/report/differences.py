"""What an arm gains over another, paired by seed and question: the statements an ablation exists for.

Three questions, each a table: does adding X help (arm − the first arm)? does X stand in for more of the target (arm − each arm that holds the
target alone)? and does the arm beat its own controls? Each has the mean, its question error, the interval over seeds × questions and every
seed's own value, so that a sign that flips between seeds is seen. Questions are joined by their names, and those on one image count as one.
"""

from __future__ import annotations

import math

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measured import paired
from trainer.report.power import detectable
from trainer.report.statistics import Difference, difference

HEADER = ["arms", "difference, points", "± 1 SE", "SEs", "95 % interval", "by seed"]


def alone(evidence: Evidence) -> list[str]:
    """Arms that hold only what the first arm holds: the first arm itself, its repetition, more of the same."""
    first = {s for s, n in evidence.budgets.get(evidence.arms[0], {}).items() if n}
    return [a for a in evidence.arms if {s for s, n in evidence.budgets.get(a, {}).items() if n} == first]


def between(evidence: Evidence, a: str, b: str, split: str = "held_out") -> Difference | None:
    """Accuracy of arm a − arm b, paired."""
    found = paired(evidence, [a, b], "vqa", split)
    return None if found is None else difference(*found.arms)


def against(evidence: Evidence, arm: str, control: str, split: str = "held_out") -> Difference | None:
    """Accuracy of an arm − its control (constant, shuffled, blind), paired."""
    found = paired(evidence, [arm, arm], ["vqa", f"vqa.{control}"], split)
    return None if found is None else difference(*found.arms)


def section(evidence: Evidence) -> Markup | None:
    """The three tables."""
    if not evidence.metrics("vqa"):
        return None
    first, own = evidence.arms[0], alone(evidence)
    transfer = [(f"{a} − {first}", between(evidence, a, first)) for a in evidence.arms if a != first]
    others = [a for a in evidence.arms if a not in own]
    instead = [(f"{a} − {b}", between(evidence, a, b)) for b in own if b != first for a in others]
    names = (("constant", "constant answer"), ("shuffled", "its own shuffled images"))
    controls = [(f"{a} − {name}", against(evidence, a, c)) for a in evidence.arms for c, name in names]
    tables = [_table(f"Over {first}", transfer)]
    if instead:
        tables.append(_table("Instead of more of the same", instead))
    tables.append(_table("Over what needs no picture", controls))
    return tag("section", tag("h2", "Differences between arms"), *tables, _power(evidence), id="differences")


def _table(title: str, rows: list[tuple[str, Difference | None]]) -> Markup:
    cells = []
    for name, d in rows:
        if d is not None:
            known, told = not math.isnan(d.error), not math.isnan(d.low)
            seeds = ", ".join(f"{100 * s:+.1f}" for s in d.seeds)
            interval = f"{100 * d.low:+.1f} … {100 * d.high:+.1f}" if told else None
            mean = tag("strong" if d.found else "span", f"{100 * d.mean:+.1f}")
            cells.append([name, mean, f"{100 * d.error:.1f}" if known else None, f"{d.errors:+.1f}" if known else None, interval, seeds])
    return table(HEADER, cells, title)


def _power(evidence: Evidence) -> Markup | None:
    bold = "Bold: the interval leaves out 0; standard errors are of questions alone, so with few seeds they promise too much."
    if len(evidence.seeds) == 1:
        return tag("p", f"One seed: intervals are over questions alone, and what another start would move is not in them. {bold}")
    smallest = detectable(evidence, "vqa")
    return tag("p", f"A true difference of about {smallest} would be found in 4 of 5 such ablations (5 %, two-sided). {bold}" if smallest else bold)
