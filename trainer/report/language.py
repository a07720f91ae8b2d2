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
        if splits:
            rows = [[arm, *(_cell(evidence.values(arm, metric, s), form) for s in splits)] for arm in evidence.arms]
            tables.append(table(["arm", *splits], rows, f"Held-out {name}, mean over seeds (± half the seed spread). Lower is better."))
    return tag("section", tag("h2", "Text and images held out"), *tables, id="language") if tables else None


def _cell(values: list[float], form: str) -> str | None:
    if not values:
        return None
    half = (max(values) - min(values)) / 2
    return form.format(float(np.mean(values))) + (f" ± {form.format(half)}" if len(values) > 1 else "")
