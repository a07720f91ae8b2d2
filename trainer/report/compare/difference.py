"""Is an arm better than another? Differences paired by seed and item, with Holm's correction over the arms asked about.

    compare: [{difference: {metric: vqa, of: [vqa20+text80, vqa20+video80], against: vqa20}}]

E7's transfer is s(20 + 80 X) − s(20), its substitution s(20 + 80 X) − s(100) and − s(20 × 5): three of these, or one with `against` a list. Holm
runs over `of` for each arm of `against`: they are one family each, since each is one question asked of several X.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.format.document import Part
from trainer.report.compare._shown import LEVEL, P_NOTE, SEED_NOTE, block, interval_said, missing, p_said, shared_said, title
from trainer.report.encoders import unlike
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag
from trainer.report.measured import NOTHING, paired, said_resampled
from trainer.report.measures import measure, part
from trainer.report.resampling import contrast, resample
from trainer.report.statistics import holm, sign_flip


class Difference(Part):
    """`of` (default: every other arm) − each of `against`, on one metric and split."""

    metric: str
    split: str = "held_out"
    of: list[str] = []
    against: str | list[str]

    def rows(self, evidence: Evidence) -> list[dict[str, Any]]:
        """A row a pair: means, difference, interval, p, p by Holm, p by signs, each seed's difference. Pairs that cannot be made have no row."""
        out = []
        for base, family in self.families(evidence.arms).items():
            pairs = [r for arm in family if (r := self._row(evidence, arm, base)) is not None]
            tested = [r for r in pairs if r["p"] is not None]
            for row, p in zip(tested, holm([r["p"] for r in tested]), strict=True):
                row |= {"p_holm": p, "holm_over": len(tested), "found": p < LEVEL}
            out += pairs
        return out

    def families(self, arms: Sequence[str]) -> dict[str, list[str]]:
        """Arm of `against` → the arms that are compared with it, of an ablation's `arms`: what Holm runs over."""
        return {base: [a for a in self._of(arms) if a != base] for base in self._against}

    @property
    def _against(self) -> list[str]:
        return [self.against] if isinstance(self.against, str) else self.against

    def _of(self, arms: Sequence[str]) -> list[str]:
        return self.of or [a for a in arms if a not in self._against]

    def _row(self, evidence: Evidence, arm: str, base: str) -> dict[str, Any] | None:
        if unlike(evidence, self.metric, [arm, base]) or (found := paired(evidence, [arm, base], self.metric, self.split)) is None:
            return None
        left, right = found.values(0), found.values(1)
        by_seed = [float(x) for x in left - right]
        row: dict[str, Any] = {"compare": "difference", "metric": self.metric, "split": self.split, "of": arm, "against": base}
        row |= {"of_mean": float(left.mean()), "against_mean": float(right.mean()), "mean": float((left - right).mean()), "by_seed": by_seed}
        row |= {"seeds": len(found.seeds), "n": found.n, "resampled": found.resampled, "low": None, "high": None, "p": None, "p_holm": None}
        row["shared"] = found.shared
        row |= {"p_signs": sign_flip(by_seed), "holm_over": 0, "found": False}
        if found.resampled != NOTHING:
            drawn = contrast(resample(found.arms, found.transform), [1, -1])
            if drawn.known:  # seeds that all differ by the same, without items, show nothing of how they would vary: the signs are all there is
                row["low"], row["high"] = drawn.interval()
                row["p"] = drawn.p()
        return row

    def answers(self, evidence: Evidence) -> list[str]:
        """What was found, in sentences."""
        m, rows = measure(self.metric), self.rows(evidence)
        return [s for base in self._against if (s := _sentence(f"{m.name}{part(self.split)}", m, base, [r for r in rows if r["against"] == base]))]

    def section(self, evidence: Evidence) -> Markup | None:
        """A table for each arm of `against`."""
        m, rows = measure(self.metric), self.rows(evidence)
        gone = missing(evidence, [*self._of(evidence.arms), *self._against])
        barred = unlike(evidence, self.metric, [*self._of(evidence.arms), *self._against])
        if not rows and not barred:
            return None
        unit = m.points or m.unit
        header = ["arm − arm", f"difference, {unit}" if unit else "difference", "95 % interval", "p", "p, Holm", "p by signs", "items", "each seed"]
        tables = []
        for base in self._against:
            cells = [_cells(m, r) for r in rows if r["against"] == base]
            if cells:
                tables.append(table(header, cells, f"{title(evidence, self.metric, self.split)}: over {base}"))
        over = max((r["holm_over"] for r in rows), default=0)
        note = f"{said_resampled(r['resampled'] for r in rows)} {P_NOTE} Holm: corrected for {over} arms compared. {SEED_NOTE} "
        note += f"Bold: Holm's p below 5 %.{shared_said(rows)}"
        better = {1: " More is better.", -1: " Less is better."}.get(m.sign, "")
        stop = tag("p", barred, class_="bad") if barred else None
        return block(f"Difference: {m.name}{part(self.split)}", [stop, *tables, tag("p", note + better, class_="caption")], gone)


def at_once(parts: Iterable[Any], metric: str, arms: Sequence[str]) -> int:
    """How many arms a document's comparisons hold against one, at the most, on a metric: what the smallest of their p is multiplied by."""
    asked = [p for p in parts if isinstance(p, Difference) and p.metric == metric]
    return max((sum(a in arms for a in family) for p in asked for base, family in p.families(arms).items() if base in arms), default=0) or 1


def _cells(m: Any, r: dict[str, Any]) -> list[Any]:
    mean = tag("strong" if r["found"] else "span", m.signed(r["mean"]))
    seeds = ", ".join(str(m.signed(x)) for x in r["by_seed"])
    shown = [p_said(r[k]) for k in ("p", "p_holm", "p_signs")]
    items = f"{r['n']:,}" if r["n"] else None
    return [f"{r['of']} − {r['against']}", mean, interval_said(m, r["low"], r["high"]), *shown, items, seeds]


def _sentence(name: str, m: Any, base: str, rows: list[dict[str, Any]]) -> str | None:
    """One sentence for one family: what is better, worse, and not told apart."""
    if not rows:
        return None
    unit = m.points or m.unit
    say = lambda r: f"{r['of']} ({m.signed(r['mean'])}{' ' + unit if unit else ''})"
    ups = [say(r) for r in rows if r["found"] and r["mean"] * (m.sign or 1) > 0]
    downs = [say(r) for r in rows if r["found"] and r["mean"] * (m.sign or 1) < 0]
    rest = [say(r) for r in rows if not r["found"] and r["p"] is not None]
    untested = [say(r) for r in rows if r["p"] is None and r["resampled"] == NOTHING]
    alike = [say(r) for r in rows if r["p"] is None and r["resampled"] != NOTHING]
    words = ("better", "worse") if m.sign else ("higher", "lower")
    parts = [f"{words[0]} than {base}: {', '.join(ups)}"] if ups else []
    parts += [f"{words[1]} than {base}: {', '.join(downs)}"] if downs else []
    parts += [f"not told apart from {base}: {', '.join(rest)}"] if rest else []
    parts += [f"not tested against {base}, for want of seeds and shared items: {', '.join(untested)}"] if untested else []
    parts += [f"not tested against {base}, since all seeds differ by the same and no items were kept: {', '.join(alike)}"] if alike else []
    return f"{name} — " + "; ".join(parts) + "."
