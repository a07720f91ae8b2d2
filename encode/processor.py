"""A published image processor (`preprocessor_config.json`) without torchvision: the same pixels, computed in two halves.

In: the processor's settings. Out: a uint8 picture made on a CPU worker (resize by the named Pillow kernel, centre crop), and the numbers
`value * scale - mean, / std` that the device looks up. The processors of transformers resize in uint8 too, so the cut between the halves
loses nothing, and a batch travels to the device as bytes, a quarter of the float size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encode import resampling
from pipelines.format.errors import InputError
from pipelines.media import images

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbering, which the files use

_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "do_center_crop": True}
# Processors whose steps are resize, perhaps a centre crop, rescale and normalise, with what a file that leaves a key out means by it. Other kinds
# crop by a ratio, pad, or rescale by an offset under the same names.
KINDS: dict[str, dict[str, Any]] = {
    "CLIP": {"resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, **_CLIP},
    "Bit": {"resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, **_CLIP},
    "Siglip": {"resample": 3, "size": 224, **_HALVES},
    "ViT": {"resample": 2, "size": 224, **_HALVES},
    "Beit": {"resample": 3, "size": 224, "crop_size": 224, **_HALVES},
}


@dataclass(frozen=True, slots=True)
class Processor:
    """Either `height` and `width` (both sides stretched), or `short` (shortest side, ratio kept); then the middle `crop`, if any. `exact`:
    resized by Pillow itself; otherwise by `resampling`, which is within a level of it."""

    height: int
    width: int
    short: int | None
    filter: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exact: bool = True

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [height, width, 3]."""
        stretch = images.stretch if self.exact else resampling.stretch
        if self.short is None:
            return stretch(pixels, self.height, self.width, self.filter)
        h, w = pixels.shape[:2]
        # The long side is cut down to a whole number, not rounded: so does transformers.
        new = (self.short, int(self.short * w / h)) if h <= w else (int(self.short * h / w), self.short)
        pixels = stretch(pixels, *new, self.filter)
        top, left = (new[0] - self.height) // 2, (new[1] - self.width) // 2
        return pixels[top : top + self.height, left : left + self.width]

    def table(self) -> NDArray[np.float32]:
        """What each level of each channel becomes: float32 [3, 256]. Rescaled in float64 and rounded once, as the processor does, so that the
        network's input is the same to the last bit."""
        levels = (np.arange(256, dtype=np.float64) * self.scale).astype(np.float32)
        mean, std = (np.array(v, np.float32)[:, None] for v in (self.mean, self.std))
        return (levels - mean) / std

    def numbers(self, device: str) -> Callable[[Any], Any]:
        """The other half, on the device: a function from a uint8 tensor [B, height, width, 3] to float32 [B, 3, height, width]."""
        import torch

        table = self.table()
        if device == "cpu":
            return lambda pictures: torch.from_numpy(_looked_up(table, pictures.numpy()))
        flat = torch.from_numpy(table).to(device).reshape(-1)
        first = torch.arange(0, 768, 256, dtype=torch.int32, device=device)

        def normalised(pictures: Any) -> Any:
            places = (pictures.int() + first).permute(0, 3, 1, 2).contiguous()
            return flat.index_select(0, places.reshape(-1)).view(places.shape)

        return normalised

    def describe(self) -> dict[str, Any]:
        """For the fingerprint."""
        sides = {"height": self.height, "width": self.width, "short": self.short, "filter": self.filter}
        said = {**sides, "scale": self.scale, "mean": list(self.mean), "std": list(self.std)}
        return said if self.exact else {**said, "resize": "fast"}


def _looked_up(table: NDArray[np.float32], pictures: np.ndarray) -> NDArray[np.float32]:
    """A sixth of the time of the arithmetic."""
    out = np.empty((len(pictures), 3, *pictures.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(table[channel], pictures[..., channel], out=out[:, channel], mode="wrap")
    return out


def read_processor(settings: dict[str, Any], size: int | None, where: str, whole: bool = False, exact: bool = True) -> Processor:
    """The settings of a file, `size` replacing the sides when given; `whole` resizes the short side to the crop's, so that no edge is cut off
    it. InputError for a step that this cannot do exactly."""
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
    if whole and short is not None:
        short = max(height, width)
    if short is not None and short < max(height, width):
        raise InputError("the crop is larger than the resized image", where=where, found=f"short side {short}, crop {height} x {width}")
    normalise = settings.get("do_normalize", True)
    mean, std = (tuple(settings[k]) if normalise else (fill,) * 3 for k, fill in (("image_mean", 0.0), ("image_std", 1.0)))
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    return Processor(height, width, short, FILTERS[int(settings.get("resample", 3))], scale, mean, std, exact)


def published(settings: dict[str, Any], where: str, size: int | None = None, whole: bool = False, exact: bool = True) -> Processor:
    """The processor that a model of any kind comes with, known by its class's name. InputError for a kind whose steps are not known exactly."""
    settings = settings.get("image_processor", settings)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "none is named")
    stem = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if stem not in KINDS or settings.get("do_resize") is False:
        names = ", ".join(f"{name}ImageProcessor" for name in KINDS)
        raise InputError("the steps of this image processor are not known exactly", where=where, found=kind, allowed=names)
    settings = KINDS[stem] | {key: value for key, value in settings.items() if value is not None}
    if isinstance(settings["size"], int) and "shortest_edge" in str(KINDS[stem]["size"]):
        settings["size"] = {"shortest_edge": settings["size"]}  # as files from before 2023 say it
    return read_processor(settings, size, where, whole, exact)
