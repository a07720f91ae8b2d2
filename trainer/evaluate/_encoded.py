"""A plan's datasets for evaluations of a run whose latents are not stored: where they read latents of one picture, it is encoded now.

In: a plan and the encoder that stands beside its reader. Out: datasets whose `array` gives latents of pictures too. One picture costs a padded batch,
so pictures asked for again (by a control with another question's image) are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Segment
from trainer.pictures import Pictures

KEPT = 1024  # latents of pictures: 1.2 GB of 256 x 1152


class Encoded(Dataset):
    """A dataset of `storage: none` as if its latents lay there. What is stored is read as ever."""

    def __init__(self, dataset: Dataset, pictures: Pictures) -> None:
        super().__init__(dataset.path, dataset.card)
        self._latents = lru_cache(maxsize=KEPT)(self._encode)
        self._pictures = pictures

    def array(self, i: int, segment: Segment) -> Any:
        """See Dataset.array."""
        if segment.kind != "latents" or segment.dtype in codec.CODECS:
            return super().array(i, segment)
        return self._latents(i, segment.offset or 0, segment.nbytes or 0)

    def _encode(self, i: int, offset: int, nbytes: int) -> np.ndarray:
        try:
            picture = self._pictures.encoder.read(bytes(self.slice(i, "data", offset, nbytes)))
        except Reject as e:
            raise InputError("a picture of an evaluation cannot be decoded", where=f"{self.path}, shard {i}", found=f"{e.reason} {e.detail}".strip(),
                             next="pipelines verify --deep on the curated dataset") from e  # fmt: skip
        return np.asarray(self._pictures.encode(picture[None])[0])
