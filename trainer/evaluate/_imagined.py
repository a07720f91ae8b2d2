"""Frames that a model imagines: roll-outs of many starts under many sequences of actions, side by side.

In: contexts and token ids of actions. Out: latents as stored, one frame an action, each made from the last frames alone as it was trained
(`generate/rollout.py`). What a frame begins with is a draw on the start, the name of the roll-out and its step, so batches change nothing.

Nothing is shared between two candidates of one start but the reading of the very first context, an eighth of a plan's contexts and one pass of some
thirty of its frame: not worth a cache of caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.format.errors import InputError
from trainer.generate.prompt import PAINT, Piece, Prompt


class Imagine(NamedTuple):
    """One roll-out: `id` (with `sample`) keys its noise, `context` are latents [n, C], `actions` token ids, one a frame."""

    id: str
    context: Sequence[np.ndarray]
    actions: Sequence[np.ndarray]
    sample: int = 0


def imagined(maker: Any, asked: Sequence[Imagine]) -> list[list[np.ndarray]]:
    """The frames of each roll-out, in order."""
    prompts = []
    for a in asked:
        pieces: list[Piece] = [*a.context]
        for ids in a.actions:
            pieces += [ids, PAINT]
        prompts.append(Prompt(a.id, tuple(pieces), sample=a.sample, text_as="action", window=len(a.context)))
    try:
        return [g.images for g in maker.generate(prompts)]
    except ValueError as e:
        raise InputError("a roll-out cannot be read", found=str(e)) from e


def normal(reader: Any, latents: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, tokens, C] in the units of the loss: normalised as in training, where it was. Predicting the mean then costs about 1."""
    whole = np.stack(latents).astype(np.float32)
    if reader.normaliser is None:
        return whole
    return np.asarray(reader.normaliser.apply(whole.reshape(-1, whole.shape[-1])).reshape(whole.shape))
