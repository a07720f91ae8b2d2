"""Which arms saw images through which encoder: errors in one encoder's latents say nothing about another's.

In: the encodings of the arms' plans. Out: why arms cannot be compared on a metric that lives in latent space, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.report.evidence import Evidence
from trainer.report.measures import measure


def encoder(evidence: Evidence, arm: str) -> str | None:
    """What made the latents that an arm takes loss on: its name and the first digits of its fingerprint; None when that is not known."""
    return next((r.encoders[0] for (name, _), r in evidence.runs.items() if name == arm and r.encoders), None)


def encoders(evidence: Evidence) -> list[str]:
    """Every encoder of the ablation, first seen first."""
    return list(dict.fromkeys(e for r in evidence.runs.values() for e in r.encoders))


def said(encoders: Iterable[str]) -> str:
    """Encoders by name; with their fingerprint where two have one name."""
    held = list(dict.fromkeys(encoders))
    names = [e.partition(" ")[0] for e in held]
    return ", ".join(n if names.count(n) == 1 else f"{n} {e.partition(' ')[2][:6]}" for n, e in zip(names, held, strict=True))


def unlike(evidence: Evidence, metric: str, arms: Iterable[str]) -> str | None:
    """Why these arms cannot be set side by side on this metric, or None when they can."""
    if measure(metric).comparable:
        return None
    asked, seen = set(arms), dict[str, str]()
    for arm in evidence.arms:
        if arm in asked and (e := encoder(evidence, arm)) is not None:
            seen.setdefault(e, arm)
    if len(seen) <= 1:
        return None
    named = ", ".join(f"{arm}: {e.partition(' ')[0]}" for e, arm in seen.items())
    return f"{measure(metric).name} is an error in an encoder's own latents, so it is not compared between arms of different encoders ({named})."
