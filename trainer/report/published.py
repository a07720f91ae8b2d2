"""What the paper published where it has the same experiment, to stand beside ours, marked as another scale and as how well it is known.

    published(experiment, arms, metric, split)    → the tables of published.json that have at least two of these arms, under our arms' names

Tong, Fan, Nguyen et al., "Beyond Language Modeling: An Exploration of Multimodal Pretraining", arXiv 2603.03276 (2026). Its models are a thousand
times larger and its benchmarks other ones, so only the *order* of arms can be set beside a small run. `basis`: printed (a number in a figure or
table), digitised (measured on the authors' figures, about 0.3 % of the axis), quoted (told by readers of the paper). Arms meet by name,
spelling apart: capitals and punctuation do not count, and the aliases of the file do; `a|b` in the file is one arm under either name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from trainer.report.evidence import Evidence

BASIS = {
    "printed": "printed in a figure or table",
    "digitised": "measured on the figure, about 0.3 % of its axis",
    "quoted": "told by readers of the paper",
}


@dataclass(frozen=True, slots=True)
class Published:
    """One table of the paper: `values` by our arms' names, in the paper's order. `shown`: what the values are, where not the metric's own.
    `also`: the paper's own benchmark, where `metric` is what stands for it here."""

    metric: str
    split: str | None
    name: str
    better: str
    basis: str
    where: str
    values: dict[str, float]
    shown: str | None = None
    chance: float | None = None
    also: str | None = None

    @property
    def source(self) -> str:
        """Where it is from and how well it is known, in words."""
        return f"{table()['source']}, {self.where}: {BASIS[self.basis]}"

    def order(self) -> list[str]:
        """Arms from best to worst; equal ones in the order of the paper."""
        return sorted(self.values, key=lambda a: self.values[a] * (1 if self.better == "lower" else -1))


@cache
def table() -> dict[str, Any]:
    """The packaged file."""
    return dict(json.loads(resources.files("trainer.report").joinpath("published.json").read_text()))


def published(experiment: str | None, arms: list[str], metric: str | None = None, split: str | None = None) -> list[Published]:
    """The paper's tables of an experiment that name at least two of these arms; of one metric, of one split (`set:notes` meets `set`)."""
    out = []
    for entry in table()["experiments"].get(experiment or "", []):
        official = metric is not None and entry.get("also") == metric  # the paper's own benchmark, run by its own scorer
        if not official and ((metric is not None and entry["metric"] != metric) or not _same_split(entry["split"], split)):
            continue
        known = {_plain(name): value for names, value in entry["values"].items() for name in names.split("|")}
        values = {arm: known[_plain(arm)] for arm in arms if _plain(arm) in known}
        if len(values) > 1:
            inside = {_plain(a): a for a in values}
            ordered = {inside[k]: v for k, v in known.items() if k in inside}
            out.append(Published(**entry | {"values": ordered}))
    return out


def of(evidence: Evidence, metric: str | None = None, split: str | None = None) -> list[Published]:
    """The paper's tables for this ablation, by the `experiment` its document names, else by its name and arms."""
    return published(experiment(evidence), evidence.arms, metric, split)


def experiment(evidence: Evidence) -> str | None:
    """E1 to E13; an ablation of VQA arms as in Figure 9 is E7 without saying so."""
    named = evidence.card.get("recipe", {}).get("experiment")
    if named:
        return str(named)
    return "E7" if len({"vqa20", "vqa100"} & set(evidence.arms)) == 2 else None


def _same_split(theirs: str | None, ours: str | None) -> bool:
    return theirs is None or ours is None or theirs == ours.partition(":")[0]


def _plain(arm: str) -> str:
    """An arm's name with spelling taken away: parts between + in order, each by the alias it has."""
    parts = [re.sub(r"[^a-z0-9.+]", "", p.lower()) for p in arm.split("+")]
    return "+".join(sorted(_alias(p) for p in parts))


def _alias(part: str) -> str:
    word, amount = re.fullmatch(r"(.*?)([\d.]*)", part).groups()  # type: ignore[union-attr]
    same = {re.sub(r"[^a-z0-9]", "", s): name for name, others in table()["aliases"].items() for s in (name, *others)}
    return same.get(part) or f"{same.get(word, word)}{amount}"
