"""Pictures that arms painted of held-out captions, each below the held-out picture that the caption is of.

In: what `samples` with `pictures` kept beside a run. Nothing is measured here: it is for looking. The first seed of each arm is shown; all arms
painted the same captions from the same noise.
"""

from __future__ import annotations

from pipelines.format.page import picture
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, tag

CAPTION = "Above: the held-out picture. Below: sampled from its caption alone, which stands beneath. Arms start from the same noise."


def section(evidence: Evidence) -> Markup | None:
    """One row of pairs an arm."""
    blocks: list[Markup] = []
    for arm in evidence.arms:
        run = next((evidence.runs[arm, s] for s in evidence.seeds if (arm, s) in evidence.runs), None)
        if run is not None and run.pictures is not None and run.pictures.num_rows:
            pairs = [_pair(row["caption"], row["held_out"], row["sampled"]) for row in run.pictures.to_pylist()]
            blocks += [tag("h3", f"{arm}, seed {run.seed}"), tag("div", *pairs, class_="pictures")]
    if not blocks:
        return None
    return tag("section", tag("h2", "Painted from held-out captions"), tag("p", CAPTION, class_="caption"), *blocks, id="pictures")


def _pair(caption: str, held_out: bytes, sampled: bytes) -> Markup:
    return tag("figure", picture(held_out, "held out"), picture(sampled, "sampled"), tag("figcaption", caption))
