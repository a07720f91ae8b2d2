"""Two encoders for two jobs of an image: one for images that are looked at, one for images that are made (Janus, BAGEL: SigLIP beside a VAE).

In: any picture, decoded once and prepared twice. Out: two encoded datasets of the same ids, shards and rows, `<output>/context` and
`<output>/target` (`encode/dual.py`); a mixture names both, and an image's loss bit selects one. Between loading and encoding the two pictures
of an image travel as one row of bytes, so that the job's steps are those of a single encoder.
"""

from __future__ import annotations

from math import lcm
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from encode.encoder import Grid, ImageEncoder, Machine
from pipelines.format.document import PartOf

SIDES = ("context", "target")


class Dual(ImageEncoder):
    """`context`: for images without loss; `target`: for images with loss. Batch and dtype are said of each."""

    batch: int = Field(1, exclude=True)  # of which both have whole ones
    dtype: Literal["auto", "f32", "bf16"] = Field("auto", exclude=True)
    context: Annotated[Any, PartOf("encode.encoders")]
    target: Annotated[Any, PartOf("encode.encoders")]

    @model_validator(mode="before")
    @classmethod
    def _said_of_each(cls, value: Any) -> Any:
        for key in ("batch", "dtype"):
            if isinstance(value, dict) and key in value:
                raise ValueError(f"`{key}` is said of each of the two encoders")
        return value

    @field_validator(*SIDES)
    @classmethod
    def _single(cls, value: Any) -> Any:
        if not isinstance(value, ImageEncoder) or isinstance(value, Dual):
            raise ValueError("each of the two is an image encoder, such as siglip2 or sd_vae")
        return value

    @model_validator(mode="after")
    def _whole_batches(self) -> Dual:
        object.__setattr__(self, "batch", lcm(*(encoder.batch for encoder in self.sides().values())))
        return self

    def sides(self) -> dict[str, ImageEncoder]:
        """Both, by name."""
        return {name: getattr(self, name) for name in SIDES}

    def grid(self) -> Grid:
        """What an image takes in both, as one grid of about as many bytes: for the size of parts, and of no picture's form."""
        small, large = sorted((encoder.grid() for encoder in self.sides().values()), key=lambda g: g.channels)
        pixels = small.height * small.width + large.height * large.width
        return Grid(1, pixels, large.tokens + -(-small.tokens * small.channels // large.channels), large.channels)

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> the two pictures, flat and one after the other: uint8 [bytes]."""
        return np.concatenate([encoder.picture(pixels).reshape(-1) for encoder in self.sides().values()])

    def apart(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [n, bytes], as `picture` gives them -> by side, uint8 [n, height, width, 3]."""
        out, at = {}, 0
        for name, encoder in self.sides().items():
            grid = encoder.grid()
            size = grid.height * grid.width * 3
            out[name] = pictures[:, at : at + size].reshape(-1, grid.height, grid.width, 3)
            at += size
        assert at == pictures.shape[1], f"{pictures.shape[1]} bytes an image, two pictures have {at}"
        return out

    def preprocessing(self) -> dict[str, Any]:
        return {name: encoder.preprocessing() for name, encoder in self.sides().items()}

    def machine(self, device: str | None = None) -> Machine:
        """The one that a network of either needs: they share a worker."""
        needed = [encoder.machine(device) for encoder in self.sides().values()]
        return next((m for m in needed if m.kind != "any"), needed[0])

    def identity(self) -> dict[str, Any]:
        return {name: encoder.identity() for name, encoder in self.sides().items()}
