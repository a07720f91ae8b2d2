"""Held-out text perplexity, bits per byte and flow loss by arm: what the data mix costs or gives the other abilities.

Perplexity is over payload ids only; bits per byte do not depend on the tokenizer. Flow loss is taken at fixed (t, noise) per held-out image, so arms
differ by the model alone; it is comparable only between arms of one encoder.
"""

from __future__ import annotations

import numpy as np

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measures import said_split

OWN = "held_out:"  # and the name of a source
METRICS = (("text_perplexity", "perplexity", "{:.2f}"), ("bits_per_byte", "bits per byte", "{:.3f}"), ("flow_loss", "flow loss", "{:.3f}"))


def section(evidence: Evidence) -> Markup | None:
    """One table a metric, a column a split: all held out, one source of it, a set from outside."""
    tables = []
    for metric, name, form in METRICS:
        splits = evidence.splits(metric)
        if "held_out" in splits and sum(s.startswith(OWN) for s in splits) == 1:  # one source: all together is the same again
            splits.remove("held_out")
        if splits:
            rows = [[arm, *(_shown(evidence, arm, metric, s, form) for s in splits)] for arm in evidence.arms]
            grey = " Grey: the arm never trained on that source." if any(not _seen(evidence, a, s) for a in evidence.arms for s in splits) else ""
            caption = f"Held-out {name}, mean over seeds (± half the seed spread). Lower is better.{grey}"
            tables.append(table(["arm", *map(_named, splits)], rows, caption))
    return tag("section", tag("h2", "Text and images held out"), *tables, id="language") if tables else None


def _named(split: str) -> str:
    return "all together" if split == "held_out" else said_split(split)


def _seen(evidence: Evidence, arm: str, split: str) -> bool:
    """False of what is held out of a source that the arm never trained on. A set from outside is nobody's source, whatever its name."""
    source = split.removeprefix(OWN) if split.startswith(OWN) else ""
    known = any(source in held for held in evidence.budgets.values())
    return not known or evidence.budgets.get(arm, {}).get(source, 0) > 0


def _shown(evidence: Evidence, arm: str, metric: str, split: str, form: str) -> Markup | str | None:
    cell = _cell(evidence.values(arm, metric, split), form)
    return cell if cell is None or _seen(evidence, arm, split) else tag("span", cell, class_="weak")


def _cell(values: list[float], form: str) -> str | None:
    if not values:
        return None
    half = (max(values) - min(values)) / 2
    return form.format(float(np.mean(values))) + (f" ± {form.format(half)}" if len(values) > 1 else "")
