"""The smallest difference that this ablation could have found, from the spreads it measured: what a table of "not told apart" is worth."""

from __future__ import annotations

import numpy as np

from trainer.report.compare.difference import Difference, at_once
from trainer.report.encoders import unlike
from trainer.report.evidence import Evidence
from trainer.report.measured import BOTH, paired
from trainer.report.measures import measure
from trainer.report.resampling import resample
from trainer.report.statistics import smallest_difference


def detectable(evidence: Evidence, metric: str, split: str = "held_out") -> str | None:
    """In words with its unit: 80 % power at two-sided 5 %, from the seeds and items there are and the spreads of arms' differences from the first
    (pooled as variances); None with one arm or one seed, which shows nothing of how seeds differ. What seeds and items vary by together counts with
    the seeds, as in the intervals. Where the document compares several arms at once it is what Holm's hardest step would find, and that is said."""
    first, errors, items, n, seeds = evidence.arms[0], [], [], 0, len(evidence.seeds)
    for arm in evidence.arms[1:]:
        found = None if unlike(evidence, metric, [arm, first]) else paired(evidence, [arm, first], metric, split)
        if found is None or len(found.seeds) < 2:
            continue
        seeds = min(seeds, len(found.seeds))
        errors.append(float(np.var(found.values(0) - found.values(1), ddof=1)))
        if found.resampled == BOTH:
            influence = resample(found.arms, found.transform).influence
            d = influence[0] - influence[1]
            n = d.shape[1]
            noise = d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()
            together = float((noise**2).sum()) / ((d.shape[0] - 1) * max(1, n - 1))
            items.append(max(0.0, float(d.mean(axis=0).var(ddof=1)) - together / d.shape[0]))
    if not errors:
        return None
    whole = len(items) == len(errors)
    by_item = float(np.sqrt(np.mean(items))) if whole else 0.0
    asked = evidence.card.get("recipe", {}).get("compare") or []
    parts = [Difference.model_validate(part["difference"]) for part in asked if isinstance(part, dict) and "difference" in part]
    tests = at_once(parts, metric, evidence.arms)
    smallest = smallest_difference(seeds, n if whole else 0, float(np.sqrt(np.mean(errors))), by_item, tests)
    m = measure(metric)
    if not 0 < smallest < np.inf:
        return None
    said = f"{m.said(smallest)} {m.points or m.unit}".strip()
    return said if tests == 1 else f"{said} ({tests} arms compared at once)"
