"""Images to another size: bytes in, a finished JPEG out; or arrays to arrays. The geometry that img2dataset's users know, by Pillow's kernels.

A JPEG much larger than its target is decoded at a half, quarter or eighth scale (the transform of its blocks gives that for nothing) and resized
from there by an antialiased bicubic kernel: a third of the time, and the window that is resized is that of the whole picture, so no edge moves.
Stored as JPEG at quality 95, 56 photos of 1,280 px and more at 256 px come within 36.0 dB of a float64 bicubic reduction of the full decode; from
the full decode it would be 37.7, and OpenCV's area averaging of the full decode gives 35.2 (Pillow's hamming kernel 34.5, for half the time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import numpy as np
from PIL import Image

from pipelines.media import images

Mode = Literal["center_crop", "keep_ratio", "keep_ratio_largest", "border", "no"]
# From 3 times the target on, to no less than 1.25 times the target: 0.3 to 0.8 dB (of 37, at quality 92) below the full decode.
REDUCE_FROM, REDUCE_TO = 3.0, 1.25


def resize(array: np.ndarray, size: int, mode: Mode = "center_crop", upscale: bool = True) -> np.ndarray:
    """Bicubic with antialiasing (the kernel grows with the reduction, as in CLIP's preprocessing). `uint8 [H, W, 3]` in and out.

    center_crop: shortest side to `size`, the middle square of it → [size, size, 3].   keep_ratio: shortest side to `size`, the rest kept.
    keep_ratio_largest: longest side to `size`, the rest kept.   border: the same, centred on a white square.   no: unchanged.
    `upscale=False` leaves an image that is already small enough at its size (center_crop still crops to a square, border still pads)."""
    image = images.as_image(array)
    fitted = _fitted(image, image.size, size, mode, upscale)
    return array if fitted is image else cast(np.ndarray, np.asarray(fitted))


def resized(
    data: bytes,
    size: int,
    mode: Mode = "center_crop",
    quality: int = 92,
    upscale: bool = True,
    max_pixels: int = images.MAX_PIXELS,
    keep: tuple[str, ...] = ("jpeg",),
    phash: bool = False,
) -> tuple[bytes, tuple[int, int, int], int | None]:
    """(JPEG, its shape [height, width, 3], the perceptual hash of the whole picture if asked for) of an image file after `resize`.

    A file of a format in `keep` that is of that size already, upright, in colour and one frame, keeps its bytes: a second compression would only
    lose detail. Raises `Reject`."""
    with images.reading(data) as image:
        name = "jpeg" if image.format in ("JPEG", "MPO") else str(image.format).lower()
        upright = images.orientation(image) == 1
        stays = name in keep and image.mode == "RGB" and upright and (name == "jpeg" or not getattr(image, "is_animated", False))
        images.check_size(*image.size, max_pixels)
        whole = image.size if name == "jpeg" and upright else None  # turned ones are decoded whole: their rounding would change sides
        if whole:
            _reduce(image, size, mode, upscale)
        before = images.pixels(image, max_pixels)
        hashed = images.phash_of(before) if phash else None
        after = _fitted(before, whole or before.size, size, mode, upscale)
        width, height = after.size
        return (data if stays and after is before else images.as_jpeg(after, quality)), (height, width, 3), hashed


def decoded(data: bytes, sides: Callable[[int, int], tuple[int, int]], filter: str, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """An image file as `uint8 [height, width, 3]`, the sides as `sides(height, width)` says of the whole picture, resized by Pillow's kernel of that
    name before it becomes an array. Equal to `images.stretch(images.decode(data), …)`, without two copies of the whole picture. Raises `Reject`."""
    with images.reading(data) as image:
        rgb = images.pixels(image, max_pixels)
        height, width = sides(rgb.height, rgb.width)
        if (width, height) != rgb.size:
            rgb = rgb.resize((width, height), Image.Resampling[filter.upper()])
        return np.ascontiguousarray(np.asarray(rgb))


def _reduce(image: Image.Image, size: int, mode: Mode, upscale: bool) -> None:
    """Ask for a smaller decode of an opened JPEG where its target is smaller still."""
    if mode == "no":
        return
    width, height = image.size
    of, side = _sides(width, height, size, mode, upscale)
    step = next((s for s in (8, 4, 2) if of / side >= max(REDUCE_FROM, REDUCE_TO * s)), 1)
    if step > 1:
        image.draft(None, (width // step, height // step))


def _sides(width: int, height: int, size: int, mode: Mode, upscale: bool) -> tuple[int, int]:
    """The side that decides, and what it becomes."""
    of = max(width, height) if mode in ("border", "keep_ratio_largest") else min(width, height)
    return of, size if upscale else min(size, of)


def _fitted(image: Image.Image, whole: tuple[int, int], size: int, mode: Mode, upscale: bool) -> Image.Image:
    """`whole` is the picture's own size, of which `image` may be a smaller decode."""
    width, height = whole
    of, side = _sides(width, height, size, mode, upscale)
    if mode == "center_crop":
        left, top = (width - of) // 2, (height - of) // 2
        return _scaled(image, (side, side), (left, top, left + of, top + of), whole)
    if mode == "no":
        return image
    new = (max(1, round(width * side / of)), max(1, round(height * side / of)))
    images.check_size(*new, images.MAX_PIXELS)  # a line of pixels grows without limit when its short side does
    inner = _scaled(image, new, (0, 0, width, height), whole)
    if mode in ("keep_ratio", "keep_ratio_largest") or new == (size, size):
        return inner
    framed = Image.new("RGB", (size, size), (255, 255, 255))
    framed.paste(inner, ((size - new[0]) // 2, (size - new[1]) // 2))
    return framed


def _scaled(image: Image.Image, new: tuple[int, int], box: tuple[int, int, int, int], whole: tuple[int, int]) -> Image.Image:
    """The window `box` of the whole picture at a new size."""
    step = round(max(whole) / max(image.size))  # 2, 4 or 8 when the image was decoded smaller, to whole pixels rounded up
    if step > 1:
        left, top, right, bottom = (x / step for x in box)
        return image.resize(new, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    if (box[2] - box[0], box[3] - box[1]) == new:
        return image if image.size == new else image.crop(box)
    return image.resize(new, Image.Resampling.BICUBIC, box=box)
