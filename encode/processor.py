"""A published image processor (`preprocessor_config.json`) without torchvision: the same pixels, computed in two halves.

In: the processor's settings. Out: a uint8 picture made on a CPU worker (resize by the named Pillow kernel, centre crop), and the numbers
`value * scale - mean, / std` that the device applies. The processors of transformers resize in uint8 too, so the cut between the halves
loses nothing, and a batch travels to the device as bytes, a quarter of the float size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.format.errors import InputError
from pipelines.media import images

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbering, which the files use


@dataclass(frozen=True, slots=True)
class Processor:
    """Either `height` and `width` (both sides stretched), or `short` (shortest side, ratio kept); then the middle `crop`, if any."""

    height: int
    width: int
    short: int | None
    filter: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [height, width, 3]."""
        if self.short is None:
            return images.stretch(pixels, self.height, self.width, self.filter)
        h, w = pixels.shape[:2]
        # The long side is cut down to a whole number, not rounded: so does transformers.
        new = (self.short, int(self.short * w / h)) if h <= w else (int(self.short * h / w), self.short)
        pixels = images.stretch(pixels, *new, self.filter)
        top, left = (new[0] - self.height) // 2, (new[1] - self.width) // 2
        return pixels[top : top + self.height, left : left + self.width]

    def numbers(self, device: str) -> Callable[[Any], Any]:
        """The other half, on the device: a function from a uint8 tensor [B, height, width, 3] to float32 [B, 3, height, width]."""
        import torch

        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))

        def normalised(pictures: Any) -> Any:
            # Rescaled in float64 and rounded once, as the processor does, so that the input is the same to the last bit.
            return ((pictures.permute(0, 3, 1, 2).double() * self.scale).float() - mean) / std

        return normalised

    def describe(self) -> dict[str, Any]:
        """For the fingerprint."""
        sides = {"height": self.height, "width": self.width, "short": self.short, "filter": self.filter}
        return {**sides, "scale": self.scale, "mean": list(self.mean), "std": list(self.std)}


def read_processor(settings: dict[str, Any], size: int | None, where: str) -> Processor:
    """The settings of a file, `size` replacing the sides when given. InputError for a step that this cannot do exactly."""
    settings = settings.get("image_processor", settings)
    if settings.get("do_pad"):
        raise InputError("this image processor pads, which is not supported", where=where)
    sides, crop = settings.get("size", {}), settings.get("crop_size", {})
    sides = {"height": sides, "width": sides} if isinstance(sides, int) else dict(sides)
    crop = ({"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)) if settings.get("do_center_crop") else {}
    short = sides.get("shortest_edge")
    final = crop or sides
    if "height" not in final or "width" not in final or (crop and not short):
        raise InputError("the image processor does not lead to one fixed size", where=where, found={"size": sides, "crop_size": crop})
    height, width = int(final["height"]), int(final["width"])
    if size is not None:
        short = None if short is None else round(short * size / min(height, width))
        height = width = size
    if short is not None and short < max(height, width):
        raise InputError("the crop is larger than the resized image", where=where, found=f"short side {short}, crop {height} x {width}")
    normalise = settings.get("do_normalize", True)
    mean, std = (tuple(settings[k]) if normalise else (fill,) * 3 for k, fill in (("image_mean", 0.0), ("image_std", 1.0)))
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    return Processor(height, width, short, FILTERS[int(settings.get("resample", 3))], scale, mean, std)
