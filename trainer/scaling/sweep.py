"""All laws of one sweep: per family and modality the frontier (optima and power laws) and L(N, D), and what follows from two of them together.

In: `Measured` runs. Out: `Laws`, which figures and tables of a report, and scaling.json, are made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from trainer.scaling.draws import Estimate, Floats
from trainer.scaling.parametric import Law, fit_with_intervals
from trainer.scaling.points import Measured, by_budget, columns
from trainer.scaling.powers import Frontier, contrast, frontier

TIMES = (100.0, 1000.0)  # the paper's 1B to 100B and to 1T


@dataclass(frozen=True, slots=True)
class Laws:
    """By (family, modality), in the order of the runs. both: L(N, D_own, D_other). failed: why a parametric law could not be fitted, of `laws` and,
    with a third word "both", of `both`."""

    frontiers: dict[tuple[str, str], Frontier]
    laws: dict[tuple[str, str], Law]
    both: dict[tuple[str, str], Law]
    failed: dict[tuple[str, ...], str]

    @property
    def families(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(f for f, _ in self.frontiers))

    @property
    def modalities(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(m for _, m in self.frontiers))


def laws(runs: Sequence[Measured], key: int = 0, draws: int = 1000, refits: int = 200) -> Laws:
    """Everything that can be fitted; what cannot is named with its reason. Deterministic in runs and key."""
    return _laws(tuple(runs), key, draws, refits)


@lru_cache(maxsize=4)
def _laws(runs: tuple[Measured, ...], key: int, draws: int, refits: int) -> Laws:
    found: dict[tuple[str, str], Frontier] = {}
    fitted: dict[tuple[str, str], Law] = {}
    both: dict[tuple[str, str], Law] = {}
    failed: dict[tuple[str, ...], str] = {}
    for family in dict.fromkeys(r.family for r in runs):
        for modality in dict.fromkeys(m for r in runs for m in r.losses):
            if not any(r.family == family and modality in r.losses for r in runs):
                continue
            some = by_budget(runs, family, modality)
            # One key for both modalities: they share runs, so residual draws are paired run by run.
            found[family, modality] = frontier(some, key, draws)
            try:
                fitted[family, modality] = fit_with_intervals(**columns(runs, family, modality), draws=refits, key=key)
            except ValueError as e:
                failed[family, modality] = str(e)
            if any(r.own for r in runs):
                try:
                    both[family, modality] = fit_with_intervals(**columns(runs, family, modality, own=True), draws=refits, key=key)
                except ValueError as e:
                    failed[family, modality, "both"] = str(e)
    return Laws(found, fitted, both, failed)


@dataclass(frozen=True, slots=True)
class Asymmetry:
    """Language against vision in one family. gap: a_language - a_vision. power: of N in the data ratio's growth, b_v/a_v - b_l/a_l. growth: times →
    by how much the ratio of vision to language data grows. chance: how often draws say gap > 0."""

    gap: Estimate
    power: Estimate
    growth: dict[float, Estimate]
    chance: float


def asymmetry(found: Laws, family: str) -> Asymmetry | None:
    """What vision asks for beyond language as models grow; None where either has no power law."""
    vision, language = found.frontiers.get((family, "vision")), found.frontiers.get((family, "language"))
    if vision is None or language is None:
        return None
    gap = contrast(vision, language, lambda v, l: l[:, 0] - v[:, 0])
    exponent = contrast(vision, language, _power)
    if gap is None or exponent is None:
        return None
    grown = {t: contrast(vision, language, lambda v, l, t=t: t ** _power(v, l)) for t in TIMES}  # type: ignore[misc]
    drawn = language.exponents[:, 0] - vision.exponents[:, 0]
    drawn = drawn[np.isfinite(drawn)]
    chance = float((drawn > 0).mean()) if len(drawn) else float("nan")
    return Asymmetry(gap, exponent, {t: g for t, g in grown.items() if g is not None}, chance)


def _power(vision: Floats, language: Floats) -> Floats:
    return np.asarray(vision[:, 1] / vision[:, 0] - language[:, 1] / language[:, 0])


def against(found: Laws, modality: str, first: str = "dense") -> list[dict[str, Any]]:
    """Other families against the first at equal FLOPs: at each budget that both laws span, active size, tokens and loss of the optima. Budgets need
    not be the same: values come from the laws, losses from those budgets where both have an optimum."""
    rows: list[dict[str, Any]] = []
    base = found.frontiers.get((first, modality))
    for family in found.families:
        other = found.frontiers.get((family, modality))
        if family == first or base is None or other is None:
            continue
        if base.size is None or other.size is None or base.tokens is None or other.tokens is None:
            continue
        low, high = max(base.size.low, other.size.low), min(base.size.high, other.size.high)
        losses = [{o.budget: o.loss for o in f.optima if o.reason is None} for f in (base, other)]
        for budget in sorted({low, high, *(b for b in losses[1] if low <= b <= high)} if low <= high else ()):
            both = budget in losses[0] and budget in losses[1]
            rows.append({"family": family, "modality": modality, "budget": budget,
                         "size": float(other.size.at(budget) / base.size.at(budget)),
                         "tokens": float(other.tokens.at(budget) / base.tokens.at(budget)),
                         "loss": losses[1][budget] - losses[0][budget] if both else None})  # fmt: skip
    return rows
