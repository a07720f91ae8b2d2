"""The `pictures` service: latents that a trainer holds -> pictures that a report can show. Nothing loads it unless an evaluation names it.

In: latents in the encoder's own units, the `encoders` of the card of the data they imitate, and a decoder as a decode recipe names it (none: the
encoder turns its own latents back). Out: JPEGs of our own making, small ones enlarged without smoothing; or PNGs, pixel for pixel; or the pixels.
The trainer meets no codec and no encoder: it finds this by its entry point.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from encode.decode import picture_size
from encode.decoder import Decoder, Decoding
from encode.encoder import ImageEncoder, opened
from encode.reconstruction.sheet import sized
from pipelines.format.document import PartOf, canon
from pipelines.format.errors import InputError
from pipelines.media import images

QUALITY = 92


def pictures(
    latents: np.ndarray, encoders: dict[str, Any], decoder: dict[str, Any] | None = None, form: Literal["jpeg", "png", "pixels"] = "jpeg"
) -> list[Any]:
    """float32 [n, tokens, channels] -> n pictures: bytes of files, or as `pixels` arrays uint8 [H, W, 3]."""
    encoder, chosen = _opened(canon(encoders["image"]).decode(), canon(decoder).decode())
    shown = encoder.pictures(latents) if chosen is None else chosen.pictures(latents)
    if form == "pixels":
        return [np.ascontiguousarray(picture) for picture in shown]
    if form == "png":
        return [images.encode_png(np.ascontiguousarray(picture)) for picture in shown]
    return [images.encode_jpeg(np.ascontiguousarray(sized(picture)), QUALITY) for picture in shown]


@lru_cache(maxsize=1)
def _opened(encoder: str, decoder: str) -> tuple[ImageEncoder, Decoding | None]:
    """Both ready for work. Kept, since evaluations ask for their pictures a few at a time, and a decoder's weights are read once."""
    made, asked = opened(json.loads(encoder)), json.loads(decoder)
    if not isinstance(made, ImageEncoder):
        raise InputError("the card names no image encoder", found=encoder)
    chosen: Decoder | None = None
    if asked is not None:
        ((name, fields),) = asked.items()
        found = PartOf("encode.decoders").find(name).model_validate(fields or {})
        assert isinstance(found, Decoder)
        chosen = found
    picture_size(chosen, made)
    return made, None if chosen is None else Decoding(chosen, made)
