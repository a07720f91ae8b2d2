"""Held-out text perplexity, bits per byte and flow loss by arm: what the data mix costs or gives the other abilities.

Perplexity is over payload ids only; bits per byte do not depend on the tokenizer. Flow loss is taken at fixed (t, noise) per held-out image, so arms
differ by the model alone; it is comparable only between arms of one encoder.
"""

from __future__ import annotations

import numpy as np

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag

METRICS = (("text_perplexity", "perplexity", "{:.2f}"), ("bits_per_byte", "bits per byte", "{:.3f}"), ("flow_loss", "flow loss", "{:.3f}"))


def section(evidence: Evidence) -> Markup | None:
    """One table a metric, a column a split (held-out set, or one source of it)."""
    tables = []
    for metric, name, form in METRICS:
        splits = evidence.splits(metric)
        sources = {s: s.partition(":")[2] for s in splits}
        if len(sources) == 2:  # one source: all together is the same again
            splits = [s for s in splits if sources[s]]
        if splits:
            rows = [[arm, *(_shown(evidence, arm, metric, s, sources[s], form) for s in splits)] for arm in evidence.arms]
            caption = f"Held-out {name}, mean over seeds (± half the seed spread). Lower is better. Grey: the arm never trained on that source."
            tables.append(table(["arm", *(sources[s] or "all together" for s in splits)], rows, caption))
    return tag("section", tag("h2", "Text and images held out"), *tables, id="language") if tables else None


def _shown(evidence: Evidence, arm: str, metric: str, split: str, source: str, form: str) -> Markup | str | None:
    cell = _cell(evidence.values(arm, metric, split), form)
    seen = not source or evidence.budgets.get(arm, {}).get(source, 0) > 0
    return cell if seen or cell is None else tag("span", cell, class_="weak")


def _cell(values: list[float], form: str) -> str | None:
    if not values:
        return None
    half = (max(values) - min(values)) / 2
    return form.format(float(np.mean(values))) + (f" ± {form.format(half)}" if len(values) > 1 else "")
