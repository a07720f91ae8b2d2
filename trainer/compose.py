"""What composing a document needs of its layout, found once per shape: where text goes, where it is predicted, which segments are images.

In: a layout (mixtures/layout.py). Out: positions and offsets as plain numbers and index arrays, so that a document of a known shape costs a few
copies. A shape is everything that a layout depends on: the record's segments without their bytes, the span, and its source's rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mixtures.layout import LATENT, TEXT, Layout

SHAPES_KEPT = 2048  # 25 bytes a position and some more: 2,048 of 500 positions are 40 MB


class Shape(NamedTuple):
    """A layout, and what is derived from it. Arrays are shared and read-only."""

    laid: Layout
    text: list[tuple[int, int, int, int]]  # runs: segment, first position, last + 1, offset in the segment's ids
    tokens: np.ndarray  # i32[L]: structure ids, PAD at latent slots, 0 where text goes
    target: np.ndarray  # i32[L]: all -100
    predictor: np.ndarray  # positions that predict
    predicted: np.ndarray  # and those that they predict
    images: list[int]  # segments, in order of appearance


def shape_of(laid: Layout, pad: int, ignored: int) -> Shape:
    """The shape of a layout."""
    at = np.flatnonzero(laid.kind == TEXT)
    breaks = np.flatnonzero((np.diff(laid.segment[at]) != 0) | (np.diff(at) != 1)) + 1
    text = []
    for run in np.split(at, breaks) if len(at) else []:
        first = int(run[0])
        text.append((int(laid.segment[first]), first, first + len(run), int(laid.offset[first])))
    predictor = np.flatnonzero(laid.is_target[1:] & (laid.turn[1:] == laid.turn[:-1]))
    tokens = np.where(laid.kind == LATENT, np.int32(pad), laid.token).astype(np.int32)
    return Shape(laid, text, tokens, np.full(len(laid), ignored, np.int32), predictor, predictor + 1, laid.image_segment.tolist())


class Shapes:
    """Shapes by key; the one that was made first goes when there are too many."""

    def __init__(self, kept: int = SHAPES_KEPT) -> None:
        self._kept = kept
        self._found: dict[tuple[object, ...], Shape] = {}

    def get(self, key: tuple[object, ...], make: Callable[[], Shape]) -> Shape:
        """The shape of this key."""
        found = self._found.get(key)
        if found is None:
            found = make()
            while len(self._found) >= self._kept:
                self._found.pop(next(iter(self._found)))
            self._found[key] = found
        return found
