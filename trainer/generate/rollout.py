"""Long rollouts of a world model: as many frames as there are actions, each made from the last few alone, as it was trained.

In: prompts with a `window`, such as four frames, an action, PAINT, an action, PAINT, … Out: what `Generator.generate` gives. A record of action-video
holds four frames, one action and one target, so a document with ten of each is nothing a model has seen. Here every image is made in a document of
its own: the last `window` images, given or made, the text after the last of them, then BOI. Rollouts go on side by side, one image each a round;
made frames go on as they are, never through storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trainer.generate.prompt import PAINT, Generated, Piece, Prompt

if TYPE_CHECKING:
    from trainer.generate.generator import Generator


def rolled(maker: Generator, prompts: Sequence[Prompt]) -> list[Generated]:
    """Prompts with and without a window, in their order."""
    for p in prompts:
        if p.window is not None and (p.window < 1 or p.tokens or p.images):
            raise ValueError(f"prompt {p.id}: a window is of at least 1 image, and what is made stands in the pieces (tokens 0, images 0)")
    plain = iter(maker.generate([p for p in prompts if p.window is None]))
    out = [Generated(p) if p.window is not None else next(plain) for p in prompts]
    going = [(g, list[Piece](), list(g.prompt.pieces)) for g in out if g.prompt.window is not None]
    step = 0
    while going := [(g, past, rest) for g, past, rest in going if PAINT in _marks(rest)]:
        asked = []
        for g, past, rest in going:
            until = _marks(rest).index(PAINT)
            past += rest[:until]
            del rest[: until + 1]
            asked.append(replace(g.prompt, id=f"{g.prompt.id}/{step}", pieces=(*_recent(past, g.prompt.window or 1), PAINT), window=None))
        for (g, past, _), made in zip(going, maker.generate(asked), strict=True):
            g.pieces += made.pieces
            past += made.pieces
        step += 1
    return out


def _marks(pieces: Sequence[Piece]) -> list[Piece | None]:
    """PAINT where it stands, None elsewhere: arrays compare by element."""
    return [p if p is PAINT else None for p in pieces]


def _recent(past: Sequence[Piece], window: int) -> list[Piece]:
    """The last `window` images and the text after them. Text between two frames of the past was the action that led from one to the other: records
    hold none of it."""
    images = [i for i, p in enumerate(past) if isinstance(p, np.ndarray) and p.ndim == 2]
    last = images[-1] if images else -1
    return [*(past[i] for i in images[-window:]), *past[last + 1 :]]
