"""Pictures that arms painted of the same held-out captions, side by side: the held-out picture first, then each arm's.

In: what `samples` with `pictures` kept beside a run. Nothing is measured here: it is for looking. The first seed of each arm that kept pictures is
shown; all arms painted the same captions from the same noise. A row wraps, so that twenty arms still fit a phone and a sheet.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.format.page import picture
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, tag

CAPTION = "First: the held-out picture. Then, by arm: sampled from its caption alone, which stands above. Arms start from the same noise."


def section(evidence: Evidence) -> Markup | None:
    """One row a caption, in the order of the first arm that kept pictures."""
    painted: dict[tuple[str, int], dict[str, bytes]] = {}  # caption and its how-manieth picture → arm → picture
    held_out: dict[tuple[str, int], bytes] = {}
    for arm in evidence.arms:
        before: Counter[str] = Counter()
        for row in _kept(evidence, arm):
            caption = str(row["caption"])
            key = caption, before[caption]
            before[caption] += 1
            painted.setdefault(key, {})[arm] = row["sampled"]
            if row.get("held_out"):
                held_out.setdefault(key, row["held_out"])
    if not painted:
        return None
    rows: list[Markup] = []
    for key, by_arm in painted.items():
        shown = [_one(held_out[key], "held out")] if key in held_out else []
        shown += [_one(jpeg, arm) for arm, jpeg in by_arm.items() if jpeg]
        rows += [tag("p", key[0]), tag("div", *shown, class_="pictures")]
    seeds = sorted({r.seed for r in evidence.runs.values() if r.pictures is not None and r.pictures.num_rows})
    said = f"{CAPTION} Seed {seeds[0]}." if len(seeds) == 1 else f"{CAPTION} The first seed of each arm."
    return tag("section", tag("h2", "Painted from held-out captions"), tag("p", said, class_="caption"), *rows, id="pictures")


def _kept(evidence: Evidence, arm: str) -> list[dict[str, Any]]:
    for seed in evidence.seeds:
        run = evidence.runs.get((arm, seed))
        if run is not None and run.pictures is not None and run.pictures.num_rows:
            return list(run.pictures.to_pylist())
    return []


def _one(jpeg: bytes, name: str) -> Markup:
    return tag("figure", picture(jpeg, name), tag("figcaption", name))
