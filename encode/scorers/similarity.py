"""Image-text similarity: the cosine of a picture's and a caption's embedding, as CLIP-style filtering thresholds it (LAION, DataComp).

In: images with captions. Out: a value per caption and the record's own, which is what a threshold asks for: with `captions: max` the best of them.
The scale is the model's own: 0.28 is strict for CLIP ViT-B/32 and means nothing for SigLIP, whose cosines of matching pairs lie around 0.1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from encode.scorer import Fold, Scorer, Sight, Values, folded
from encode.scoring.towers import Towers, tokenizer


class Similarity(Scorer):
    """`weights`: a local folder or hub id of a CLIP, SigLIP or SigLIP 2 model. `captions` says how the values of several captions become the
    record's."""

    reads: ClassVar[bool] = True
    weights: str
    captions: Fold = "max"

    def sight(self) -> Sight:
        return Towers(self.weights, self.batch, self.dtype)

    def own(self, values: list[float]) -> float:
        return folded(values, self.captions)

    def check(self) -> None:
        super().check()
        Towers(self.weights, self.batch, self.dtype).length()
        tokenizer(self.weights)

    def values(self, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> Values:
        assert said is not None
        a, b = seen.astype(np.float64), said.astype(np.float64)
        return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
