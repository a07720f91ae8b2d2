"""What an IsoFLOP sweep says: the plan and what was spent, optima, power laws beside the paper's, the data ratio at other sizes, L(N, D), dense
against sparse.

The paper's exponents (arXiv 2603.03276, E13) stand beside ours as those of another scale; what may be expected to carry over is the *ordering*,
that vision asks for less model and more data than language (a_vision < a_language), and its probability is shown. A ratio of data is growth
from one model size to another, never an absolute mixture.
"""

from __future__ import annotations

import math
from typing import Any

from pipelines.format.document import Part
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.scaling.isoflop import Point, said
from trainer.scaling.points import Measured, measured, planned
from trainer.scaling.published import EXPONENTS
from trainer.scaling.sweep import Laws, against, asymmetry, laws


class IsoflopLaw(Part):
    """key: of the resamples."""

    key: int = 0

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """One row a family and modality: exponents with intervals, budgets used and not, the parametric law; one a family: the asymmetry."""
        found = self._laws(evidence)[2]
        return [] if found is None else rows(found)

    def answers(self, evidence: Evidence) -> list[str]:
        """What the sweep says, a sentence a family."""
        found = self._laws(evidence)[2]
        return [] if found is None else [_sentence(found, family) for family in found.families]

    def section(self, evidence: Evidence) -> Markup | None:
        """The tables."""
        points, runs, found = self._laws(evidence)
        if found is None:
            return None
        return tag("section", tag("h2", "Laws of the sweep"), _plan(points, runs), *tables(found), id="isoflop-law")

    def _laws(self, evidence: Evidence) -> tuple[dict[str, Point], list[Measured], Laws | None]:
        points = planned(evidence)
        runs = measured(evidence, points)
        return points, runs, laws(runs, self.key) if runs else None


def rows(found: Laws) -> list[dict[str, Any]]:
    """The laws as plain values; NaN never appears: what is not known is null."""
    out: list[dict[str, Any]] = []
    for (family, modality), front in found.frontiers.items():
        row: dict[str, Any] = {"family": family, "modality": modality, "budgets": [o.budget for o in front.optima if o.reason is None],
                               "missing": {said(c): why for c, why in front.missing.items()}}  # fmt: skip
        for name, law in (("a", front.size), ("b", front.tokens)):
            if law is not None:
                row[name] = _plain(law.exponent)
                row[f"coefficient_{name}"] = law.coefficient
        if (fitted := found.laws.get((family, modality))) is not None:
            row["parametric"] = {k: _plain(v) for k, v in (fitted.intervals or {}).items() if k != "worth"}
        else:
            row["parametric_missing"] = found.failed.get((family, modality))
        if (both := found.both.get((family, modality))) is not None:
            row["own_and_other"] = {k: _plain(v) for k, v in (both.intervals or {}).items()}
        elif why := found.failed.get((family, modality, "both")):
            row["own_and_other_missing"] = why
        if (family, modality) in EXPONENTS:
            row["paper_a"], row["paper_b"] = EXPONENTS[family, modality]
        out.append(row)
    for family in found.families:
        if (two := asymmetry(found, family)) is not None:
            growth = {f"{t:g}": _plain(g) for t, g in two.growth.items()}
            out.append({"family": family, "gap": _plain(two.gap), "power": _plain(two.power), "growth": growth, "language_above_vision": two.chance})
    return out + [r for m in found.modalities for r in against(found, m)]


def _plain(e: Any) -> dict[str, float | None]:
    return {k: (v if math.isfinite(v) else None) for k, v in (("value", e.value), ("low", e.low), ("high", e.high), ("error", e.error))}


def _sentence(found: Laws, family: str) -> str:
    """How a family's optimum grows, and whether vision's does so more slowly."""
    parts, without = [], []
    for (name, modality), front in found.frontiers.items():
        if name == family and front.size is not None:
            parts.append(f"{modality} N_opt ~ C^a with a = {front.size.exponent}, from {front.size.points} budgets")
        elif name == family:
            without.append(modality)
    two = asymmetry(found, family)
    if two is not None:
        parts.append(f"vision's grows more slowly than language's in {100 * two.chance:.0f} % of resamples")
    if without:
        parts.append(f"no law for {' and '.join(without)}: fewer than two budgets have a minimum inside the ladder")
    return f"{family}: {'; '.join(parts)}."


def tables(found: Laws) -> list[Markup]:
    """Optima, exponents, asymmetry, L(N, D), families against each other."""
    made = [_optima(found), _exponents(found), _asymmetry(found), _parametric(found), _families(found)]
    return [m for m in made if m is not None]


def _plan(points: dict[str, Point], runs: list[Measured]) -> Markup:
    body = []
    for arm, p in points.items():
        own = [r for r in runs if r.arm == arm]
        read = sum(r.d for r in own) / len(own) if own else None
        spent = [r.flops for r in own if r.flops]
        body.append([arm, f"{p.budget:.3g}", _n(p.active), _n(p.embedding), _n(p.total), f"{p.sparsity:g}", _n(p.tokens), _n(read), _n(p.tokens_6nd),
                     f"{sum(spent) / len(spent) / p.budget:.3f}" if spent else None, f"{p.lr:g}", str(p.batch), f"{p.steps:,}"])  # fmt: skip
    header = ["arm", "C, FLOPs", "N active", "embedding", "all", "sparsity", "D planned", "D read", "C / 6N", "spent / C", "LR", "batch", "steps"]
    note = "N: active non-embedding parameters; D: payload tokens by the trainer's own count of FLOPs, C / 6N beside it; spent: forward and backward."
    return tag("details", tag("summary", f"The {len(points)} arms: sizes, tokens, rates"), table(header, body, note))


def _optima(found: Laws) -> Markup | None:
    body = []
    for (family, modality), front in found.frontiers.items():
        known = {o.budget for o in front.optima}
        for o in front.optima:
            what = [_n(o.n), _n(o.d), f"{o.loss:.4g}"] if o.reason is None else [None, None, tag("span", o.reason, class_="weak")]
            body.append([f"{family} {modality}", f"{o.budget:.3g}", str(o.runs), *what, f"{o.spread:.2g}"])
        body += [[f"{family} {modality}", f"{c:.3g}", None, None, None, tag("span", why, class_="weak"), None]
                 for c, why in front.missing.items() if c not in known]  # fmt: skip
    caption = "The minimum of each budget's parabola in log N. Only minima inside the ladder count. Spread: of runs about the parabola."
    return table(["", "C, FLOPs", "runs", "N_opt", "D_opt", "loss there", "spread"], body, caption) if body else None


def _exponents(found: Laws) -> Markup | None:
    body = []
    for key, front in found.frontiers.items():
        if front.size is not None and front.tokens is not None:
            paper = EXPONENTS.get(key)
            body.append([" ".join(key), str(front.size.points), str(front.size.exponent), str(front.tokens.exponent),
                         f"{paper[0]:g}, {paper[1]:g}" if paper else None])  # fmt: skip
    if not any(f.optima for f in found.frontiers.values()):
        return None
    if not body:
        return tag("p", "No power law: fewer than two budgets have a minimum inside.", class_="bad")
    caption = "N_opt ~ C^a and D_opt ~ C^b, 95 % intervals from resampled runs. The paper's stand at 6e18 to 1e21 FLOPs: another scale."
    return table(["", "budgets", "a", "b", "the paper's a, b (another scale)"], body, caption)


def _asymmetry(found: Laws) -> Markup | None:
    body = []
    for family in found.families:
        two = asymmetry(found, family)
        if two is not None:
            body.append([family, str(two.gap), f"{100 * two.chance:.0f} %", str(two.power), *(str(g) for g in two.growth.values())])
    if not body:
        return None
    caption = (
        "Vision against language. Data ratio: vision's compute-optimal tokens over language's grow as N^(b_v/a_v - b_l/a_l); growth from any size to "
        "one 100 or 1,000 times as large, not the ratio itself. The paper says 14x and 51x, from N^0.57."
    )
    header = ["family", "a_language - a_vision", "resamples with the paper's ordering", "power of N", "growth at 100x", "growth at 1,000x"]
    return table(header, body, caption)


def _parametric(found: Laws) -> Markup | None:
    body: list[list[Any]] = []
    for key, law in found.laws.items():
        some = law.intervals or {}
        body.append([" ".join(key), str(law.runs), *(str(some.get(k)) for k in ("E", "alpha", "beta", "a"))])
    failed = {k: why for k, why in found.failed.items() if len(k) == 2}
    body += [[" ".join(key), None, tag("span", why, class_="weak"), None, None, None] for key, why in failed.items()]
    for key, law in found.both.items():
        some = law.intervals or {}
        name = f"{' '.join(key)}, own and other tokens: worth {some.get('worth')}"
        body.append([name, str(law.runs), *(str(some.get(k)) for k in ("E", "alpha", "beta")), None])
    caption = (
        "L(N, D) = E + A / N^alpha + B / D^beta over all runs, Huber's loss; a = beta / (alpha + beta) is its N_opt ~ C^a. E 0: not told from 0. "
        "No bound: the exponent ends at the edge of the search."
    )
    return table(["", "runs", "E", "alpha", "beta", "a"], body, caption) if body else None


def _families(found: Laws) -> Markup | None:
    body = []
    for modality in found.modalities:
        for r in against(found, modality):
            loss = None if r["loss"] is None else f"{r['loss']:+.4g}"
            body.append([f"{r['family']} {modality}", f"{r['budget']:.3g}", f"{r['size']:.3g}", f"{r['tokens']:.3g}", loss])
    caption = "Against dense models at equal FLOPs, at each one's optimum: active size and tokens over the dense one's, and the loss less its."
    return table(["", "C, FLOPs", "N active, of dense", "D, of dense", "loss - dense"], body, caption) if body else None


def _n(value: float | None) -> str | None:
    """1.23B, 45.6M, 789K."""
    if value is None:
        return None
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
