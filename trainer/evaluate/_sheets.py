"""rollouts.html: some roll-outs to look at. A block a start: what was seen, what the model made of the true actions, of none, and of another's, and
what the simulator shows for the other's. Self-contained, no script; pictures are PNGs of latents turned back, none of bytes from data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.format import page, storage

NAME = "rollouts.html"
WIDTH = 96
WORDS = {
    "seen": "seen in truth", "made": "made of the true actions", "copy": "the present frame", "zero_action": "made of no move",
    "other_action": "made of another's actions", "simulated": "what those lead to",
}  # fmt: skip


def publish(out: str, seen: Any, found: Sequence[Any], rows: dict[str, list[list[np.ndarray]]], other: list[np.ndarray]) -> None:
    """Writes the page of the first starts, rows by name, in place of an earlier one."""
    blocks = [
        page.tag("p", "Latents turned back into pictures. A block begins with the frames that the model was given; the last is the present one.")
    ]
    for i, start in enumerate(found):
        blocks.append(page.tag("h2", start.item))
        strips = [_strip(seen, "given", list(start.context), [""] * len(start.context))]
        for name, frames in rows.items():
            if name != "copy":
                moves = other[i] if name in ("other_action", "simulated") else np.zeros_like(start.moves) if name == "zero_action" else start.moves
                strips.append(_strip(seen, WORDS.get(name, name), frames[i], [f"{dx:+.1f} {dy:+.1f} {np.degrees(a):+.0f}°" for dx, dy, a in moves]))
        blocks += strips
    storage.replace(storage.join(out, NAME), page.page("Roll-outs", *blocks).encode(), scratch=out)


def _strip(seen: Any, name: str, frames: list[np.ndarray], words: Sequence[str]) -> page.Html:
    figures = [
        page.tag("figure", page.picture(png, f"{name} {k + 1}", WIDTH), page.tag("figcaption", word))
        for k, (png, word) in enumerate(zip(seen.png(frames), words, strict=True))
    ]
    return page.join([page.tag("h3", name), page.tag("div", *figures, class_="strip")])
