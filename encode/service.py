"""The `pictures` service: latents that a trainer holds -> pictures that a report can show. Nothing loads it unless an evaluation names it.

In: latents in the encoder's own units, the `encoders` of the card of the data they imitate, and a decoder as a decode recipe names it (none: the
encoder turns its own latents back). Out: JPEGs of our own making, small ones enlarged without smoothing; or PNGs, pixel for pixel; or the pixels,
for evaluations that measure them. The trainer meets no codec and no encoder: it finds this by its entry point.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from encode.decode import picture_size
from encode.decoder import Decoder, Decoding
from encode.encoder import ImageEncoder, opened
from encode.reconstruction.sheet import sized
from pipelines.format.document import PartOf
from pipelines.format.errors import InputError
from pipelines.media import images

QUALITY = 92


def pictures(
    latents: np.ndarray, encoders: dict[str, Any], decoder: dict[str, Any] | None = None, form: Literal["jpeg", "png", "array"] = "jpeg"
) -> list[Any]:
    """float32 [n, tokens, channels] -> n pictures: files, or with `array` uint8 [height, width, 3]."""
    encoder = opened(encoders["image"])
    if not isinstance(encoder, ImageEncoder):
        raise InputError("the card names no image encoder", found=encoders)
    chosen: Decoder | None = None
    if decoder is not None:
        ((name, fields),) = decoder.items()
        found = PartOf("encode.decoders").find(name).model_validate(fields or {})
        assert isinstance(found, Decoder)
        chosen = found
    picture_size(chosen, encoder)
    shown = encoder.pictures(latents) if chosen is None else Decoding(chosen, encoder).pictures(latents)
    if form == "array":
        return [np.ascontiguousarray(picture) for picture in shown]
    if form == "png":
        return [images.encode_png(np.ascontiguousarray(picture)) for picture in shown]
    return [images.encode_jpeg(np.ascontiguousarray(sized(picture)), QUALITY) for picture in shown]
