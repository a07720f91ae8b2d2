"""Made-up photos and drawings, and what the web does to a picture: the copies that checks against leaks must find."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.media import images


def scenes(n, seed=11, height=240, width=320):
    """Made-up photos as uint8 [H, W, 3]: smooth shades, shapes and grain."""
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(n):
        low = rng.normal(size=(12, 16, 3))
        big = images.stretch(np.clip(128 + 60 * low, 0, 255).astype(np.uint8), height, width).astype(np.int64)
        yield np.clip(big + rng.normal(size=big.shape) * 4, 0, 255).astype(np.uint8)


def smaller(pixels, share=0.7):
    return images.stretch(pixels, *(max(1, round(n * share)) for n in pixels.shape[:2]))


def bitmap(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    return out.getvalue()


COPIES = {
    "exact": lambda p: images.encode_png(p),
    "other format, same pixels": bitmap,
    "re-encoded": lambda p: images.encode_jpeg(p, 92),
    "0.7 of the size": lambda p: images.encode_png(smaller(p)),
    "JPEG at quality 60": lambda p: images.encode_jpeg(p, 60),
    "0.7 of the size, JPEG at 60": lambda p: images.encode_jpeg(smaller(p), 60),
}
