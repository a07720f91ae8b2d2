"""The `features` service: pictures -> one vector each, in the space of a frozen encoder, for distances between sets of pictures.

In: pictures uint8 [H, W, 3] and an encoder as an encode recipe names it, prepared as that encoder prepares pictures. Out: the mean over its tokens.
`inception` is not an encoder one would train on, and prepares pictures its own way: see inception.py. Loaded once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from encode.encoder import ImageEncoder
from encode.memory import loaded
from pipelines.format.document import PartOf, canon
from pipelines.format.errors import InputError


def features(pictures: Sequence[np.ndarray], space: dict[str, Any]) -> np.ndarray:
    """n pictures -> float32 [n, D]."""
    found: np.ndarray = _opened(canon(space).decode())(pictures)
    return found


@lru_cache(maxsize=1)
def _opened(space: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    ((name, fields),) = json.loads(space).items()
    if name == "inception":
        from encode.inception import Inception

        return Inception.model_validate(fields or {}).load()
    encoder = PartOf("encode.encoders").find(name).model_validate(fields or {})
    if not isinstance(encoder, ImageEncoder):
        raise InputError("this is no image encoder", where="space", found=name)
    network = loaded(encoder)
    return lambda pictures: network.encode(np.stack([encoder.picture(p) for p in pictures])).mean(axis=1)
