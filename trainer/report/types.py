"""Accuracy by question type, beside the answers that need no picture: which types were learned at this size, and which were not.

A type counts as learned in an arm when its accuracy stands more than two standard errors (of questions, seeds averaged) above the best
constant answer for that type. The constant is chosen on the very questions it is judged by, which flatters it: the bar is a little too high.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from trainer.report.accuracy import percent
from trainer.report.differences import against
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag

ERRORS = 2.0


def learned(evidence: Evidence, arm: str, kind: str) -> bool | None:
    """Whether an arm stands clear of the constant answer on a type; None where its questions are not known, or are one."""
    found = against(evidence, arm, "constant", f"held_out:{kind}")
    if found is None or math.isnan(found.error):
        return None
    return found.mean > 0 and (found.error == 0 or found.errors > ERRORS)


def unlearned(evidence: Evidence) -> list[str]:
    """The types that no arm learned."""
    found = _judged(evidence)
    by_kind = {k: [found[a, k] for a in evidence.arms] for k in evidence.types()}
    return [k for k, of in by_kind.items() if False in of and True not in of]


@lru_cache(maxsize=1)  # two sections of a page ask, and joining questions takes seconds
def _judged(evidence: Evidence) -> dict[tuple[str, str], bool | None]:
    """(arm, type) → whether it was learned."""
    return {(a, k): learned(evidence, a, k) for a in evidence.arms for k in evidence.types()}


def section(evidence: Evidence) -> Markup | None:
    """The table of arms × question types with both baselines."""
    kinds = evidence.types()
    if not kinds:
        return None
    rows, judged = [], _judged(evidence)
    for arm in evidence.arms:
        cells: list[Markup | str | None] = []
        for kind in kinds:
            value = evidence.mean(arm, "vqa", f"held_out:{kind}")
            shown = percent(value)
            cells.append(tag("span", shown, class_="weak") if shown is not None and not judged[arm, kind] else shown)
        rows.append([arm, *cells])
    controls = {"constant": "constant answer", "shuffled": "images shuffled", "blind": "no image", "attributes": "bag of attributes"}
    for metric, name in controls.items():
        rows.append([tag("em", name), *(percent(_over_arms(evidence, f"vqa.{metric}", f"held_out:{k}")) for k in kinds)])
    counts = [f"{evidence.asked(k):,}" for k in kinds]
    rows.append([tag("em", "questions"), *counts])
    caption = "Accuracy by question type, %, mean over seeds. Grey: within two standard errors of the constant answer, so not learned at this size."
    note = tag("p", "Types that no arm learned: ", ", ".join(missing), ".") if (missing := unlearned(evidence)) else None
    return tag("section", tag("h2", "By question type"), table(["arm", *kinds], rows, caption), note, _binding(evidence), id="types")


def _over_arms(evidence: Evidence, metric: str, split: str) -> float | None:
    found = [m for a in evidence.arms if (m := evidence.mean(a, metric, split)) is not None]
    return float(np.mean(found)) if found else None


def _binding(evidence: Evidence) -> Markup | None:
    bag = _over_arms(evidence, "vqa.attributes", "held_out:with_bag")
    if bag is None:
        return None
    cells = [f"{arm} {percent(m)}" for arm in evidence.arms if (m := evidence.mean(arm, "vqa", "held_out:with_bag")) is not None]
    return tag(
        "p",
        f"On the questions where knowing what is in the picture narrows the answer, guessing among it scores {percent(bag)} %. ",
        "An arm below that has not shown that it knows what belongs to what. Arms, %: ",
        ", ".join(cells),
        ".",
    )
