"""The paper's own values by arm for a figure's side panel, where it has the experiment: another scale, so grey and apart."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.report import paper
from trainer.report.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Published:
    """Values of the arms that the paper has, in `unit`, where they are from, and its chance line."""

    values: dict[str, float]
    unit: str
    source: str
    chance: float | None = None


def published(evidence: Evidence, metric: str, split: str) -> Published | None:
    """What the paper printed for this metric of this experiment; None when it has fewer than two of the arms."""
    if metric == "vqa" and split == "held_out":
        values = {a: v for a in evidence.arms if (v := paper.VQA_SYNERGY.get(a)) is not None}
        if len(values) > 1:
            return Published(values, paper.UNIT, paper.SOURCE, paper.CHANCE)
    return None
