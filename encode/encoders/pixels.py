"""Raw pixels as latents: the picture cut into patches, no weights, and exactly invertible (up to 8 bits).

In: any picture, resized to its centre square. Out: (size / patch)^2 tokens of patch * patch * 3 values in [-1, 1], patches in reading
order, within a patch rows, columns, channels. 224 px in patches of 14 gives the 256 x 588 of the paper's raw-pixel arm; 32 px in patches
of 8 gives 16 x 192, small enough to learn from in minutes on a CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from encode.encoder import Grid, ImageEncoder, Machine, Network
from pipelines.media import resizing


class Pixels(ImageEncoder):
    """`size` pixels a side, cut into patches of `patch` pixels a side."""

    size: int = Field(224, ge=1)
    patch: int = Field(14, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Pixels:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")
        return self

    def grid(self) -> Grid:
        return Grid(self.size, self.size, (self.size // self.patch) ** 2, self.patch * self.patch * 3)

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        return resizing.resize(pixels, self.size, "center_crop")

    def preprocessing(self) -> dict[str, Any]:
        return {"resize": "center_crop", "filter": "bicubic", "size": self.size, "range": [-1, 1]}

    def machine(self, device: str | None = None) -> Machine:
        return Machine("cpu", "f32", "any")  # one subtraction and one division: the same bits everywhere

    def network(self, machine: Machine) -> Network:
        return lambda pictures: partial(self.patches, pictures)

    def patches(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, tokens, channels]."""
        rows, p = self.size // self.patch, self.patch
        cut = pictures.reshape(-1, rows, p, rows, p, 3).swapaxes(2, 3).reshape(-1, rows * rows, p * p * 3)
        return cut / np.float32(127.5) - np.float32(1)

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        rows, p = self.size // self.patch, self.patch
        values = np.clip(np.rint((latents + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(values.reshape(len(values), rows, rows, p, p, 3).swapaxes(2, 3).reshape(len(values), self.size, self.size, 3))
